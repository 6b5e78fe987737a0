"""Test accuracy of heads on frozen features with few labeled images: cross-validation and LDA beside a validation split.

``python -m bench.accuracy.few_labels --cache FOLDER``. The features of the ImageNet MobileNetV2 are computed once and kept in FOLDER. Each
method is fitted on 5, 10, 20 or 50 images of each class of five sets, and tested on the other images. The last columns are the mean over
the sets, the worst set, and the ratio of trainings whose test accuracy is in the 95 % interval of the cross-validated accuracy.
"""

from __future__ import annotations

import argparse
import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegressionCV

from bench.paths import SHARED
from edgetl.core.results import wilson
from edgetl.core.system.host import fingerprint, versions
from edgetl.data.folder import scan
from edgetl.data.loading import labels_of, stratified
from edgetl.train.artifacts.loading.load import load_backbone
from edgetl.train.config.options import BackboneConfig
from edgetl.train.heads.fit import stage_extractor
from edgetl.train.heads.linear import LinearHead, fit_logistic
from edgetl.train.heads.modules import LabeledFeatures
from edgetl.train.inputs.features import FrozenFeatures
from edgetl.train.workflows.few_labels.discriminant import fit_mixture

SETS = ("trashnet", "sign-digits", "pacs/photo", "pacs/cartoon", "pacs/sketch")
# Largest number of images of a class. The set of sketches has 60.
MOST = 110


@dataclass(frozen=True, eq=False)
class Cell:
    """Training and test data of one set, number of images per class and seed.

    Attributes:
        views: joined features of each view of the training images, ``[n, width]``; the first is the evaluation view.
        labels: classes of the training images.
        tested: joined features of the test images.
        truth: classes of the test images.
        last: number of the network's last features, the last columns.
        seed: seed of the sample, and of the folds.
    """

    views: list[NDArray[np.float32]]
    labels: NDArray[np.int64]
    tested: NDArray[np.float32]
    truth: NDArray[np.int64]
    last: int
    seed: int

    @property
    def classes(self) -> int:
        """Number of classes."""
        return int(self.truth.max()) + 1


# Accuracy on the test images, and true if it is in the interval of the validation accuracy (None: no validation accuracy).
Method = Callable[[Cell], tuple[float, bool | None]]


def main() -> None:
    """Print one row for each number of images per class and method."""
    parser = argparse.ArgumentParser(prog="python -m bench.accuracy.few_labels", description=__doc__)
    parser.add_argument("--cache", type=Path, required=True, help="folder for the features")
    parser.add_argument("--per-class", default="5,10,20,50")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--views", type=int, default=4, help="views of each training image; 1: without random crops")
    parser.add_argument("--methods", default=",".join(METHODS))
    given = parser.parse_args()
    given.cache.mkdir(parents=True, exist_ok=True)
    host = fingerprint()
    print(f"{host['cpu']}, {host['flags']}; {given.views} views, {given.seeds} seeds; scikit-learn {versions()['scikit-learn']}")
    columns = "images per class", "method", *SETS, "mean", "worst", "in interval"
    print(f"| {' | '.join(columns)} |\n" + "|---" * len(columns) + "|")
    data = [read_features(name, given.cache, given.views) for name in SETS]
    for count in map(int, given.per_class.split(",")):
        cells = [[make_cell(*item, count, seed) for seed in range(given.seeds)] for item in data]
        for method in given.methods.split(","):
            rows = [[METHODS[method](cell) for cell in row] for row in cells]
            found = [float(np.mean([accuracy for accuracy, _ in row])) for row in rows]
            inside = [known for row in rows for _, known in row if known is not None]
            figures = " | ".join(f"{value:.4f}" for value in (*found, np.mean(found), min(found)))
            print(f"| {count} | {method} | {figures} | {f'{np.mean(inside):.2f}' if inside else ''} |", flush=True)


def read_features(name: str, cache: Path, views: int) -> tuple[list[NDArray[np.float32]], NDArray[np.int64], int]:
    """Return the joined features of each view, the labels, and the number of last features of a set, from the cache or the network."""
    folder = scan(SHARED / "data" / name)
    samples = stratified(folder.samples, MOST * len(folder.labels))
    backbone = load_backbone(BackboneConfig(name=f"local-dir:{SHARED}/weights/mobilenetv2_100.imagenet"), 2)
    network = stage_extractor(backbone)
    assert network is not None
    extract = FrozenFeatures(network, backbone.spec, images=views * len(samples))
    found = []
    for view in range(views):
        path = cache / f"{name.replace('/', '-')}.{view}.npy"
        if not path.is_file():
            np.save(path, extract(samples) if view == 0 else extract.views(samples, view + 1, seed=0)[-1])
        found.append(np.load(path))
    return found, labels_of(samples), backbone.head.in_features


