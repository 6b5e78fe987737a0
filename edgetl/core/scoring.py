"""Scores from logits, and figures from predictions: NumPy only, so that bench and device count alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgetl.core.manifest import AccuracyDrop
from edgetl.core.results import ClassScore, Evaluation, MultiLabelFigures, Proportion, RegressionFigures, wilson

RESAMPLES = 200
_TWO_SIDED, _ONE_SIDED = 1.959964, 1.644854
# What stands for an error that is no number in a record: JSON has none, and no gate lets it pass.
HOPELESS = 1e9

_Ranked: TypeAlias = tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.bool_]]


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scores that sum to 1 along the last axis, from logits ``[…, classes]``."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    result: NDArray[np.float32] = shifted / shifted.sum(axis=-1, keepdims=True)
    return result


def sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scores 0..1 of each logit alone, in the shape and type of ``logits``."""
    small = np.exp(-np.abs(logits))
    result: NDArray[np.float32] = np.where(logits >= 0, 1 / (1 + small), small / (1 + small)).astype(logits.dtype)
    return result


def evaluate_predictions(truth: NDArray[np.int64], predicted: NDArray[np.int64], labels: Sequence[str]) -> Evaluation:
    """Accuracy, macro F1, per-class figures and the confusion matrix of ``predicted`` class indices against ``truth``, both ``[n]``."""
    size = len(labels)
    matrix = np.zeros((size, size), np.int64)
    np.add.at(matrix, (truth, predicted), 1)
    right = matrix.diagonal()
    classes = tuple(
        _class_score(label, int(right[index]), int(matrix[index].sum()), int(matrix[:, index].sum())) for index, label in enumerate(labels)
    )
    return Evaluation(
        accuracy=wilson(int(right.sum()), len(truth)),
        macro_f1=_macro_f1(classes),
        classes=classes,
        confusion=tuple(tuple(int(count) for count in row) for row in matrix),
    )


def paired_drop(before: NDArray[np.bool_], after: NDArray[np.bool_]) -> AccuracyDrop:
    """The accuracy drop from one model to another on the same images, with its 95 % interval and its one-sided 95 % bound.

    Agresti and Min 2005 (doi:10.1002/sim.1781): half an image is added to each cell of the table of both models' hits, so that the
    interval is not empty where no prediction changed.

    Args:
        before: bool ``[n]``, where the first model is right.
        after: bool ``[n]``, where the second is.
    """
    n = len(before)
    lost, gained = int((before & ~after).sum()), int((~before & after).sum())
    more, b, c = n + 2.0, lost + 0.5, gained + 0.5
    centre = (b - c) / more
    spread = math.sqrt(max(0.0, b + c - (b - c) ** 2 / more)) / more
    value = (lost - gained) / n if n else 0.0
    return AccuracyDrop(
        value=value, low=centre - _TWO_SIDED * spread, high=centre + _TWO_SIDED * spread, bound=centre + _ONE_SIDED * spread, n=n
    )


def evaluate_labels(
    truth: NDArray[np.bool_],
    scores: NDArray[np.float32],
    held: NDArray[np.bool_],
    labels: Sequence[str],
    thresholds: Sequence[float],
) -> Evaluation:
    """Figures of a multi-label model: precision, recall, F1 and average precision of each label, mAP, and wholly right images.

    Args:
        truth: bool ``[n, labels]``, which labels an image has.
        scores: float32 ``[n, labels]``, 0..1.
        held: bool ``[n, labels]``, the labels that were answered.
        labels: their names.
        thresholds: that ``held`` comes from, for the record.
    """
    # What is no number ranks last, all of it tied.
    ranked = np.nan_to_num(scores.astype(np.float64), nan=-1.0)
    classes = tuple(
        _class_score(label, int((truth[:, index] & held[:, index]).sum()), int(truth[:, index].sum()), int(held[:, index].sum()))
        for index, label in enumerate(labels)
    )
    ranks = [_rank(truth[:, index], ranked[:, index]) for index in range(len(labels))]
    precisions = [_precision(item, np.ones(len(truth), np.int64)) for item in ranks]
    figures = MultiLabelFigures(
        mean_average_precision=_with_interval(lambda weights: _mean_precision(ranks, weights), len(truth)),
        label_accuracy=float((truth == held).mean()) if truth.size else 0.0,
        average_precision=tuple(None if np.isnan(value) else value for value in precisions),
        thresholds=tuple(thresholds),
    )
    return Evaluation(
        accuracy=wilson(int((truth == held).all(axis=1).sum()), len(truth)),
        macro_f1=_macro_f1(classes),
        classes=classes,
        confusion=(),
        multi_label=figures,
    )


