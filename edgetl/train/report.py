"""Pictures and tables of a run, for people."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from edgetl.core.results import Evaluation
from edgetl.train.lr_sweep import Choice


def write_result(folder: Path, validation: Evaluation, test: Evaluation | None) -> None:
    """Write ``confusion.png`` and ``classes.csv``: of the test images, or where there are none of the validation images."""
    shown, name = (test, "test") if test else (validation, "validation")
    accuracy = shown.accuracy
    title = f"{name}: accuracy {accuracy.value:.3f} ({accuracy.low:.3f} to {accuracy.high:.3f}), n = {accuracy.n}"
    draw_confusion(shown, title, folder / "confusion.png")
    (folder / "classes.csv").write_text(class_table(shown), "utf-8")


def draw_confusion(evaluation: Evaluation, title: str, path: Path) -> None:
    """Write the confusion matrix as a PNG."""
    side = min(20.0, 2.5 + 0.45 * len(evaluation.classes))
    figure = Figure(figsize=(side + 0.6, side), layout="constrained")
    confusion_axes(figure.add_subplot(), evaluation, title)
    figure.savefig(path, dpi=120)


def confusion_axes(axes: Axes, evaluation: Evaluation, title: str) -> None:
    """Draw the confusion matrix: rows are true classes, shades are shares of the row."""
    labels = [score.label for score in evaluation.classes]
    counts = np.array(evaluation.confusion)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    long = max(map(len, labels)) > 2
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(labels)), labels, rotation=45 if long else 0, ha="right" if long else "center")
    axes.set_yticks(range(len(labels)), labels)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(title, fontsize=10)
    if len(labels) <= 30:
        for row, column in np.argwhere(counts > 0).tolist():
            dark = shares[row, column] > 0.5
            axes.text(column, row, str(counts[row, column]), ha="center", va="center", fontsize=8, color="white" if dark else "black")


def class_table(evaluation: Evaluation) -> str:
    """The per-class figures as CSV text."""
    rows = ["label,n,precision,recall,f1"]
    rows += [f'"{score.label}",{score.n},{score.precision:.4f},{score.recall:.4f},{score.f1:.4f}' for score in evaluation.classes]
    return "\n".join(rows) + "\n"


def draw_curves(rows: list[dict[str, float]], path: Path) -> None:
    """Write loss and accuracy over the steps, on training and validation images, as a PNG."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    steps = [row["step"] for row in rows]
    for axes, name in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for part, label in (("train", "training (augmented)"), ("val", "validation")):
            axes.plot(steps, [row[f"{part}_{name}"] for row in rows], marker=".", label=label)
        axes.set_xlabel("step")
        axes.set_title(name, fontsize=10)
        axes.grid(alpha=0.3)
    figure.axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=120)


def draw_sweep(choice: Choice, path: Path) -> None:
    """Write a learning-rate range test as a PNG: the smoothed loss over the head's rate, and the one that was chosen."""
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.add_subplot()
    axes.semilogx(choice.rates, choice.smooth)
    if choice.rate is not None:
        axes.axvline(choice.rate, color="#cb181d", linestyle="--", label=f"chosen: {choice.rate:.1e}")
        axes.legend(fontsize=8)
    axes.set_xlabel("learning rate of the head")
    axes.set_ylabel("training loss, smoothed")
    axes.set_title(
        "range test" if choice.rate is not None else "range test: the loss did not clearly fall, the plan's rate is kept", fontsize=10
    )
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
