from __future__ import annotations

from pathlib import Path

import pytest
import torch

from edgetl.core.lineage import describe_parent
from edgetl.errors import ConfigError, RunError
from edgetl.export.to_hub import share_run
from edgetl.train.artifacts.run import Run, open_run
from edgetl.train.config.options import TrainConfig
from edgetl.train.networks.backbone import rebuild
from edgetl.train.networks.pruned import PRUNED, layer_sizes
from edgetl.train.workflows.runs.prune import prune_run
from edgetl.train.workflows.train import train


@pytest.fixture(scope="module")
def slightly_pruned(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return prune_run(run.path, tmp_path_factory.mktemp("pruned") / "run", ratio=0.3).run


def test_pruned_network_is_smaller_reloads_and_recovers_accuracy_by_fine_tuning(run: Run, digits: Path, tmp_path: Path) -> None:
    pruned = prune_run(run.path, tmp_path / "pruned", ratio=0.4)
    assert pruned.after.params_m < 0.6 * pruned.before.params_m and pruned.after.mmacs < 0.6 * pruned.before.mmacs
    files = {path.name for path in run.path.iterdir()}
    assert {path.name for path in pruned.run.path.iterdir()} == files - {"config.json", "curves.png"}, (
        "timm cannot build it, and it is not trained"
    )
    pruned_accuracy = pruned.run.record.validation.accuracy.value
    assert pruned_accuracy < run.record.validation.accuracy.value - 0.05

    again = open_run(tmp_path / "pruned").load_model()
    widths = layer_sizes(again)
    assert widths == pruned.run.record.backbone.model_args[PRUNED]
    assert all(width[0] % 8 == 0 for name, width in widths.items() if name != pruned.run.record.backbone.head_name)

    config = TrainConfig.from_options(backbone=str(tmp_path / "pruned"), strategy="full", epochs=2, augmented_views=1)
    tuned = train(digits, config, tmp_path / "tuned")
    assert tuned.record.validation.accuracy.value > pruned_accuracy + 0.2
    assert layer_sizes(tuned.load_model()) == widths
    before, after = tuned.record.backbone.parents[-2:]
    assert f"{run.record.validation.accuracy.value:.4f} in its validation" in describe_parent(before)
    assert f"{pruned_accuracy:.4f} in its validation" in describe_parent(after)


def test_pruned_network_can_be_rebuilt_with_another_number_of_classes(slightly_pruned: Run) -> None:
    record = slightly_pruned.record
    model = rebuild(record.backbone.architecture, dict(record.backbone.model_args), 3).eval()
    with torch.inference_mode():
        assert model(torch.zeros(1, 3, *record.preprocess.input_size)).shape == (1, 3)


def test_share_rejects_a_pruned_run(slightly_pruned: Run, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="the network is pruned, and timm builds the complete architecture"):
        share_run(slightly_pruned.path, tmp_path / "shared")


@pytest.mark.parametrize("ratio", [0.0, 0.95, -1.0])
def test_prune_rejects_a_ratio_out_of_range(run: Run, tmp_path: Path, ratio: float) -> None:
    with pytest.raises(ConfigError, match="--ratio"):
        prune_run(run.path, tmp_path / "pruned", ratio=ratio)
    assert list(tmp_path.iterdir()) == []
