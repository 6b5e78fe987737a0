"""Linear probe: a regularized linear head on frozen features (logistic regression, ridge regression)."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import logsumexp
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
from sklearn.utils.class_weight import compute_class_weight
from torch import nn

from edgetl.core.progress import Progress, silent
from edgetl.train.heads.modules import LabeledFeatures

# L2 penalties of logistic regression, per image, largest first. The range covers 10 to 100,000 images.
PENALTIES = (3e-1, 1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4)
# Smallest standard deviation for standardization, relative to the typical feature. Without this limit, a nearly constant feature gets a
# large weight, and its rounding errors in int8 change predictions.
SMALLEST_SPREAD = 0.1
# L2 penalties of ridge regression on standardized features and values, per image.
RIDGE_PENALTIES = (100.0, 30.0, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
MAX_FOLDS = 5
MIN_FOLDS = 3
FEW_ROWS = 3000
MAX_ITERATIONS = 300
# With more rows (images and views), the fits use float32, and one fold chooses the penalty.
MANY_ROWS = 20_000
# Bias of a class without a training image. It is never predicted.
ABSENT_BIAS = -20.0


@dataclass(frozen=True)
class OutOfFold:
    """Out-of-fold outputs of a cross-validation: the output for each training image is from a head that was fitted without it.

    Attributes:
        outputs: float32 ``[n, classes]``.
        folds: Number of folds. Equal to the number of images (or groups) for leave-one-out.
        loss: Log-loss of the outputs. 0 for multi-label heads and numbers.
    """

    outputs: NDArray[np.float32]
    folds: int
    loss: float = 0.0


@dataclass(frozen=True)
class LinearHead:
    """Fitted linear head: ``logits = features @ weight.T + bias``.

    Attributes:
        weight: float32 ``[classes, width]``.
        bias: float32 ``[classes]``.
        penalty: L2 penalty per image, selected by cross-validation.
        folds: Cross-validation accuracy (regression: R²) of each penalty. Empty if a class has one image.
        out_of_fold: Outputs of the cross-validation with ``penalty``. None if a class has one image.
        discriminant_weight: Weight of linear discriminant analysis in the head, 0..1. The rest is logistic regression.
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    penalty: float
    folds: tuple[float, ...]
    out_of_fold: OutOfFold | None = None
    discriminant_weight: float = 0.0


def fit_logistic(train: LabeledFeatures, classes: int, *, seed: int, balanced: bool = False, progress: Progress = silent) -> LinearHead:
    """Fit multinomial logistic regression by L-BFGS on standardized features.

    Cross-validation on the training images selects the penalty with the lowest log-loss. Held-out images are scored on the first view
    only, which is the view that the device uses. Above ``MANY_ROWS``, only the first fold is held out, without out-of-fold outputs.

    Args:
        train: Features, and classes 0..classes-1. A class may be absent. Images of one group are in one fold.
        classes: Number of outputs.
        seed: Random seed of the folds.
        balanced: Weight the cells of ``train``, or the classes, inversely to their frequency.
        progress: Callback, called after each fit.
    """
    features, labels = train.features, train.targets
    mean, std = features.mean(axis=0), spread(features)
    views = (features, *train.views)
    many = len(views) * len(labels) > MANY_ROWS
    scaled = [((view - mean) / std).astype(np.float32 if many else np.float64, copy=False) for view in views]
    basis = None
    if len(scaled) * len(labels) < features.shape[1]:
        # The L2 penalty keeps the weights in the space that the rows span. A fit in the coordinates of this space is the same, and faster.
        _, _, basis = np.linalg.svd(np.concatenate(scaled), full_matrices=False)
        scaled = [view @ basis.T for view in scaled]
    folds = make_folds(labels, train.groups, len(scaled), seed=seed)
    cells = labels if train.cells is None else train.cells
    weights = class_weights(cells)[cells] if balanced else np.ones(len(labels), np.float32)
    if many and folds:
        choice = hold_out_penalty(scaled, labels, folds[0], progress, weights=weights)
    else:
        choice = choose_penalty(scaled, labels, folds, progress, weights=weights)
    fitted = fit_penalized(np.concatenate(scaled), np.tile(labels, len(scaled)), choice.penalty, weights=np.tile(weights, len(scaled)))
    rows, offsets = coefficients(fitted, classes)
    weight = (rows if basis is None else rows @ basis) / std
    bias = offsets - weight @ mean
    found = None
    if folds and not many:
        missing = np.full((len(labels), classes - choice.outputs.shape[1]), ABSENT_BIAS)
        found = OutOfFold(np.concatenate([choice.outputs, missing], axis=1).astype(np.float32), len(folds))
    return LinearHead(weight.astype(np.float32), bias.astype(np.float32), choice.penalty, choice.accuracies, found)


