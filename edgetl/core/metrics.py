"""Metrics: accuracy, F1, average precision, regression errors, and their intervals. NumPy only, for export and device."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, assert_never

import numpy as np
from numpy.typing import NDArray

from edgetl.core.output_decoding import anomaly_outputs, is_anomaly, nearest_levels, present_labels, scores_of
from edgetl.core.results import (
    AccuracyDrop,
    AnomalyFigures,
    ClassScore,
    Evaluation,
    MultiLabelFigures,
    Proportion,
    RegressionFigures,
    Rejection,
    Reliability,
    ReliabilityBin,
    wilson,
)
from edgetl.core.tasks import OutputDecoding

RESAMPLES = 200
# Bins of equal width of the expected calibration error, as in Guo et al. 2017 (arXiv:1706.04599).
RELIABILITY_BINS = 15
_TWO_SIDED, _ONE_SIDED = 1.959964, 1.644854
# Largest number of images that ``images_for_bound`` considers.
MOST_IMAGES = 1_000_000
# Value of a NaN or infinite error, which JSON cannot represent. The accuracy gate rejects it.
NOT_FINITE = 1e9

_Ranked: TypeAlias = tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.bool_]]


def evaluate(decoding: OutputDecoding, truth: NDArray[Any], outputs: NDArray[np.float32]) -> Evaluation:
    """Compute the metrics of a network's ``outputs`` ``[n, outputs]``.

    Args:
        decoding: task, labels and decision rule.
        truth: true labels: class indices int64 ``[n]``; or float64 ``[n, labels]`` with 0 or 1 for each label, or the number.
        outputs: outputs of the network.
    """
    rule = decoding.decision_rule
    match decoding.task:
        case "classification":
            result = evaluate_predictions(truth, outputs.argmax(axis=1), decoding.labels)
            rejection = evaluate_rejection(decoding, truth, outputs) if rule.reject_below else None
            return result.model_copy(update={"reliability": evaluate_scores(decoding, truth, outputs), "rejection": rejection})
        case "multi-label":
            scores = scores_of(decoding, outputs)
            result = evaluate_labels(truth > 0, scores, present_labels(decoding, scores), decoding.labels, rule.thresholds)
            return result.model_copy(update={"reliability": evaluate_scores(decoding, truth, outputs)})
        case "regression":
            return evaluate_values(truth[:, 0], outputs[:, 0], rule.tolerance)
        case "ordinal":
            return _evaluate_levels(decoding, truth[:, 0], outputs[:, 0])
        case "anomaly":
            return _evaluate_anomalies(decoding, truth == 1, outputs)
        case _:
            assert_never(decoding.task)


def _evaluate_levels(decoding: OutputDecoding, truth: NDArray[np.float64], values: NDArray[np.float32]) -> Evaluation:
    names, lowest = decoding.level_names, (decoding.decision_rule.ordinal_levels or (0, 0))[0]
    known = np.clip(np.rint(truth), lowest, lowest + len(names) - 1).astype(np.int64) - lowest
    result = evaluate_predictions(known, nearest_levels(decoding, values) - lowest, names)
    figures = evaluate_values(truth, values, decoding.decision_rule.tolerance).regression
    assert figures is not None
    kappa = quadratic_kappa(np.array(result.confusion))
    return result.model_copy(update={"regression": figures.model_copy(update={"kappa": kappa})})


def _evaluate_anomalies(decoding: OutputDecoding, truth: NDArray[np.bool_], outputs: NDArray[np.float32]) -> Evaluation:
    predicted = is_anomaly(decoding, scores_of(decoding, outputs))
    # Outputs have a finer resolution than scores, which round to 1. NaN ranks last.
    ranked = np.nan_to_num(anomaly_outputs(outputs).astype(np.float64), nan=-NOT_FINITE)
    figures = AnomalyFigures(
        auroc=_with_interval(lambda weights: auroc(truth, ranked, weights), len(truth)) if 0 < truth.sum() < len(truth) else None,
        false_alarms=wilson(int((predicted & ~truth).sum()), int((~truth).sum())),
        detected=wilson(int((predicted & truth).sum()), int(truth.sum())),
    )
    result = evaluate_predictions(truth.astype(np.int64), predicted.astype(np.int64), decoding.labels)
    return result.model_copy(update={"anomaly": figures})


def auroc(truth: NDArray[np.bool_], scores: NDArray[np.floating[Any]], weights: NDArray[np.int64] | None = None) -> float:
    """Compute the area under the ROC curve: the probability that a positive has a higher score than a negative (ties count half).

    This is the Mann-Whitney statistic (Hanley and McNeil 1982, doi:10.1148/radiology.143.1.7063747).

    Args:
        truth: bool ``[n]``, true for positives.
        scores: scores ``[n]``, without NaN.
        weights: repetition counts ``[n]``. None: each counts once.

    Returns:
        the area, 0..1; NaN without positives or without negatives.
    """
    counts = np.ones(len(truth), np.int64) if weights is None else weights
    _, places = np.unique(scores, return_inverse=True)
    positives, negatives = np.bincount(places, counts * truth), np.bincount(places, counts * ~truth)
    pairs = positives.sum() * negatives.sum()
    below = np.cumsum(negatives) - negatives / 2
    return float((positives * below).sum() / pairs) if pairs else math.nan


def evaluate_predictions(truth: NDArray[np.int64], predicted: NDArray[np.int64], labels: Sequence[str]) -> Evaluation:
    """Compute accuracy, macro F1, per-class metrics and the confusion matrix.

    Args:
        truth: true class indices ``[n]``.
        predicted: predicted class indices ``[n]``.
        labels: class names.
    """
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


def evaluate_scores(decoding: OutputDecoding, truth: NDArray[Any], outputs: NDArray[np.float32]) -> Reliability:
    """Compute the calibration of scores. Arguments as for ``evaluate``; classification and multi-label only."""
    with np.errstate(invalid="ignore"):  # infinite outputs
        scores = np.nan_to_num(scores_of(decoding, outputs.astype(np.float64)), nan=0.0)
    if decoding.task == "classification":
        known = truth[:, None] == np.arange(scores.shape[1])
        confidence, correct = scores.max(axis=1), known[np.arange(len(scores)), scores.argmax(axis=1)]
        likelihood, squared = scores[known], ((scores - known) ** 2).sum(axis=1)
    else:
        known = truth > 0
        confidence, correct = scores.ravel(), known.ravel()
        likelihood, squared = np.where(known, scores, 1 - scores).ravel(), ((scores - known) ** 2).ravel()
    bins = reliability_bins(confidence, correct)
    return Reliability(
        n=len(confidence),
        ece=expected_calibration_error(bins),
        nll=_finite(np.abs(np.log(np.maximum(likelihood, np.finfo(np.float64).tiny)))),
        brier=_finite(squared),
        bins=bins,
    )


def evaluate_rejection(decoding: OutputDecoding, truth: NDArray[np.int64], outputs: NDArray[np.float32]) -> Rejection:
    """Compute coverage and precision of a classification that rejects unknown images. Arguments as for ``evaluate``."""
    known = ~(scores_of(decoding, outputs).max(axis=1) < decoding.decision_rule.reject_below)
    right = int((outputs.argmax(axis=1) == truth)[known].sum())
    accepted = int(known.sum())
    return Rejection(below=decoding.decision_rule.reject_below, coverage=wilson(accepted, len(truth)), precision=wilson(right, accepted))


def reliability_bins(
    scores: NDArray[np.floating[Any]], correct: NDArray[np.bool_], count: int = RELIABILITY_BINS
) -> tuple[ReliabilityBin, ...]:
    """Compute the bins of a reliability diagram: ranges of equal width of the scores that contain at least one prediction.

    Args:
        scores: scores ``[n]``, 0..1, of any predictions.
        correct: bool ``[n]``, true where the prediction is correct.
        count: number of ranges of 0..1. The upper limit of a range belongs to it.
    """
    indices = np.clip(np.ceil(scores.astype(np.float64) * count).astype(np.int64) - 1, 0, count - 1)
    return tuple(
        ReliabilityBin(
            low=int(index) / count,
            high=(int(index) + 1) / count,
            score=float(scores[inside].mean(dtype=np.float64)),
            accuracy=wilson(int(correct[inside].sum()), int(inside.sum())),
        )
        for index in np.unique(indices)
        for inside in [indices == index]
    )


def expected_calibration_error(bins: Sequence[ReliabilityBin]) -> float:
    """Compute the expected calibration error (ECE), 0..1: the mean difference of score and accuracy, weighted by the predictions.

    Source: Naeini et al. 2015, doi:10.1609/aaai.v29i1.9602, and Guo et al. 2017, arXiv:1706.04599. The value depends on the number of
    bins. It is above 0 for a calibrated model too, because the accuracy of a bin has a random error.
    """
    n = sum(item.accuracy.n for item in bins)
    return sum(item.accuracy.n * abs(item.score - item.accuracy.value) for item in bins) / n if n else 0.0


def paired_drop(before: NDArray[np.bool_], after: NDArray[np.bool_]) -> AccuracyDrop:
    """Compute the paired accuracy drop between two models, with its 95 % interval and its one-sided 95 % limit.

    Method: Agresti and Min 2005 (doi:10.1002/sim.1781). Half an image is added to each cell of the 2 x 2 table of correct predictions. The
    interval is therefore not empty if no prediction changed.

    Args:
        before: bool ``[n]``, true where the first model is correct.
        after: bool ``[n]``, true where the second model is correct.
    """
    n = len(before)
    lost, gained = int((before & ~after).sum()), int((~before & after).sum())
    center, error = _paired_estimate(lost, gained, n)
    return AccuracyDrop(
        value=(lost - gained) / n if n else 0.0,
        low=center - _TWO_SIDED * error,
        high=center + _TWO_SIDED * error,
        bound=center + _ONE_SIDED * error,
        n=n,
        lost=lost,
        gained=gained,
    )


def _paired_estimate(lost: float, gained: float, n: int) -> tuple[float, float]:
    """Return the center of the interval of a paired drop, and its standard error, by the method of ``paired_drop``."""
    more, b, c = n + 2.0, lost + 0.5, gained + 0.5
    return (b - c) / more, math.sqrt(b + c - (b - c) ** 2 / more) / more


def images_for_bound(max_drop: float, lost: float = 0.0, gained: float = 0.0) -> int | None:
    """Return the smallest number of images with which the one-sided 95 % bound of a paired drop is at most ``max_drop``.

    Args:
        max_drop: limit of the bound, 0..1.
        lost: ratio of images, 0..1, that only the first model classifies correctly.
        gained: ratio of images, 0..1, that only the second model classifies correctly.

    Returns:
        the number of images; none if ``MOST_IMAGES`` are too few.
    """

    def negative_bound(n: int) -> float:
        center, error = _paired_estimate(lost * n, gained * n, n)
        return -center - _ONE_SIDED * error

    found = bisect_left(range(MOST_IMAGES), -max_drop, key=negative_bound)
    return None if found == MOST_IMAGES else found


def evaluate_labels(
    truth: NDArray[np.bool_], scores: NDArray[np.float32], present: NDArray[np.bool_], labels: Sequence[str], thresholds: Sequence[float]
) -> Evaluation:
    """Compute multi-label metrics: precision, recall, F1 and average precision of each label, mAP, and accuracy over all labels.

    Args:
        truth: bool ``[n, labels]``, true labels.
        scores: float32 ``[n, labels]``, 0..1.
        present: bool ``[n, labels]``, predicted labels.
        labels: names of the labels.
        thresholds: thresholds of ``present``, which the result records.
    """
    # NaN ranks last, tied.
    ranked = np.nan_to_num(scores.astype(np.float64), nan=-1.0)
    classes = tuple(
        _class_score(label, int((truth[:, index] & present[:, index]).sum()), int(truth[:, index].sum()), int(present[:, index].sum()))
        for index, label in enumerate(labels)
    )
    ranks = [_rank(truth[:, index], ranked[:, index]) for index in range(len(labels))]
    precisions = [_precision(item, np.ones(len(truth), np.int64)) for item in ranks]
    figures = MultiLabelFigures(
        mean_average_precision=_with_interval(lambda weights: _mean_precision(ranks, weights), len(truth)),
        label_accuracy=float((truth == present).mean()) if truth.size else 0.0,
        average_precision=tuple(None if np.isnan(value) else value for value in precisions),
        thresholds=tuple(thresholds),
    )
    return Evaluation(
        accuracy=wilson(int((truth == present).all(axis=1).sum()), len(truth)),
        macro_f1=_macro_f1(classes),
        classes=classes,
        confusion=(),
        multi_label=figures,
    )


def evaluate_values(truth: NDArray[np.floating[Any]], values: NDArray[np.floating[Any]], tolerance: float) -> Evaluation:
    """Compute regression metrics of ``values`` ``[n]``: MAE and RMSE (in their unit), R², and the ratio within ``tolerance``."""
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
    """Compute the average precision of a label: ``sum((R_k - R_k-1) P_k)`` over distinct scores, in descending order.

    There is no interpolation, as in scikit-learn's ``average_precision_score``.

    Args:
        truth: bool ``[n]``, true where an image has the label.
        scores: scores ``[n]``, without NaN.

    Returns:
        Average precision, 0..1; NaN if no image has the label.
    """
    return _precision(_rank(truth, scores), np.ones(len(truth), np.int64))


def _rank(truth: NDArray[np.bool_], scores: NDArray[np.floating[Any]]) -> _Ranked:
    """Sort images by descending score. Return their indices, their true labels, and true where the next image has another score."""
    order = np.argsort(-scores)
    ranked = scores[order]
    return order, truth[order], np.append(ranked[1:] != ranked[:-1], True)[: len(ranked)]


def _precision(ranked: _Ranked, weights: NDArray[np.int64]) -> float:
    """Compute the average precision of ranked images with repetition counts ``weights``; NaN if no image has the label."""
    order, truth, last = ranked
    each = weights[order]
    # Images with equal scores have no order: they are counted together.
    hits, seen = np.cumsum(each * truth)[last], np.cumsum(each)[last]
    if not len(hits) or hits[-1] == 0:
        return math.nan
    gained = np.diff(hits, prepend=0)
    return float((gained * hits / np.maximum(seen, 1)).sum() / hits[-1])


def _mean_precision(ranked: Sequence[_Ranked], weights: NDArray[np.int64]) -> float:
    """Compute the mean average precision over the labels that at least one image has; NaN if there are none."""
    found = [value for item in ranked if not np.isnan(value := _precision(item, weights))]
    return float(np.mean(found)) if found else math.nan


def quadratic_kappa(confusion: NDArray[np.integer[Any]]) -> float:
    """Compute the quadratic-weighted kappa of a confusion matrix: 1 is agreement, 0 is chance (Cohen 1968, doi:10.1037/h0026256)."""
    levels = np.arange(len(confusion))
    cost = (levels[:, None] - levels[None]) ** 2
    total = max(int(confusion.sum()), 1)
    by_chance = float((cost * np.outer(confusion.sum(axis=1), confusion.sum(axis=0))).sum()) / total
    return 1.0 - float((cost * confusion).sum()) / by_chance if by_chance else 1.0


def _explained(truth: NDArray[np.float64], errors: NDArray[np.float64], weights: NDArray[np.int64]) -> float:
    """Compute R² of images with repetition counts ``weights``."""
    spread = float((weights * (truth - np.average(truth, weights=weights)) ** 2).sum())
    with np.errstate(invalid="ignore"):  # a draw without an image of infinite error gives NaN, which the interval leaves out
        wrong = float((weights * errors**2).sum())
    return 1.0 - wrong / spread if spread else (0.0 if wrong else 1.0)


def _with_interval(figure: Callable[[NDArray[np.int64]], float], n: int) -> Proportion:
    """Compute a metric of ``n`` images with its percentile bootstrap interval (Efron 1979, doi:10.1214/aos/1176344552).

    ``figure`` maps repetition counts ``[n]`` of the images to the metric. The draws have a fixed seed.
    """
    if n == 0:
        return Proportion(value=0.0, n=0, low=0.0, high=1.0)
    rng = np.random.default_rng(0)
    value = float(np.nan_to_num(figure(np.ones(n, np.int64)), neginf=-NOT_FINITE))
    drawn = [figure(rng.multinomial(n, np.full(n, 1 / n))) for _ in range(RESAMPLES)]
    known = [item for item in drawn if np.isfinite(item)]
    low, high = np.percentile(known, [2.5, 97.5]) if known else (value, 1.0)
    return Proportion(value=value, n=n, low=float(low), high=float(high))


def _finite(values: NDArray[np.float64]) -> float:
    """Return the mean, or ``NOT_FINITE`` if a value is NaN or infinite."""
    mean = float(values.mean()) if len(values) else 0.0
    return mean if np.isfinite(mean) else NOT_FINITE


def _macro_f1(classes: Sequence[ClassScore]) -> float:
    present = [score.f1 for score in classes if score.n]
    return float(np.mean(present)) if present else 0.0


def _class_score(label: str, right: int, n: int, predicted: int) -> ClassScore:
    """Compute the metrics of a class from the true positives, its images, and the images predicted as this class."""
    precision = right / predicted if predicted else 0.0
    recall = right / n if n else 0.0
    f1 = 2 * right / (n + predicted) if n + predicted else 0.0
    return ClassScore(label=label, n=n, precision=precision, recall=recall, f1=f1)
