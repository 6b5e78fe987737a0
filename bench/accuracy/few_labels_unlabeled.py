"""Effect of unlabeled images on the head for few labeled images: self-training, which ``edgetl train`` does not offer.

``python -m bench.accuracy.few_labels_unlabeled --cache FOLDER``. Sets, features and samples are those of ``bench.accuracy.few_labels``.
Half of the images without a label (at most 300) refine the head, and the other half is the test. In the rows "skewed", half of the classes
keep 15 % of their unlabeled images. The figures are differences to the head without unlabeled images, in percentage points.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from bench.accuracy.few_labels import SETS, Cell, fit_cell, make_cell, read_features
from edgetl.core.system.host import fingerprint, versions
from edgetl.train.heads.linear import LinearHead, coefficients, fit_penalized, spread
from edgetl.train.heads.modules import LabeledFeatures
from edgetl.train.workflows.few_labels.discriminant import fit_mixture

POOL = 300
KEPT_OF_RARE = 0.15
# Exponent that sharpens the scores of unlabeled images (entropy minimization).
SHARPENING = 2
# Smaller soft labels are left out.
LEAST_LABEL = 0.01


def main() -> None:
    """Print one row for each number of images per class and kind of unlabeled images."""
    parser = argparse.ArgumentParser(prog="python -m bench.accuracy.few_labels_unlabeled", description=__doc__)
    parser.add_argument("--cache", type=Path, required=True, help="folder for the features")
    parser.add_argument("--per-class", default="5,10,20")
    parser.add_argument("--seeds", type=int, default=5)
    given = parser.parse_args()
    host = fingerprint()
    print(f"{host['cpu']}, {host['flags']}; {given.seeds} seeds; scikit-learn {versions()['scikit-learn']}")
    data = [read_features(name, given.cache, 4) for name in SETS]
    print(f"| images per class | unlabeled | {' | '.join(SETS)} | mean | worst |\n" + "|---" * (len(SETS) + 4) + "|")
    for count in map(int, given.per_class.split(",")):
        cells = [[make_cell(*item, count, seed) for seed in range(given.seeds)] for item in data]
        for kind in ("as labeled", "skewed"):
            found = np.array([[100 * gain(cell, skewed=kind == "skewed") for cell in row] for row in cells]).mean(axis=1)
            figures = " | ".join(f"{value:+.1f}" for value in (*found, found.mean(), found.min()))
            print(f"| {count} | {kind} | {figures} |", flush=True)


def gain(cell: Cell, *, skewed: bool) -> float:
    """Return the accuracy with unlabeled images minus the accuracy without them, on images that are not among them."""
    rng = np.random.default_rng(cell.seed)
    order = rng.permutation(len(cell.truth))
    pool, test = order[: len(order) // 2], order[len(order) // 2 :]
    if skewed:
        rare = np.isin(cell.truth[pool], rng.permutation(cell.classes)[: cell.classes // 2])
        pool = pool[~rare | (rng.random(len(pool)) < KEPT_OF_RARE)]
    heads = [fit_cell(fit_mixture, cell, width) for width in (cell.last, cell.tested.shape[1])]
    head = min(heads, key=lambda item: item.out_of_fold.loss if item.out_of_fold else 0.0)
    width = head.weight.shape[1]
    first, *others = (view[:, -width:] for view in cell.views)
    refined = refine_head(head, LabeledFeatures(first, cell.labels, views=others), cell.tested[pool[:POOL], -width:])

    def accuracy(item: LinearHead) -> float:
        outputs = cell.tested[test, -width:] @ item.weight.T + item.bias
        return float((outputs.argmax(axis=1) == cell.truth[test]).mean())

    return accuracy(refined) - accuracy(head)


def refine_head(head: LinearHead, train: LabeledFeatures, unlabeled: NDArray[np.float32]) -> LinearHead:
    """Refine a linear head by self-training, and return the mean of both heads.

    Logistic regression is fitted on the labeled images and on the unlabeled ones together, which have the sharpened scores of ``head`` as
    soft labels (Lee 2013, "Pseudo-Label"; Grandvalet and Bengio 2004, "Semi-supervised learning by entropy minimization"). Both groups
    have the same total weight. The mean keeps half of ``head``, because the soft labels repeat its errors.

    Args:
        head: Head that was fitted on ``train``.
        train: Features and classes of the labeled images, with their augmented views.
        unlabeled: Features of the unlabeled images, float32 ``[n, width]``.

    Returns:
        The refined head. Its out-of-fold outputs are those of ``head``.
    """
    classes, images = len(head.weight), len(unlabeled)
    labels = softmax(unlabeled @ head.weight.T + head.bias, axis=1) ** SHARPENING
    labels /= labels.sum(axis=1, keepdims=True)
    # A soft label is one row for each class, with its score as weight.
    index, target = np.nonzero(labels >= LEAST_LABEL)
    known = np.concatenate([train.features, *train.views])
    rows = np.concatenate([known, unlabeled[index]])
    targets = np.concatenate([np.tile(train.targets, 1 + len(train.views)), target])
    weights = np.concatenate([np.full(len(known), 1 / len(known)), labels[index, target] / images])
    mean, std = known.mean(axis=0), spread(known)
    scaled = ((rows - mean) / std).astype(np.float64)
    fitted = fit_penalized(scaled, targets, head.penalty / 2, weights=(weights * len(weights) / weights.sum()).astype(np.float32))
    weight, bias = coefficients(fitted, classes)
    weight = weight / std
    bias = bias - weight @ mean
    return replace(head, weight=((head.weight + weight) / 2).astype(np.float32), bias=((head.bias + bias) / 2).astype(np.float32))


if __name__ == "__main__":
    main()