def fit_multi_label(train: LabeledFeatures, *, seed: int, balanced: bool = False, progress: Progress = silent) -> LinearHead:
    """Fit one logistic regression for each label, each with its own penalty. The score of a label is ``sigmoid(logit)``.

    Args:
        train: Targets ``[n, labels]``, above 0 if the image has the label. A label of all images or of no image gets only a bias.
        seed: Random seed of the folds.
        balanced: Give positive and negative images of a label the same total weight.
        progress: Callback, called after each fit.

    Returns:
        The head. Its penalty is the median over the labels, and its folds are empty.
    """
    truth = train.targets > 0
    weight, bias = np.zeros((truth.shape[1], train.features.shape[1]), np.float32), np.zeros(truth.shape[1], np.float32)
    penalties, folds = [], []
    outputs = np.zeros(truth.shape, np.float32)
    for index, column in enumerate(truth.astype(np.int64).T):
        positive = int(column.sum())
        # A constant output is the frequency of the label.
        bias[index] = np.log((positive + 1) / (len(column) - positive + 1))
        outputs[:, index] = bias[index]
        if 0 < positive < len(column):
            pair = fit_logistic(replace(train, targets=column), 2, seed=seed, balanced=balanced, progress=progress)
            weight[index], bias[index] = pair.weight[1] - pair.weight[0], pair.bias[1] - pair.bias[0]
            penalties.append(pair.penalty)
            if pair.out_of_fold:
                outputs[:, index] = pair.out_of_fold.outputs[:, 1] - pair.out_of_fold.outputs[:, 0]
                folds.append(pair.out_of_fold.folds)
    out_of_fold = OutOfFold(outputs, max(folds)) if folds else None
    return LinearHead(weight, bias, float(np.median(penalties)) if penalties else 0.0, (), out_of_fold)


def fit_ridge(train: LabeledFeatures) -> LinearHead:
    """Fit a ridge regression to standardized values ``[n]``. The leave-one-out error on the first view selects the penalty.

    The leave-one-out residuals are computed without refits: ``residual / (1 - leverage)`` (Allen 1974,
    doi:10.1080/00401706.1974.10489157). If images have groups, a whole group is left out. Its residuals solve ``(I - H) r = residuals``,
    with the group's block ``H`` of the hat matrix.

    Returns:
        The head, with ``weight`` float32 ``[1, width]``. ``folds`` has the leave-one-out R² for each of ``RIDGE_PENALTIES``.
    """
    features, values = train.features, train.targets
    mean, std = features.mean(axis=0), spread(features)
    scaled = [((view - mean) / std).astype(np.float64) for view in (features, *train.views)]
    first, center = scaled[0] - scaled[0].mean(axis=0), values.mean()
    left, sizes, _ = np.linalg.svd(first, full_matrices=False)
    projected, errors, left_out = left.T @ (values - center), [], []
    for penalty in RIDGE_PENALTIES:
        shrinkage = sizes**2 / (sizes**2 + penalty * len(values))
        residual = values - center - left @ (shrinkage * projected)
        left_out.append(left_out_residuals(residual, left * np.sqrt(shrinkage), train.groups))
        errors.append(float((left_out[-1] ** 2).mean()))
    best = int(np.argmin(errors))
    chosen = RIDGE_PENALTIES[best]
    rows = np.concatenate(scaled)
    fitted = Ridge(alpha=chosen * len(rows)).fit(rows, np.tile(values, len(scaled)))
    weight = (fitted.coef_ / std)[None]
    bias = fitted.intercept_ - weight @ mean
    explained = tuple(1 - error / max(float(values.var()), 1e-12) for error in errors)
    folds = len(values) if train.groups is None else len(np.unique(train.groups))
    out_of_fold = OutOfFold((values - left_out[best])[:, None].astype(np.float32), folds)
    return LinearHead(weight.astype(np.float32), bias.astype(np.float32), chosen, explained, out_of_fold)


