"""What the task changes in a training: how images are found, what may be asked, what is chosen on validation images, and alarms."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import assert_never

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgetl.core.decoding import sigmoid
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
from edgetl.errors import ConfigError, DataError
from edgetl.train.config.options import TrainConfig

# A regression's answer is right within this share of the training values' standard deviation, unless the user says within what.
TOLERANCE_SHARE = 0.25
PLAIN_THRESHOLD = 0.5


def task_of(config: TrainConfig) -> Task | None:
    """The task that ``config`` names; none where a table of labels decides.

    Raises:
        ConfigError: options that conflict; the text names all of them.
    """
    task: Task | None = config.data.task or (None if config.data.labels else "classification")
    wrong = {
        f"--task {task} needs --labels FILE.csv": task != "classification" and config.data.labels is None,
        "--include adds files to class folders, and --labels names its files; add rows to the table": (
            config.data.labels is not None and bool(config.data.include)
        ),
        "--columns needs --labels FILE.csv": config.data.columns is not None and config.data.labels is None,
    }
    _refuse(wrong)
    if task is not None:
        check_options(config, task)
    return task


def check_options(config: TrainConfig, task: Task) -> None:
    """Refuse options that mean nothing for ``task``.

    Raises:
        ConfigError: naming all of them.
    """
    numbers, asked = task in ("regression", "ordinal"), config.optim.model_fields_set
    wrong = {
        f"--multilabel-loss does not go with {task}": task != "multi-label" and config.optim.multilabel_loss != "bce",
        f"--regression-loss does not go with {task}": not numbers and config.optim.regression_loss != "mse",
        f"--tolerance is for --task regression, not {task}": task != "regression" and config.optim.tolerance is not None,
        f"--balance {config.data.balance} weighs classes and labels; {task} has none": numbers and config.data.balance != "none",
        f"--balance sampler draws classes; use --balance loss for {task}": task == "multi-label" and config.data.balance == "sampler",
        "--balance loss does not go with --multilabel-loss asymmetric, which weighs by itself": (
            config.optim.multilabel_loss == "asymmetric" and config.data.balance == "loss"
        ),
        f"--lwf, --ewc, --replay and --teacher compare answers of classes; {task} has none": (
            task != "classification"
            and bool(config.continual.lwf or config.continual.ewc or config.continual.replay or config.distillation.teacher)
        ),
        f"--head {config.head.kind} answers with classes, and {task} has none; use --head linear": (
            task != "classification" and config.head.kind != "linear"
        ),
        f"--head and --features are for --strategy probe, not {config.optim.strategy}; name that, or leave them out": (
            config.optim.strategy not in ("auto", "probe") and (config.head.kind != "linear" or config.head.features != "last")
        ),
        "--label-smoothing is for classes and for --multilabel-loss bce": (
            bool(config.optim.label_smoothing) and "label_smoothing" in asked and not smooths(config, task)
        ),
    }
    _refuse(wrong)


def _refuse(wrong: dict[str, bool]) -> None:
    if any(wrong.values()):
        raise ConfigError("; ".join(text for text, found in wrong.items() if found) + ".")


def smooths(config: TrainConfig, task: Task) -> bool:
    """Whether the loss takes smoothed labels."""
    return task == "classification" or (task == "multi-label" and config.optim.multilabel_loss == "bce")


def scan_images(data: Path, config: TrainConfig, *, progress: Progress = silent) -> ImageFolder:
    """The images of ``data`` with the labels that ``config`` names: class folders, or a table.

    Raises:
        ConfigError, DataError: as ``task_of``, ``edgetl.data.folder.scan``, ``edgetl.data.table.scan.scan_table`` and
            ``edgetl.data.groups.group_by_path``.
    """
    task = task_of(config)
    selection = Selection(config.data.include, config.data.exclude)
    if config.data.labels is None:
        folder = scan(data, selection=selection, progress=progress)
        return folder if config.data.group is None else group_by_path(folder, config.data.group)
    columns = tuple(part.strip() for part in (config.data.columns or "").split(",") if part.strip())
    folder = scan_table(
        data, Table(Path(config.data.labels), task, columns, group=config.data.group, selection=selection), progress=progress
    )
    check_options(config, folder.task)
    return folder


def check_taught(splits: Splits) -> None:
    """Refuse a training that would never see a class or label.

    Raises:
        DataError: naming them.
    """
    folder = splits.folder
    if folder.task in ("regression", "ordinal"):
        return
    if folder.task == "classification":
        taught = {sample.label for sample in splits.train}
    else:
        taught = {index for sample in splits.train for index, value in enumerate(sample.targets) if value}
    if untaught := [label for index, label in enumerate(folder.labels) if index not in taught]:
        what = "class" if folder.task == "classification" else "column"
        raise DataError(f"{folder.root} has no training image of {', '.join(untaught[:5])}; add some, or remove the {what}.")


def value_scale(splits: Splits) -> tuple[float, float]:
    """Mean and standard deviation of the training images' numbers; 0 and 1 for other tasks."""
    if splits.folder.task not in ("regression", "ordinal"):
        return 0.0, 1.0
    values = truth_of(splits.train)[:, 0]
    return float(values.mean()), float(values.std()) or 1.0


def fold_scale(head: nn.Linear, mean: float, spread: float) -> None:
    """Let a head that learned ``(value - mean) / spread`` answer in the values' own unit."""
    with torch.no_grad():
        head.weight.mul_(spread)
        head.bias.mul_(spread).add_(mean)


def choose_decoding(splits: Splits, config: TrainConfig, val_outputs: NDArray[np.float32]) -> OutputDecoding:
    """How the trained network's outputs ``[n, labels]`` are read: thresholds from the validation images, spread and grades from all."""
    folder = splits.folder
    match folder.task:
        case "classification":
            decision_rule = DecisionRule()
        case "multi-label":
            decision_rule = DecisionRule(thresholds=choose_thresholds(truth_of(splits.val) > 0, sigmoid(val_outputs)))
        case "regression":
            spread = value_scale(splits)[1]
            decision_rule = DecisionRule(spread=spread, tolerance=config.optim.tolerance or TOLERANCE_SHARE * spread)
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
