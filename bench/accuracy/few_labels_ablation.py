"""Ablation of the head for few labeled images: the effect of each ingredient alone on the test accuracy.

``python -m bench.accuracy.few_labels_ablation --cache FOLDER``. The reference is a cross-validated logistic regression on the last features
of the evaluation views. Sets, features and samples are those of ``bench.accuracy.few_labels``. Each cell of the table has the mean
difference over the sets and the difference of the worst set, in percentage points.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from bench.accuracy.few_labels import SETS, Cell, accuracy_of, fit_cell, make_cell, read_features
from edgetl.core.system.host import fingerprint, versions
from edgetl.train.heads.linear import LinearHead, fit_logistic
from edgetl.train.heads.modules import LabeledFeatures
from edgetl.train.workflows.few_labels.discriminant import fit_mixture

Features = NDArray[np.float32]


def main() -> None:
    """Print one row for each ingredient, and one column for each number of images per class."""
    parser = argparse.ArgumentParser(prog="python -m bench.accuracy.few_labels_ablation", description=__doc__)
    parser.add_argument("--cache", type=Path, required=True, help="folder for the features")
    parser.add_argument("--per-class", default="5,10,20,50")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--ingredients", default=",".join(INGREDIENTS))
    given = parser.parse_args()
    given.cache.mkdir(parents=True, exist_ok=True)
    host = fingerprint()
    print(f"{host['cpu']}, {host['flags']}; {given.seeds} seeds; scikit-learn {versions()['scikit-learn']}")
    data = [read_features(name, given.cache, 4) for name in SETS]
    print("| images per class | ingredient | " + " | ".join(SETS) + " | mean | worst |\n" + "|---" * (len(SETS) + 4) + "|")
    for count in map(int, given.per_class.split(",")):
        cells = [[make_cell(*item, count, seed) for seed in range(given.seeds)] for item in data]
        reference = np.array([[plain(cell) for cell in row] for row in cells]).mean(axis=1)
        print(
            f"| {count} | none (accuracy) | "
            + " | ".join(f"{value:.4f}" for value in (*reference, reference.mean(), reference.min()))
            + " |"
        )
        for name in given.ingredients.split(","):
            found = 100 * (np.array([[INGREDIENTS[name](cell) for cell in row] for row in cells]).mean(axis=1) - reference)
            figures = " | ".join(f"{value:+.1f}" for value in (*found, found.mean(), found.min()))
            print(f"| {count} | {name} | {figures} |", flush=True)


def plain(cell: Cell) -> float:
    """Logistic regression on the last features of the evaluation views."""
    return accuracy_of(_single(fit_logistic, cell), cell)


def discriminant(cell: Cell) -> float:
    """Mixture with LDA."""
    return accuracy_of(_single(fit_mixture, cell), cell)


def stages(cell: Cell) -> float:
    """Last features, or features of all stages, as cross-validation chooses."""
    heads = _single(fit_logistic, cell), _single(fit_logistic, cell, last=False)
    return accuracy_of(min(heads, key=lambda head: _held_out_loss(head, cell)), cell)


def power(cell: Cell) -> float:
    """Power normalization: square root of the features (signed)."""
    return _transformed(cell, _power)


def layer(cell: Cell) -> float:
    """Layer normalization: features of each image with mean 0 and variance 1."""
    return _transformed(cell, lambda rows: (rows - rows.mean(axis=1, keepdims=True)) / rows.std(axis=1, keepdims=True))


def class_means(cell: Cell) -> float:
    """Shrinkage towards the class means: mixture with the nearest class mean."""
    return accuracy_of(_single(partial(fit_mixture, shrinkages=(1.0,)), cell), cell)


def views(cell: Cell) -> float:
    """Four views of each training image, three of them random crops."""
    return accuracy_of(fit_cell(fit_logistic, cell, cell.last), cell)


def together(cell: Cell) -> float:
    """Head of ``edgetl train``: four views, mixture with LDA, and cross-validation of the features."""
    heads = [fit_cell(fit_mixture, cell, width) for width in (cell.last, cell.tested.shape[1])]
    return accuracy_of(min(heads, key=lambda head: _held_out_loss(head, cell)), cell)


def together_power(cell: Cell) -> float:
    """The same on features with power normalization."""
    powered = replace(cell, views=[_power(view) for view in cell.views], tested=_power(cell.tested))
    return together(powered)


def _power(rows: Features) -> Features:
    return np.sign(rows) * np.sqrt(np.abs(rows))


def _held_out_loss(head: LinearHead, cell: Cell) -> float:
    """Return the log-loss of the out-of-fold outputs."""
    assert head.out_of_fold is not None
    outputs = head.out_of_fold.outputs
    return float((logsumexp(outputs, axis=1) - outputs[np.arange(len(outputs)), cell.labels]).mean())


def _single(fit: Callable[..., LinearHead], cell: Cell, *, last: bool = True) -> LinearHead:
    """Fit a head on the evaluation views."""
    rows = cell.views[0][:, -cell.last :] if last else cell.views[0]
    return fit(LabeledFeatures(rows, cell.labels), cell.classes, seed=cell.seed)


def _transformed(cell: Cell, transform: Callable[[Features], Features]) -> float:
    """Return the accuracy of a logistic regression on transformed last features."""
    rows, tested = (transform(part[:, -cell.last :]) for part in (cell.views[0], cell.tested))
    return plain(replace(cell, views=[rows], tested=tested))


INGREDIENTS: dict[str, Callable[[Cell], float]] = {
    "mixture with LDA": discriminant,
    "all stages by cross-validation": stages,
    "power normalization": power,
    "layer normalization": layer,
    "shrinkage to class means": class_means,
    "4 views": views,
    "all of edgetl train": together,
    "all with power normalization": together_power,
}

if __name__ == "__main__":
    main()