def left_out_residuals(
    residual: NDArray[np.floating], half: NDArray[np.floating], groups: NDArray[np.int64] | None
) -> NDArray[np.floating]:
    """Compute the residuals of each image, or group, by a fit on the others: ``residual / (1 - leverage)``.

    Args:
        residual: residuals of the fit on all images, ``[n]`` or ``[n, targets]``.
        half: ``half @ half.T + 1 / n`` is the hat matrix, ``[n, k]``.
        groups: group of each image, ``[n]``. None: each image is left out alone.
    """
    leverage = (half**2).sum(axis=1) + 1 / len(half)
    found: NDArray[np.floating] = (residual.T / np.maximum(1 - leverage, 1e-6)).T
    if groups is None:
        return found
    order = np.argsort(groups, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(groups[order])) + 1):
        if len(rows) > 1:
            others = (1 + 1e-6) * np.eye(len(rows)) - half[rows] @ half[rows].T - 1 / len(half)
            found[rows] = np.linalg.solve(others, residual[rows])
    return found


def spread(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the divisor of each feature for standardization, float32 ``[width]``: its standard deviation, with a lower bound."""
    std = features.std(axis=0)
    return np.maximum(std, SMALLEST_SPREAD * np.sqrt((std**2).mean()) + 1e-6)


def class_weights(labels: NDArray[np.int64]) -> NDArray[np.float32]:
    """Compute class weights, float32 ``[classes]``: inverse to the class frequency, with a mean of 1 over the images.

    The weight of an absent class is 0.
    """
    present = np.unique(labels)
    weights = np.zeros(int(labels.max()) + 1, np.float32)
    weights[present] = compute_class_weight("balanced", classes=present, y=labels)
    return weights


Fold = tuple[NDArray[np.int64], NDArray[np.int64]]


def make_folds(labels: NDArray[np.int64], groups: NDArray[np.int64] | None, views: int, *, seed: int) -> list[Fold]:
    """Return training and held-out rows of each fold. There are no folds if a class has one image, or all images are in one group."""
    counts = np.bincount(labels)
    most = MAX_FOLDS if len(labels) * views <= FEW_ROWS else MIN_FOLDS
    count = min(most, int(counts.max()), len(labels) if groups is None else len(np.unique(groups)))
    if count < 2 or (groups is None and counts[counts > 0].min() < 2):
        return []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        if groups is None:
            return list(StratifiedKFold(count, shuffle=True, random_state=seed).split(labels, labels))
        found = list(StratifiedGroupKFold(count, shuffle=True, random_state=seed).split(labels, labels, groups))
    return [(train, held) for train, held in found if len(held) and len(np.unique(labels[train])) > 1]


class PenaltyChoice(NamedTuple):
    """Penalty with the lowest log-loss on held-out rows.

    Attributes:
        penalty: Selected penalty.
        accuracies: Accuracy of each of ``PENALTIES``. Empty without folds, and with ``MANY_ROWS``.
        outputs: Logits of the held-out rows with ``penalty``, float64 ``[n, classes]``. Other rows are 0. Empty with ``MANY_ROWS``.
    """

    penalty: float
    accuracies: tuple[float, ...]
    outputs: NDArray[np.float64]


def choose_penalty(
    scaled: list[NDArray[np.float64]],
    labels: NDArray[np.int64],
    parts: list[Fold],
    progress: Progress,
    *,
    weights: NDArray[np.float32] | None = None,
) -> PenaltyChoice:
    """Choose the penalty with the lowest log-loss on held-out rows.

    Args:
        scaled: standardized features of each view, ``[n, width]``.
        labels: class of each row.
        parts: training and held-out rows of each fold.
        progress: callback, called after each fit.
        weights: weight of each row. None: equal weights.
    """
    folds, classes = len(parts), int(labels.max()) + 1
    outputs = np.zeros((len(PENALTIES), len(labels), classes))
    if not folds:
        return PenaltyChoice(1e-2, (), outputs[0])
    weights = np.ones(len(labels), np.float32) if weights is None else weights
    losses, accuracies = np.zeros((2, len(PENALTIES), folds))
    for fold, (train, held_out) in enumerate(parts):
        start = None
        rows, truth = np.concatenate([view[train] for view in scaled]), np.tile(labels[train], len(scaled))
        # A class that is absent from the training rows cannot be predicted. Its held-out rows do not depend on the penalty.
        known = held_out[np.isin(labels[held_out], labels[train])]
        for index, penalty in enumerate(PENALTIES):
            start = fit_penalized(rows, truth, penalty, weights=np.tile(weights[train], len(scaled)), start=start)
            weight, bias = coefficients(start, classes)
            outputs[index, held_out] = scaled[0][held_out] @ weight.T + bias
            found = outputs[index, known]
            losses[index, fold] = _log_loss(found, labels[known], weights[known]) if len(known) else 0.0
            accuracies[index, fold] = (found.argmax(axis=1) == labels[known]).mean() if len(known) else 0.0
            progress("fitting the head", fold * len(PENALTIES) + index + 1, folds * len(PENALTIES))
    chosen = int(losses.mean(axis=1).argmin())
    return PenaltyChoice(PENALTIES[chosen], tuple(float(value) for value in accuracies.mean(axis=1)), outputs[chosen])


def hold_out_penalty(
    scaled: list[NDArray[np.floating]],
    labels: NDArray[np.int64],
    part: Fold,
    progress: Progress,
    *,
    weights: NDArray[np.float32],
) -> PenaltyChoice:
    """Choose the penalty as ``choose_penalty`` does, on one fold. The penalties decrease until the log-loss no longer does."""
    train, held_out = part
    rows, truth = np.concatenate([view[train] for view in scaled]), np.tile(labels[train], len(scaled))
    held_out = held_out[np.isin(labels[held_out], labels[train])]
    model, best = None, (np.inf, PENALTIES[0])
    for done, penalty in enumerate(PENALTIES, start=1):
        model = fit_penalized(rows, truth, penalty, weights=np.tile(weights[train], len(scaled)), start=model)
        weight, bias = coefficients(model, int(labels.max()) + 1)
        outputs = scaled[0][held_out] @ weight.T.astype(np.float32) + bias
        loss = _log_loss(outputs, labels[held_out], weights[held_out])
        progress("fitting the head", done, len(PENALTIES))
        if loss >= best[0]:
            break
        best = loss, penalty
    return PenaltyChoice(best[1], (), np.empty((0, 0)))


def _log_loss(outputs: NDArray[np.float64], labels: NDArray[np.int64], weights: NDArray[np.float32]) -> float:
    losses = logsumexp(outputs, axis=1) - outputs[np.arange(len(labels)), labels]
    return float(np.average(losses, weights=weights))


def coefficients(fitted: LogisticRegression, classes: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the weight ``[classes, width]`` and the bias ``[classes]`` of a fitted logistic regression.

    A class without a training image is never predicted.
    """
    weight, bias = np.zeros((classes, fitted.coef_.shape[1])), np.full(classes, ABSENT_BIAS)
    rows, offsets = fitted.coef_, fitted.intercept_
    if len(fitted.classes_) == 2:
        # scikit-learn has one row of coefficients for two classes. Two rows with half of it and opposite signs are the same function.
        rows, offsets = np.concatenate([-rows, rows]) / 2, np.concatenate([-offsets, offsets]) / 2
    weight[fitted.classes_], bias[fitted.classes_] = rows, offsets
    return weight, bias


def fit_penalized(
    scaled: NDArray[np.floating],
    labels: NDArray[np.int64],
    penalty: float,
    *,
    weights: NDArray[np.float32] | None = None,
    start: LogisticRegression | None = None,
) -> LogisticRegression:
    """Fit a logistic regression with a weight for each row, in the precision of ``scaled``.

    ``start`` is the solution for a stronger penalty, from which the fit starts.
    """
    model = start or LogisticRegression(max_iter=MAX_ITERATIONS, tol=1e-3, warm_start=True)
    model.set_params(C=1.0 / (penalty * len(labels)))
    with warnings.catch_warnings():
        # A fit that stops at MAX_ITERATIONS is acceptable, because cross-validation evaluates the result.
        warnings.simplefilter("ignore", ConvergenceWarning)
        # With few images per class, scikit-learn suspects that the labels are continuous values.
        warnings.filterwarnings("ignore", message="The number of unique classes is greater", category=UserWarning)
        model.fit(scaled, labels, sample_weight=weights)
    return model


def fold_scale(head: nn.Linear, mean: float, spread: float) -> None:
    """Fold mean and scale of the targets into a head that was fitted to ``(value - mean) / spread``.

    The head then predicts values in their original unit.
    """
    with torch.no_grad():
        head.weight.mul_(spread)
        head.bias.mul_(spread).add_(mean)
