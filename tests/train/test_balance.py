"""Balanced sampling (``--balance sampler``): frequency of classes and images, repetition, and resume."""

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
    "backbone": "test_resnet",
    "input_size": (32, 32),
    "val": 0.25,
    "test": 0.25,
    "workers": 0,
    "batch_size": 8,
    "pretrained": False,
    "epochs": 6,
    "balance": "sampler",
}


def test_balanced_sampler_draws_classes_and_their_images_equally_often() -> None:
    batches = list(BalancedSampler(LABELS, 8, range(75), seed=3))
    assert {len(batch) for batch in batches} == {8}
    images = [index % len(LABELS) for batch in batches for index in batch]
    assert Counter(LABELS[image] for image in images) == {0: 200, 1: 200, 2: 200}
    drawn = Counter(images)
    for label in range(3):
        counts = [drawn[image] for image, other in enumerate(LABELS) if other == label]
        assert max(counts) - min(counts) <= 1, label
    for done in (1, 5, 20):
        part = Counter(LABELS[index % len(LABELS)] for batch in batches[:done] for index in batch)
        assert max(part.values()) - min(part.values()) <= 1, "after any step"


def test_repeated_image_has_a_new_index_and_thus_a_new_augmentation() -> None:
    indices = [index for batch in BalancedSampler(LABELS, 8, range(75), seed=3) for index in batch]
    assert len(set(indices)) == len(indices)
    repetitions = [index // len(LABELS) for index in indices if LABELS[index % len(LABELS)] == 1]
    assert repetitions == sorted(repetitions) and repetitions[-1] == 66


def test_balanced_batch_depends_only_on_seed_and_step() -> None:
    whole = list(BalancedSampler(LABELS, 8, range(30), seed=3))
    assert list(BalancedSampler(LABELS, 8, range(11, 30), seed=3)) == whole[11:]
    assert list(BalancedSampler(LABELS, 8, range(90), seed=3))[:30] == whole
    assert list(BalancedSampler(LABELS, 8, range(30), seed=4)) != whole
    assert np.ptp([len(batch) for batch in BalancedSampler(LABELS[48:52], 8, range(3), seed=0)]) == 0, "fewer images than the batch size"


class _StopError(Exception):
    """Raised in the progress callback to stop a training."""


@pytest.mark.parametrize("choice", [{"strategy": "full"}, {"strategy": "partial", "unfreeze": "0.5", "augmented_views": 1}])
def test_resumed_balanced_training_gives_the_same_weights(colors: Path, tmp_path: Path, choice: dict[str, object]) -> None:
    for image in sorted((colors / "red").iterdir())[4:]:
        image.unlink()
    config = TrainConfig.from_options(**{**SMALL, **choice, "checkpoint_s": 0.001})
    stages: set[str] = set()

    def stop(stage: str, done: int, total: int) -> None:
        stages.add(stage)
        if stage == "fine-tuning" and done == 7:
            raise _StopError

    whole = train(colors, config, tmp_path / "whole")
    with pytest.raises(_StopError):
        train(colors, config, tmp_path / "broken", progress=stop)
    assert ("running the frozen layers" in stages) == (config.optim.strategy == "partial"), "balanced with cached activations too"
    resumed = train(colors, config, tmp_path / "broken", resume=True)
    assert resumed.record.files["weights.safetensors"] == whole.record.files["weights.safetensors"]
    plain = train(colors, config.with_options(balance="none"), tmp_path / "plain")
    assert plain.record.files["weights.safetensors"] != whole.record.files["weights.safetensors"]
