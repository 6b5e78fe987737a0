"""Task rules: scan images and labels, choose the output decoding on validation images, and warn of chance-level results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, assert_never

import numpy as np
from numpy.typing import NDArray

from edgetl.core.files.names import printable
from edgetl.core.output_decoding import sigmoid
from edgetl.core.progress import Progress, silent
from edgetl.core.results import Evaluation
from edgetl.core.tasks import DecisionRule, OutputDecoding, Task
from edgetl.data.anomalies.layout import find_normal, split_normal
from edgetl.data.folder import ImageFolder, Sample, scan, scan_anomalies, scan_without_limits
from edgetl.data.groups import group_by_path
from edgetl.data.loading import labels_of, truth_of
from edgetl.data.packing.labels import read_labels
from edgetl.data.selection import Selection
from edgetl.data.shards.index import PARTS, SplitRule
from edgetl.data.shards.names import is_shards, refuse_shards
from edgetl.data.shards.scan import scan_shards
from edgetl.data.split import Splits, split
from edgetl.data.table.attributes import read_attributes
from edgetl.data.table.rows import Table
from edgetl.data.table.scan import scan_table
from edgetl.errors import ConfigError, DataError
from edgetl.train.config.options import DataConfig, TrainConfig
from edgetl.train.config.plan import planned_strategy
from edgetl.train.config.recipe import with_recipe

# Default tolerance of a correct prediction in regression, relative to the standard deviation of the training values.
TOLERANCE_SHARE = 0.25
DEFAULT_THRESHOLD = 0.5
# Largest ratio of test images that are copies of training images.
MAX_LEAKAGE = 0.005
# With fewer images, a validation split is too small to choose anything, and its images are missing in the training.
CROSS_VALIDATE_BELOW = 300


def scan_images(data: Path, config: DataConfig, *, limits: bool = True, progress: Progress = silent) -> ImageFolder:
    """Scan the images of ``data`` and their labels: class folders, or the table ``config.labels``.

    Without ``limits``, broken images and small classes are no errors.

    Raises:
        ConfigError, DataError: As for ``edgetl.data.folder.scan``, ``edgetl.data.table.scan.scan_table`` and
            ``edgetl.data.groups.group_by_path``. Also if ``data`` are shards.
    """
    refuse_shards(data)
    selection = Selection(config.include, config.exclude)
    if config.task == "anomaly":
        return scan_anomalies(data, find_normal, selection=selection, progress=progress)
    if config.labels is None:
        folder = (scan if limits else scan_without_limits)(data, selection=selection, progress=progress)
        return folder if config.group is None else group_by_path(folder, config.group)
    columns = tuple(part.strip() for part in (config.columns or "").split(",") if part.strip())
    table = Table(Path(config.labels), config.task, columns, group=config.group, selection=selection)
    return scan_table(data, table, limits=limits, progress=progress)


def split_images(folder: ImageFolder, config: TrainConfig, *, progress: Progress = silent) -> Splits:
    """Split a folder by the options of a training."""
    data, divide = config.data, split_normal if folder.task == "anomaly" else split
    together = data.near_duplicates == "together"
    return divide(folder, seed=config.run.seed, val=data.val, test=data.test, together=together, progress=progress)


def scan_splits(data: Path, config: TrainConfig, *, progress: Progress = silent) -> Splits:
    """Scan the images or shards of a training, and split them. Few images of a folder are cross-validated.

    Raises:
        ConfigError, DataError: As for ``scan_images``, ``edgetl.data.shards.scan.scan_shards`` and ``check_leakage``.
    """
    if is_shards(data):
        rule = SplitRule(seed=config.run.seed, val=config.data.val, test=config.data.test)
        folder, shards = scan_shards(
            data, rule, labels=read_labels(Path(config.data.labels)) if config.data.labels else None, progress=progress
        )
        train, val, test = (tuple(sample for sample in folder.samples if sample.part == part) for part in PARTS)
        return Splits(folder, train, val, test, shards=shards)
    folder = scan_images(data, config.data, progress=progress)
    splits = pool_few_images(split_images(folder, config, progress=progress), config)
    check_leakage(splits, config.data)
    return splits


def pool_few_images(splits: Splits, config: TrainConfig) -> Splits:
    """Make the validation images training images if there are too few of both: cross-validation replaces the validation split.

    It replaces the split of a linear probe, and of the strategy ``partial`` for classification, with fewer than ``CROSS_VALIDATE_BELOW``
    images and at least two distinct images (or groups) of each class. Ready-made validation images, and the split of a given ``--val``,
    are kept. So is the split of options that need validation images during the training.
    """
    given, config = config.given(), with_recipe(config)[0]
    pooled = sorted((*splits.train, *splits.val), key=lambda sample: sample.path)
    images = len({sample.content for sample in pooled})
    strategy, _ = planned_strategy(config.optim.strategy, images, pretrained=config.backbone.pretrained)
    tuned = strategy == "partial" and splits.folder.task == "classification" and not _needs_validation(config, given)
    chosen = config.optim.strategy != "compare" and (strategy == "probe" or tuned) and config.head.kind == "linear"
    kept = "val" in given or any(sample.part == "val" for sample in splits.val)
    if splits.folder.task == "anomaly" or not chosen or kept or not splits.train or images >= CROSS_VALIDATE_BELOW:
        return splits
    distinct = {(sample.label, sample.group or sample.content) for sample in pooled}
    if splits.folder.task == "classification" and min(Counter(label for label, _ in distinct).values()) < 2:
        return splits
    return replace(splits, train=tuple(pooled), val=(), cross_validated=True)


def _needs_validation(config: TrainConfig, given: Mapping[str, Any]) -> bool:
    """Return True if options of a fine-tuning choose weights on validation images, or train on images of an earlier task."""
    continual = config.continual
    earlier = continual.replay or continual.lwf or continual.ewc or continual.forgetting == "progressive"
    return "patience" in given or bool(continual.wise_ft or earlier)


def check_leakage(splits: Splits, config: DataConfig) -> None:
    """Check the ratio of the test images that are copies of training images.

    Raises:
        DataError: the ratio is above ``MAX_LEAKAGE``, and ``config.allow_leakage`` is not set.
    """
    leaked, images = splits.leaked, len(splits.test)
    if len(leaked) > MAX_LEAKAGE * images and not config.allow_leakage:
        raise DataError(
            f"{printable(splits.folder.root)}: {len(leaked)} of {images} test images ({len(leaked) / images:.1%}) are copies of training "
            f"images, such as {printable(leaked[0])}. The limit is {MAX_LEAKAGE:.1%}, because the test accuracy would be too high. Look at "
            f"them with edgetl check --html, train on its cleaned list (--keep), or add --allow-leakage."
        )


def balancing_cells(samples: Sequence[Sample], root: Path, config: DataConfig) -> NDArray[np.int64] | None:
    """Return the balancing cell of each image, int64 ``[n]``: the combination of its class and its value of ``--balance-by``.

    None without ``--balance-by``: the classes are balanced. Images without a value form a cell of their class. Group-balanced training:
    Idrissi et al. 2022 (arXiv:2110.14503).

    Raises:
        ConfigError, DataError: As for ``edgetl.data.table.attributes.read_attributes``.
    """
    if config.balance_by is None:
        return None
    values = balancing_values(samples, root, config, config.balance_by)
    _, cells = np.unique([f"{label} {value}" for label, value in zip(labels_of(samples), values, strict=True)], return_inverse=True)
    return cells.astype(np.int64)


def balancing_values(samples: Sequence[Sample], root: Path, config: DataConfig, by: str) -> tuple[str, ...]:
    """Return the value of each image in the column ``by`` of ``--balance-by``, empty for an image without a value.

    Raises:
        ConfigError, DataError: As for ``edgetl.data.table.attributes.read_attributes``.
    """
    table, option = (config.groups, "--groups") if config.groups else (config.labels, "--labels")
    columns = read_attributes(Path(str(table)), by, root, samples, option=option)
    if len(columns) > 1:
        raise ConfigError(f"--balance-by {by} names {len(columns)} columns. Join them by colons to balance combinations.")
    (values,) = columns.values()
    return values


def value_scale(splits: Splits) -> tuple[float, float]:
    """Return the mean and standard deviation of the training targets of a regression or ordinal task. Other tasks: 0 and 1."""
    if splits.folder.task not in ("regression", "ordinal"):
        return 0.0, 1.0
    values = truth_of(splits.train)[:, 0]
    return float(values.mean()), float(values.std()) or 1.0


def choose_decoding(splits: Splits, val_outputs: NDArray[np.float32], *, tolerance: float | None) -> OutputDecoding:
    """Choose the output decoding of a trained network.

    Thresholds of a multi-label task come from the validation images, the spread of a regression from the training images, and ordinal
    levels from all images.

    Args:
        splits: Images and labels.
        val_outputs: float32 ``[n, labels]``, outputs for the validation images.
        tolerance: Largest error of a correct prediction in regression. None: ``TOLERANCE_SHARE`` of the spread.
    """
    folder = splits.folder
    match folder.task:
        case "classification":
            decision_rule = DecisionRule()
        case "multi-label":
            decision_rule = DecisionRule(thresholds=choose_thresholds(truth_of(splits.validation) > 0, sigmoid(val_outputs)))
        case "regression":
            spread = value_scale(splits)[1]
            decision_rule = DecisionRule(spread=spread, tolerance=tolerance or TOLERANCE_SHARE * spread)
        case "ordinal":
            levels = [int(sample.targets[0]) for sample in folder.samples]
            decision_rule = DecisionRule(spread=value_scale(splits)[1], tolerance=0.5, ordinal_levels=(min(levels), max(levels)))
        case "anomaly":
            raise AssertionError("edgetl.train.workflows.anomaly fits a detector")
        case _:
            assert_never(folder.task)
    return OutputDecoding(folder.task, folder.labels, decision_rule)


def choose_thresholds(truth: NDArray[np.bool_], scores: NDArray[np.float32]) -> tuple[float, ...]:
    """Choose the threshold with the highest F1 for each label.

    Of several equally good thresholds, the one nearest to 0.5 is chosen. The threshold is 0.5 if all images or no images have the label.

    Args:
        truth: ``[n, labels]``, True if the image has the label.
        scores: float32 ``[n, labels]``, 0..1.
    """
    return tuple(_threshold(truth[:, index], scores[:, index].astype(np.float64)) for index in range(truth.shape[1]))


def _threshold(truth: NDArray[np.bool_], scores: NDArray[np.float64]) -> float:
    if truth.all() or not truth.any():
        return DEFAULT_THRESHOLD
    values = np.unique(scores)
    candidates = np.unique([DEFAULT_THRESHOLD, values[0] / 2, *((values[1:] + values[:-1]) / 2)])
    predicted = scores[None] >= candidates[:, None]
    f1 = 2 * (predicted & truth).sum(axis=1) / (predicted.sum(axis=1) + truth.sum())
    best = candidates[f1 >= f1.max() - 1e-12]
    return float(best[np.abs(best - DEFAULT_THRESHOLD).argmin()])


def chance_alarm(validation: Evaluation, samples: Sequence[Sample], task: Task) -> str | None:
    """Return a warning if the validation result is not significantly better than chance, or None.

    Chance is the prediction of the mean (regression), of the most common class or level, or a random ranking (multi-label).
    """
    if task == "regression":
        assert validation.regression is not None
        if validation.regression.r2.low <= 0:
            return f"the validation R² on {len(samples)} images is not significantly better than 0, that of always predicting the mean."
        return None
    counts = Counter(sample.targets or sample.label for sample in samples)
    if task == "multi-label":
        return _chance_level_labels(validation, samples)
    common = max(counts.values()) / len(samples)
    if validation.accuracy.low <= common:
        kind = "level" if task == "ordinal" else "class"
        return (
            f"the validation accuracy on {len(samples)} images is not significantly better than {common:.0%}, that of always predicting "
            f"the most common {kind}."
        )
    return None


def _chance_level_labels(validation: Evaluation, samples: Sequence[Sample]) -> str | None:
    """Return a warning that names the labels at chance level. A random ranking has an average precision equal to the label's frequency."""
    assert validation.multi_label is not None
    frequencies = truth_of(samples).mean(axis=0)
    found = [
        score.label
        for score, precision, frequency in zip(validation.classes, validation.multi_label.average_precision, frequencies, strict=True)
        if precision is not None and frequency < 1 and precision <= frequency
    ]
    if not found:
        return None
    return f"the ranking of {len(samples)} images in the validation by the label {', '.join(found[:5])} is no better than a random ranking."
