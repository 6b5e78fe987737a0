"""Balanced training (``--balance``): frequency of classes and images, repetition, resume, and groups of a table."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from edgetl.cli.commands.evaluation.group_tables import show_balancing
from edgetl.data.folder import ImageFolder, Sample
from edgetl.data.split import Splits
from edgetl.errors import ConfigError
from edgetl.train.config.options import DataConfig, TrainConfig
from edgetl.train.config.resolve import check_conflicts
from edgetl.train.config.tasks import balancing_cells
from edgetl.train.heads.linear import fit_logistic
from edgetl.train.heads.modules import LabeledFeatures
from edgetl.train.inputs.samplers import BalancedSampler
from edgetl.train.workflows.balancing import compare_balancing
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


def _write_table(root: Path, values: dict[str, str]) -> Path:
    """Write a table with the column ``border`` for the images of ``root``: a value for each name of an image."""
    path = root.parent / "groups.csv"
    rows = [f"{image.relative_to(root)},{values[image.stem]}" for image in sorted(root.rglob("*.png")) if image.stem in values]
    path.write_text("\n".join(["file,border", *rows]) + "\n")
    return path


def test_balancing_cells_are_the_combinations_of_class_and_value(colors: Path) -> None:
    table = _write_table(colors, {"000": "dark", "001": "light"})
    samples = [Sample(colors / name / f"{index:03d}.png", label, "") for label, name in enumerate(("red", "blue")) for index in range(3)]
    cells = balancing_cells(samples, colors, DataConfig(balance="head", balance_by="border", groups=str(table)))
    assert cells is not None and len(set(cells.tolist())) == 6, "an image without a value is in a cell of its class"
    assert balancing_cells(samples, colors, DataConfig(balance="head")) is None


def test_a_fit_with_balanced_cells_ignores_a_spurious_feature() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 1000)
    spurious = np.where(rng.random(1000) < 0.95, labels, 1 - labels)
    features = np.stack([labels + rng.normal(0, 0.8, 1000), spurious + rng.normal(0, 0.2, 1000)], axis=1).astype(np.float32)
    worst = []
    for cells in (None, 2 * labels + spurious):
        head = fit_logistic(LabeledFeatures(features, labels, cells=cells), 2, seed=0, balanced=True)
        correct = (features @ head.weight.T + head.bias).argmax(axis=1) == labels
        worst.append(min(correct[2 * labels + spurious == cell].mean() for cell in range(4)))
    assert worst[0] < 0.4 and worst[1] > 0.65


@pytest.mark.parametrize("balance", ["sampler", "head"])
def test_training_is_balanced_by_a_column_of_a_table(colors: Path, tmp_path: Path, balance: str) -> None:
    table = _write_table(colors, {f"{index:03d}": "dark" if index < 3 else "light" for index in range(12)})
    config = TrainConfig.from_options(**{**SMALL, "strategy": "full", "balance": balance, "balance_by": "border", "groups": str(table)})
    run = train(colors, config, tmp_path / "run")
    plain = train(colors, config.with_options(balance_by=None, groups=None), tmp_path / "plain")
    assert run.record.files["weights.safetensors"] != plain.record.files["weights.safetensors"]
    assert run.record.config.data.balance_by == "border"
    effects = run.record.balancing, plain.record.balancing
    assert [effect and (effect.by, effect.images) for effect in effects] == (
        [("border", 9), ("class", 9)] if balance == "head" else [None] * 2
    )


def test_effect_of_balancing_is_the_accuracy_of_each_group_with_two_heads(colors: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = _write_table(colors, {f"{index:03d}": "dark" if index < 3 else "light" for index in range(12)})
    samples = tuple(
        Sample(colors / name / f"{index:03d}.png", label, "") for label, name in enumerate(("red", "blue")) for index in range(6)
    )
    splits = Splits(ImageFolder(colors, ("red", "blue"), samples, ()), (), samples, ())
    balanced = np.eye(2, dtype=np.float32)[[sample.label for sample in samples]]
    plain = np.tile(np.array([1, 0], np.float32), (12, 1))
    config = DataConfig(balance="head", balance_by="border", groups=str(table))
    found = compare_balancing(splits, config, plain, balanced)
    assert found is not None and found.reference == "not balanced"
    assert [[(group.group, group.accuracy.value, group.accuracy.n) for group in model.groups] for model in found.models] == [
        [("dark", 0.5, 6), ("light", 0.5, 6)],
        [("dark", 1.0, 6), ("light", 1.0, 6)],
    ]
    show_balancing(found)
    printed = " ".join(capsys.readouterr().out.split())
    assert "effect of --balance on 12 validation images, by border" in printed and "dark (n = 6)" in printed


def test_effect_of_balancing_is_not_measured_without_values_of_validation_images(colors: Path) -> None:
    table = _write_table(colors, {"011": "dark"})
    samples = (Sample(colors / "red" / "000.png", 0, ""),)
    splits = Splits(ImageFolder(colors, ("red", "blue"), samples, ()), (), samples, ())
    logits = np.eye(2, dtype=np.float32)[:1]
    assert compare_balancing(splits, DataConfig(balance="head", balance_by="border", groups=str(table)), logits, logits) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"balance_by": "age", "groups": "t.csv"}, "--balance-by cannot be combined with --balance none"),
        ({"balance_by": "age", "balance": "head"}, "--balance-by age needs --groups FILE.csv"),
        ({"groups": "t.csv", "balance": "head"}, "--groups needs --balance-by COLUMN"),
        ({"balance_by": "age", "groups": "t.csv", "balance": "head", "head": "knn"}, "only for classification with --head linear"),
        ({"balance": "head", "task": "multi-label", "labels": "t.csv"}, "--balance head is only for classification"),
    ],
)
def test_conflicting_options_of_balancing_are_reported(options: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_conflicts(TrainConfig.from_options(**options))