def evaluate_values(truth: NDArray[np.floating[Any]], values: NDArray[np.floating[Any]], tolerance: float) -> Evaluation:
    """Figures of numbers ``[n]``: MAE, RMSE, R², and the share within ``tolerance``, all in the numbers' unit."""
    errors = values.astype(np.float64) - truth
    distance = np.abs(errors)
    figures = RegressionFigures(
        mae=_finite(distance),
        rmse=_finite(errors**2) ** 0.5,
        r2=_with_interval(lambda weights: _explained(truth.astype(np.float64), errors, weights), len(errors)),
        tolerance=tolerance,
    )
    within = int((distance <= tolerance).sum())
    return Evaluation(accuracy=wilson(within, len(errors)), macro_f1=0.0, classes=(), confusion=(), regression=figures)


def average_precision(truth: NDArray[np.bool_], scores: NDArray[np.floating[Any]]) -> float:
    """Mean precision at the images that have the label, the best-scored first: ``sum((R_k - R_k-1) P_k)`` over distinct scores.

    Without interpolation, as scikit-learn's ``average_precision_score``.

    Args:
        truth: bool ``[n]``.
        scores: ``[n]``, without NaN.

    Returns:
        0..1, or NaN where no image has the label.
    """
    return _precision(_rank(truth, scores), np.ones(len(truth), np.int64))


def _rank(truth: NDArray[np.bool_], scores: NDArray[np.floating[Any]]) -> _Ranked:
    """Images from the best score down: their indices, whether each has the label, and whether the next one has another score."""
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    return order, truth[order], np.append(ranked[1:] != ranked[:-1], True)[: len(ranked)]


def _precision(ranked: _Ranked, weights: NDArray[np.int64]) -> float:
    """Average precision of ranked images of which each stands there ``weights`` times; NaN where none has the label."""
    order, truth, last = ranked
    each = weights[order]
    hits, seen = np.cumsum(each * truth)[last], np.cumsum(each)[last]  # equal scores cannot be told apart: they come together
    if not len(hits) or hits[-1] == 0:
        return float("nan")
    gained = np.diff(hits, prepend=0)
    return float((gained * hits / np.maximum(seen, 1)).sum() / hits[-1])


def _mean_precision(ranked: Sequence[_Ranked], weights: NDArray[np.int64]) -> float:
    """Mean over the labels that an image has; NaN if none does."""
    found = [value for item in ranked if not np.isnan(value := _precision(item, weights))]
    return float(np.mean(found)) if found else float("nan")


def quadratic_kappa(confusion: NDArray[np.integer[Any]]) -> float:
    """Quadratic-weighted kappa of a confusion matrix: 1 is agreement, 0 what chance gives (Cohen 1968, doi:10.1037/h0026256)."""
    grades = np.arange(len(confusion))
    cost = (grades[:, None] - grades[None]) ** 2
    total = max(int(confusion.sum()), 1)
    by_chance = float((cost * np.outer(confusion.sum(axis=1), confusion.sum(axis=0))).sum()) / total
    return 1.0 - float((cost * confusion).sum()) / by_chance if by_chance else 1.0


def _explained(truth: NDArray[np.float64], errors: NDArray[np.float64], weights: NDArray[np.int64]) -> float:
    """R² of images of which each stands there ``weights`` times."""
    spread = float((weights * (truth - np.average(truth, weights=weights)) ** 2).sum())
    wrong = float((weights * errors**2).sum())
    return 1.0 - wrong / spread if spread else (0.0 if wrong else 1.0)


def _with_interval(figure: Callable[[NDArray[np.int64]], float], n: int) -> Proportion:
    """A figure of ``n`` images with its percentile bootstrap interval (Efron 1979, doi:10.1214/aos/1176344552).

    ``figure`` takes how often each image was drawn; the draws have a fixed seed.
    """
    if n == 0:
        return Proportion(value=0.0, n=0, low=0.0, high=1.0)
    rng = np.random.default_rng(0)
    value = float(np.nan_to_num(figure(np.ones(n, np.int64)), neginf=-HOPELESS))
    drawn = [figure(rng.multinomial(n, np.full(n, 1 / n))) for _ in range(RESAMPLES)]
    known = [item for item in drawn if np.isfinite(item)]
    low, high = np.percentile(known, [2.5, 97.5]) if known else (min(0.0, value), 1.0)
    return Proportion(value=value, n=n, low=float(low), high=float(high))


def _finite(values: NDArray[np.float64]) -> float:
    """The mean, or a figure that says that one of them is no number."""
    mean = float(values.mean()) if len(values) else 0.0
    return mean if np.isfinite(mean) else HOPELESS


def _macro_f1(classes: Sequence[ClassScore]) -> float:
    present = [score.f1 for score in classes if score.n]
    return float(np.mean(present)) if present else 0.0


def _class_score(label: str, right: int, n: int, called: int) -> ClassScore:
    """Figures of one class from the counts of images called it rightly, of it, and called it."""
    precision = right / called if called else 0.0
    recall = right / n if n else 0.0
    f1 = 2 * right / (n + called) if n + called else 0.0
    return ClassScore(label=label, n=n, precision=precision, recall=recall, f1=f1)
