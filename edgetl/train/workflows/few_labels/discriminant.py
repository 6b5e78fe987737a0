"""Head for few labeled images: mixture of logistic regression and linear discriminant analysis (LDA) with shrinkage.

LDA describes each class by its mean, and all classes by one covariance. It needs fewer images than logistic regression, which is better
with more images. Both are linear in the features, and so is their mixture.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from edgetl.core.progress import Progress, silent
from edgetl.train.heads.linear import ABSENT_BIAS, LinearHead, OutOfFold, class_weights, fit_logistic, make_folds, spread
from edgetl.train.heads.modules import LabeledFeatures

# Shrinkage of the covariance within classes towards a multiple of the identity (Friedman 1989, doi:10.1080/01621459.1989.10478752).
SHRINKAGES = (0.03, 0.1, 0.2, 0.4, 0.7)
# Factors of the outputs of LDA. With more features than images, they are too large for the softmax.
FACTORS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
# Weight of LDA in the mixture.
WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)


def fit_mixture(
    train: LabeledFeatures,
    classes: int,
    *,
    seed: int,
    balanced: bool = False,
    shrinkages: Sequence[float] = SHRINKAGES,
    progress: Progress = silent,
) -> LinearHead:
    """Fit logistic regression and LDA, and mix their outputs with the weight that has the lowest log-loss in cross-validation.

    Args:
        train: Features, and classes 0..classes-1. Images of one group are in one fold.
        classes: Number of outputs.
        seed: Random seed of the folds.
        balanced: Weight the cells of ``train``, or the classes, inversely to their frequency in logistic regression and in the log-loss.
        shrinkages: Candidates for the shrinkage of the covariance, 0..1. With 1, LDA chooses the class with the nearest mean.
        progress: Callback, called after each fit.
    """
    logistic = fit_logistic(train, classes, seed=seed, balanced=balanced, progress=progress)
    if logistic.out_of_fold is None:
        return logistic
    labels, views = train.targets, (train.features, *train.views)
    mean, std = train.features.mean(axis=0), spread(train.features)
    rows = ((np.concatenate(views) - mean) / std).astype(np.float64)
    # In the coordinates of the space that the rows span, the covariance has at most one row and column per image and view.
    _, _, basis = np.linalg.svd(rows, full_matrices=False)
    rows = rows @ basis.T
    held = _held_out_outputs(rows, train, classes, shrinkages, seed=seed)
    prior = np.zeros(classes) if balanced else np.log(np.maximum(np.bincount(labels, minlength=classes), 1) / len(labels))
    best = _choose(logistic.out_of_fold, held, prior, labels, balanced=balanced)
    (weight, bias), *_ = _discriminants(rows, np.tile(labels, len(views)), classes, shrinkages[best.shrinkage : best.shrinkage + 1])
    weight = best.factor * weight @ basis / std
    return replace(
        logistic,
        weight=((1 - best.weight) * logistic.weight + best.weight * weight).astype(np.float32),
        bias=((1 - best.weight) * logistic.bias + best.weight * (best.factor * bias + prior - weight @ mean)).astype(np.float32),
        out_of_fold=best.out_of_fold,
        discriminant_weight=best.weight,
    )


def _held_out_outputs(
    rows: NDArray[np.float64], train: LabeledFeatures, classes: int, shrinkages: Sequence[float], *, seed: int
) -> NDArray[np.float64]:
    """Return the outputs of LDA for the held-out images of each fold, ``[shrinkages, n, classes]``."""
    labels, views = train.targets, 1 + len(train.views)
    held = np.zeros((len(shrinkages), len(labels), classes))
    for fitted, held_out in make_folds(labels, train.groups, views, seed=seed):
        index = np.concatenate([fitted + view * len(labels) for view in range(views)])
        found = _discriminants(rows[index], np.tile(labels[fitted], views), classes, shrinkages)
        for outputs, (weight, bias) in zip(held, found, strict=True):
            outputs[held_out] = rows[held_out] @ weight.T + bias
    return held


class Mixture(NamedTuple):
    """Mixture of logistic regression and LDA: index of the shrinkage, factor and weight of LDA, and the out-of-fold outputs."""

    shrinkage: int
    factor: float
    weight: float
    out_of_fold: OutOfFold


def _choose(
    logistic: OutOfFold,
    held: NDArray[np.float64],
    prior: NDArray[np.float64],
    labels: NDArray[np.int64],
    *,
    balanced: bool,
) -> Mixture:
    """Choose the mixture with the lowest log-loss on held-out images.

    Args:
        logistic: Out-of-fold outputs of logistic regression.
        held: Out-of-fold outputs of LDA with equal priors, ``[shrinkages, n, classes]``.
        prior: Logarithm of the frequency of each class.
        labels: True classes, ``[n]``.
        balanced: Weight the classes inversely to their frequency in the log-loss.
    """
    importance = class_weights(labels)[labels] if balanced else np.ones(len(labels), np.float32)
    found = []
    for index, factor, weight in itertools.product(range(len(held)), FACTORS, WEIGHTS):
        outputs = (1 - weight) * logistic.outputs + weight * (factor * held[index] + prior)
        losses = logsumexp(outputs, axis=1) - outputs[np.arange(len(labels)), labels]
        loss = float(np.average(losses, weights=importance))
        found.append(Mixture(index, factor, weight, OutOfFold(outputs.astype(np.float32), logistic.folds, loss)))
    return min(found, key=lambda mixture: mixture.out_of_fold.loss)


def _discriminants(
    rows: NDArray[np.float64], labels: NDArray[np.int64], classes: int, shrinkages: Sequence[float]
) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Return the weight ``[classes, width]`` and the bias ``[classes]`` of LDA with equal priors, for each of ``shrinkages``."""
    known = np.unique(labels)
    means = np.stack([rows[labels == label].mean(axis=0) for label in known])
    centered = rows - means[np.searchsorted(known, labels)]
    variances, axes = np.linalg.eigh(centered.T @ centered / len(rows))
    projected = means @ axes
    found = []
    for shrinkage in shrinkages:
        weight, bias = np.zeros((classes, rows.shape[1])), np.full(classes, ABSENT_BIAS)
        scaled = projected / ((1 - shrinkage) * np.maximum(variances, 0.0) + shrinkage * variances.mean() + 1e-12)
        weight[known], bias[known] = scaled @ axes.T, -0.5 * (scaled * projected).sum(axis=1)
        found.append((weight, bias))
    return found
