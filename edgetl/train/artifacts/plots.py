"""Plots and per-class table of a run."""

from __future__ import annotations

import csv
import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from edgetl.core.results import Evaluation
from edgetl.core.tasks import SCORE_NAMES, OutputDecoding


def draw_predictions(
    decoding: OutputDecoding, evaluation: Evaluation, truth: NDArray[Any], outputs: NDArray[np.float32], *, name: str, folder: Path
) -> None:
    """Write a plot of the predictions into ``folder``.

    The task decides the file: ``confusion.png`` for classification and ordinal levels, ``labels.png`` (precision over recall) for
    multi-label, ``values.png`` (predicted over true values) for regression.

    Args:
        decoding: task and labels.
        evaluation: scores to print in the title and to draw.
        truth: true classes, labels or values, as in ``edgetl.core.metrics.evaluate``.
        outputs: float32 ``[n, outputs]``, as in ``edgetl.core.metrics.evaluate``.
        name: name of the split in the title, such as ``test``.
        folder: folder to write to.
    """
    score = evaluation.score
    title = f"{name}: {SCORE_NAMES[decoding.task]} {score.value:.3f} ({score.low:.3f} to {score.high:.3f}), n = {score.n}"
    if evaluation.confusion:
        draw_confusion(evaluation, title, folder / "confusion.png")
        return
    figure = Figure(figsize=(5.5, 4.5), layout="constrained")
    axes = figure.add_subplot()
    if evaluation.multi_label is not None:
        _label_axes(axes, evaluation, truth > 0, outputs)
    else:
        _value_axes(axes, truth[:, 0], outputs[:, 0], decoding.labels[0])
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    save_figure(figure, folder / ("labels.png" if evaluation.multi_label else "values.png"))


def _label_axes(axes: Axes, evaluation: Evaluation, truth: NDArray[np.bool_], outputs: NDArray[np.float32]) -> None:
    """Draw precision over recall for each label, with a dot at the label's threshold."""
    for index, score in enumerate(evaluation.classes[:20]):
        hits = np.cumsum(truth[np.argsort(-outputs[:, index], kind="stable"), index])
        if not len(hits) or not hits[-1]:
            continue
        precision = hits / np.arange(1, len(hits) + 1)
        (line,) = axes.plot(hits / hits[-1], precision, label=plain_text(score.label))
        axes.scatter([score.recall], [score.precision], color=line.get_color(), zorder=3)
    axes.set_xlabel("recall (dots: at the threshold)")
    axes.set_ylabel("precision")
    axes.set_ylim(0, 1.03)
    axes.legend(fontsize=8)


def _value_axes(axes: Axes, truth: NDArray[np.float64], values: NDArray[np.float32], column: str) -> None:
    """Draw predicted over true values, and the line on which they are equal."""
    ends = [min(truth.min(), values.min()), max(truth.max(), values.max())]
    axes.plot(ends, ends, color="gray", linewidth=1)
    axes.scatter(truth, values, s=12, alpha=0.6)
    axes.set_xlabel(f"{plain_text(column)}, true")
    axes.set_ylabel(f"{plain_text(column)}, predicted")


def draw_confusion(evaluation: Evaluation, title: str, path: Path) -> None:
    """Write the confusion matrix as a PNG."""
    side = min(20.0, 2.5 + 0.45 * len(evaluation.classes))
    figure = Figure(figsize=(side + 0.6, side), layout="constrained")
    confusion_axes(figure.add_subplot(), evaluation, title)
    save_figure(figure, path)


def confusion_axes(axes: Axes, evaluation: Evaluation, title: str) -> None:
    """Draw the confusion matrix. A row is a true class; the shade of a cell is its fraction of the row."""
    labels = [plain_text(score.label) for score in evaluation.classes]
    counts = np.array(evaluation.confusion)
    fractions = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    long = max(map(len, labels)) > 2
    axes.imshow(fractions, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(labels)), labels, rotation=45 if long else 0, ha="right" if long else "center")
    axes.set_yticks(range(len(labels)), labels)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(title, fontsize=10)
    if len(labels) <= 30:
        for row, column in np.argwhere(counts > 0).tolist():
            dark = fractions[row, column] > 0.5
            axes.text(column, row, str(counts[row, column]), ha="center", va="center", fontsize=8, color="white" if dark else "black")


def plain_text(text: str) -> str:
    """Escape ``$`` in ``text``, because matplotlib's math mode fails on a class name such as ``$a^$``."""
    return text.replace("$", r"\$")


def save_figure(figure: Figure, path: Path, *, dpi: int = 120) -> None:
    """Write ``figure`` to ``path``. Letters missing from the installed fonts appear as boxes, without a warning for each."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(path, dpi=dpi)


def class_table(evaluation: Evaluation) -> str:
    """Return the scores of each class as CSV text. Multi-label rows also have the average precision."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    rows = [
        [score.label, score.n, *(f"{value:.4f}" for value in (score.precision, score.recall, score.f1))] for score in evaluation.classes
    ]
    if evaluation.multi_label is None:
        table.writerows([["label", "n", "precision", "recall", "f1"], *rows])
    else:
        precisions = ["" if value is None else f"{value:.4f}" for value in evaluation.multi_label.average_precision]
        table.writerow(["label", "n", "precision", "recall", "f1", "average_precision"])
        table.writerows([*row, value] for row, value in zip(rows, precisions, strict=True))
    return text.getvalue()


def draw_curves(rows: Sequence[Mapping[str, float]], path: Path) -> None:
    """Write loss and accuracy curves of the training images, and of the validation images if there are any, over the steps as a PNG."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    steps = [row["step"] for row in rows]
    for axes, name in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for part, label in (("train", "training (augmented)"), ("val", "validation")):
            if f"{part}_{name}" not in rows[-1]:
                continue
            axes.plot(steps, [row[f"{part}_{name}"] for row in rows], marker=".", label=label)
        axes.set_xlabel("step")
        axes.set_title(name, fontsize=10)
        axes.grid(alpha=0.3)
    figure.axes[0].legend(fontsize=8)
    save_figure(figure, path)
