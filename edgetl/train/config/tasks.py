"""Rules of each task: scanning of images, output decoding chosen on validation images, and warnings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import assert_never

import numpy as np
from numpy.typing import NDArray

from edgetl.core.output_decoding import sigmoid
from edgetl.core.progress import Progress, silent
from edgetl.core.results import Evaluation
from edgetl.core.tasks import DecisionRule, OutputDecoding, Task
from edgetl.data.folder import ImageFolder, Sample, scan
from edgetl.data.groups import group_by_path
from edgetl.data.loading import truth_of
from edgetl.data.selection import Selection
from edgetl.data.split import Splits
from edgetl.data.table.rows import Table
from edgetl.data.table.scan import scan_table
from edgetl.train.config.options import DataConfig

# A regression's answer is right within this share of the training values' standard deviation, unless the user says within what.
TOLERANCE_SHARE = 0.25
PLAIN_THRESHOLD = 0.5


def scan_images(data: Path, config: DataConfig, *, progress: Progress = silent) -> ImageFolder:
    """The images of ``data`` with the labels that ``config`` names: class folders, or a table.

    Raises:
        ConfigError, DataError: as ``edgetl.data.folder.scan``, ``edgetl.data.table.scan.scan_table`` and
            ``edgetl.data.groups.group_by_path``.
    """
    selection = Selection(config.include, config.exclude)
    if config.labels is None:
        folder = scan(data, selection=selection, progress=progress)
        return folder if config.group is None else group_by_path(folder, config.group)
    columns = tuple(part.strip() for part in (config.columns or "").split(",") if part.strip())
    table = Table(Path(config.labels), config.task, columns, group=config.group, selection=selection)
    return scan_table(data, table, progress=progress)


def value_scale(splits: Splits) -> tuple[float, float]:
    """Mean and standard deviation of the training images' numbers; 0 and 1 for other tasks."""
    if splits.folder.task not in ("regression", "ordinal"):
        return 0.0, 1.0
    values = truth_of(splits.train)[:, 0]
    return float(values.mean()), float(values.std()) or 1.0


def choose_decoding(splits: Splits, val_outputs: NDArray[np.float32], *, tolerance: float | None) -> OutputDecoding:
    """How the trained network's outputs ``[n, labels]`` are read: thresholds from the validation images, spread and grades from all."""
    folder = splits.folder
    match folder.task:
        case "classification":
            decision_rule = DecisionRule()
        case "multi-label":
            decision_rule = DecisionRule(thresholds=choose_thresholds(truth_of(splits.val) > 0, sigmoid(val_outputs)))
        case "regression":
            spread = value_scale(splits)[1]
            decision_rule = DecisionRule(spread=spread, tolerance=tolerance or TOLERANCE_SHARE * spread)
        case "ordinal":
            grades = [int(sample.targets[0]) for sample in folder.samples]
            decision_rule = DecisionRule(spread=value_scale(splits)[1], tolerance=0.5, ordinal_levels=(min(grades), max(grades)))
        case _:
            assert_never(folder.task)
    return OutputDecoding(folder.task, folder.labels, decision_rule)


def choose_thresholds(truth: NDArray[np.bool_], scores: NDArray[np.float32]) -> tuple[float, ...]:
    """The threshold of each label that has the highest F1, both ``[n, labels]``.

    Where several are as good, the one nearest to a half; a half too where the images cannot tell: all of them have the label, or none.
    """
    return tuple(_threshold(truth[:, index], scores[:, index].astype(np.float64)) for index in range(truth.shape[1]))


def _threshold(truth: NDArray[np.bool_], scores: NDArray[np.float64]) -> float:
    if truth.all() or not truth.any():
        return PLAIN_THRESHOLD
    values = np.unique(scores)
    candidates = np.unique([PLAIN_THRESHOLD, values[0] / 2, *((values[1:] + values[:-1]) / 2)])
    held = scores[None] >= candidates[:, None]
    f1 = 2 * (held & truth).sum(axis=1) / (held.sum(axis=1) + truth.sum())
    best = candidates[f1 >= f1.max() - 1e-12]
    return float(best[np.abs(best - PLAIN_THRESHOLD).argmin()])


def chance_alarm(validation: Evaluation, samples: Sequence[Sample], task: Task) -> str | None:
    """A sentence where the figures cannot be told from always giving one answer."""
    if task == "regression":
        assert validation.regression is not None
        if validation.regression.r2.low <= 0:
            return f"on {len(samples)} validation images this cannot be told from always answering the mean (R² may be 0)."
        return None
    answers = Counter(sample.targets or sample.label for sample in samples)
    if task == "multi-label":
        return _indifferent_labels(validation, samples)
    common = max(answers.values()) / len(samples)
    if validation.accuracy.low <= common:
        one = "grade" if task == "ordinal" else "class"
        return f"on {len(samples)} validation images this cannot be told from always answering the most common {one} ({common:.0%})."
    return None


def _indifferent_labels(validation: Evaluation, samples: Sequence[Sample]) -> str | None:
    """Labels whose average precision is no higher than their share of the images, which is what answering at random gives."""
    assert validation.multi_label is not None
    shares = truth_of(samples).mean(axis=0)
    found = [
        score.label
        for score, precision, share in zip(validation.classes, validation.multi_label.average_precision, shares, strict=True)
        if precision is not None and share < 1 and precision <= share
    ]
    if not found:
        return None
    return f"on {len(samples)} validation images the ranking for {', '.join(found[:5])} is no better than a random one."