def make_cell(views: list[NDArray[np.float32]], labels: NDArray[np.int64], last: int, count: int, seed: int) -> Cell:
    """Draw ``count`` training images of each class. The others are test images."""
    train, test = draw(labels, count, seed)
    return Cell([view[train] for view in views], labels[train], views[0][test], labels[test], last, seed)


def draw(labels: NDArray[np.int64], count: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows of ``count`` training images of each class, and those of the test images."""
    rng = np.random.default_rng(seed)
    order = [rng.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]
    train, test = (np.concatenate([rows[part] for rows in order]) for part in (slice(count), slice(count, None)))
    return train, test


def validation_split(cell: Cell) -> tuple[float, bool | None]:
    """Logistic regression on the last features, on 85 % of the images of each class: the head beside a validation split."""
    rng = np.random.default_rng(cell.seed)
    kept = []
    for label in np.unique(cell.labels):
        rows = rng.permutation(np.flatnonzero(cell.labels == label))
        kept.append(rows[max(1, round(0.15 * len(rows))) :])
    rows = np.sort(np.concatenate(kept))
    train = LabeledFeatures(
        cell.views[0][rows, -cell.last :], cell.labels[rows], views=[view[rows, -cell.last :] for view in cell.views[1:]]
    )
    head = fit_logistic(train, cell.classes, seed=cell.seed)
    return accuracy_of(head, cell), None


def logistic_regression_cv(cell: Cell) -> tuple[float, bool | None]:
    """scikit-learn's ``LogisticRegressionCV`` on the last features of all images."""
    folds = min(5, int(np.bincount(cell.labels).min()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of parameters whose defaults will change
        model = LogisticRegressionCV(cv=folds, max_iter=1000).fit(cell.views[0][:, -cell.last :], cell.labels)
    return float((model.predict(cell.tested[:, -cell.last :]) == cell.truth).mean()), None


def logistic(cell: Cell) -> tuple[float, bool | None]:
    """Cross-validated logistic regression on the last features of all images."""
    return _result(fit_cell(fit_logistic, cell, cell.last), cell)


def logistic_layers(cell: Cell) -> tuple[float, bool | None]:
    """Cross-validated logistic regression on the features of all stages."""
    return _result(fit_cell(fit_logistic, cell, cell.tested.shape[1]), cell)


def mixture(cell: Cell) -> tuple[float, bool | None]:
    """Mixture with LDA on the last features."""
    return _result(fit_cell(fit_mixture, cell, cell.last), cell)


def mixture_auto(cell: Cell) -> tuple[float, bool | None]:
    """Mixture with LDA, on the features that cross-validation chooses: ``edgetl train``."""
    heads = [fit_cell(fit_mixture, cell, width) for width in (cell.last, cell.tested.shape[1])]
    return _result(min(heads, key=lambda head: head.out_of_fold.loss if head.out_of_fold else 0.0), cell)


@functools.cache
def fit_cell(fit: Callable[..., LinearHead], cell: Cell, width: int) -> LinearHead:
    """Fit a head on the last ``width`` features of all views. Methods share the fits."""
    first, *others = (view[:, -width:] for view in cell.views)
    return fit(LabeledFeatures(first, cell.labels, views=others), cell.classes, seed=cell.seed)


def accuracy_of(head: LinearHead, cell: Cell) -> float:
    """Return the accuracy of a head on the test images."""
    outputs = cell.tested[:, -head.weight.shape[1] :] @ head.weight.T + head.bias
    return float((outputs.argmax(axis=1) == cell.truth).mean())


def _result(head: LinearHead, cell: Cell) -> tuple[float, bool | None]:
    assert head.out_of_fold is not None
    correct = int((head.out_of_fold.outputs.argmax(axis=1) == cell.labels).sum())
    interval, tested = wilson(correct, len(cell.labels)), accuracy_of(head, cell)
    return tested, interval.low <= tested <= interval.high


METHODS: dict[str, Method] = {
    "validation-split": validation_split,
    "LogisticRegressionCV": logistic_regression_cv,
    "logistic": logistic,
    "logistic-layers": logistic_layers,
    "mixture": mixture,
    "mixture-auto": mixture_auto,
}

if __name__ == "__main__":
    main()
