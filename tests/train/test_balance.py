"""--balance sampler: counted, repeated, resumed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from edgetl.train.config.options import TrainConfig
from edgetl.train.inputs.samplers import BalancedSampler
from edgetl.train.workflows.train import train

LABELS = [0] * 50 + [1] * 3 + [2] * 17
SMALL = {
    "backbone": "test_resnet", "input_size": (32, 32), "val": 0.25, "test": 0.25, "workers": 0, "batch_size": 8, "pretrained": False,
    "epochs": 6, "balance": "sampler",
}  # fmt: skip


def test_every_class_is_drawn_equally_often_and_so_is_every_image_of_a_class() -> None:
    batches = list(BalancedSampler(LABELS, 8, range(75), seed=3))
    assert {len(batch) for batch in batches} == {8}
    images = [index % len(LABELS) for batch in batches for index in batch]
    assert Counter(LABELS[image] for image in images) == {0: 200, 1: 200, 2: 200}
    shown = Counter(images)
    for label in range(3):
        counts = [shown[image] for image, kind in enumerate(LABELS) if kind == label]
        assert max(counts) - min(counts) <= 1, label
    for done in (1, 5, 20):
        part = Counter(LABELS[index % len(LABELS)] for batch in batches[:done] for index in batch)
        assert max(part.values()) - min(part.values()) <= 1, "after any step"


def test_an_image_that_comes_again_has_an_index_and_so_a_view_of_its_own() -> None:
    indices = [index for batch in BalancedSampler(LABELS, 8, range(75), seed=3) for index in batch]
    assert len(set(indices)) == len(indices)
    again = [index // len(LABELS) for index in indices if LABELS[index % len(LABELS)] == 1]
    assert again == sorted(again) and again[-1] == 66


def test_a_steps_batch_depends_on_the_seed_and_the_step_alone() -> None:
    whole = list(BalancedSampler(LABELS, 8, range(30), seed=3))
    assert list(BalancedSampler(LABELS, 8, range(11, 30), seed=3)) == whole[11:]
    assert list(BalancedSampler(LABELS, 8, range(90), seed=3))[:30] == whole
    assert list(BalancedSampler(LABELS, 8, range(30), seed=4)) != whole
    assert np.ptp([len(batch) for batch in BalancedSampler(LABELS[48:52], 8, range(3), seed=0)]) == 0, "fewer images than a batch holds"


class _StopError(Exception):
    """Ends a training from its progress."""


@pytest.mark.parametrize("choice", [{"strategy": "full"}, {"strategy": "partial", "unfreeze": "0.5", "augmented_views": 1}])
def test_a_resumed_balanced_training_ends_with_the_same_weights(colours: Path, tmp_path: Path, choice: dict[str, object]) -> None:
    for image in sorted((colours / "red").iterdir())[4:]:
        image.unlink()
    config = TrainConfig.from_options(**{**SMALL, **choice, "checkpoint_s": 0.001})
    stages: set[str] = set()

    def stop(stage: str, done: int, total: int) -> None:
        stages.add(stage)
        if stage == "fine-tuning" and done == 7:
            raise _StopError

    whole = train(colours, config, tmp_path / "whole")
    with pytest.raises(_StopError):
        train(colours, config, tmp_path / "broken", progress=stop)
    assert ("running the frozen layers" in stages) == (config.optim.strategy == "partial"), "balanced with cached activations too"
    resumed = train(colours, config, tmp_path / "broken", resume=True)
    assert resumed.record.files["weights.safetensors"] == whole.record.files["weights.safetensors"]
    plain = train(colours, config.with_options(balance="none"), tmp_path / "plain")
    assert plain.record.files["weights.safetensors"] != whole.record.files["weights.safetensors"]
