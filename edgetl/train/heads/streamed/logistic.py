"""Logistic regression on features that are read in chunks: exact gradients, L-BFGS, and memory that does not grow with the images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import logsumexp

from edgetl.core.progress import Progress, silent
from edgetl.train.heads.linear import MAX_ITERATIONS, PENALTIES, SMALLEST_SPREAD, LinearHead
from edgetl.train.heads.modules import LabeledFeatures

Array: TypeAlias = NDArray[np.float64]
# Function that yields features float32 [n, width] and labels int64 [n], and starts again with each call.
Chunks: TypeAlias = Callable[[], Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]]
# Function that sums a float64 array over all processes.
Sum: TypeAlias = Callable[[Array], Array]
# Largest component of the gradient at the end, as in the logistic regression of scikit-learn that `fit_logistic` calls.
GRADIENT = 1e-3


@dataclass(frozen=True)
class _Scale:
    """Standardization: total weight of the rows, mean and divisor of each feature, float64 ``[width]``."""

    total: float
    mean: Array
    std: Array


def fit_streamed(
    chunks: Chunks, val: LabeledFeatures, weights: Array, *, summed: Sum = lambda value: value, progress: Progress = silent
) -> tuple[LinearHead, float]:
    """Fit multinomial logistic regression on standardized features, as ``fit_logistic`` does, without the features in memory.

    The validation images select the penalty. The penalties decrease until the validation loss no longer does, and each fit starts from the
    last one. With several processes, each has its own rows, and all have the same result.

    Args:
        chunks: training rows of this process.
        val: features and labels of the validation images.
        weights: weight of each class, float64 ``[classes]``.
        summed: sum over all processes.
        progress: called after each fit.

    Returns:
        The head, and its accuracy on the training images.
    """
    scale = _standardize(chunks, weights, val.features.shape[1], summed)
    solution, best = np.zeros((len(weights), val.features.shape[1] + 1)), (np.inf, 0.0, np.empty(0))
    for number, penalty in enumerate(PENALTIES):
        loss = _Loss(chunks, weights, scale, penalty, summed)
        options = {"maxiter": MAX_ITERATIONS, "gtol": GRADIENT, "ftol": 64 * np.finfo(float).eps}
        solution = minimize(loss, solution.ravel(), jac=True, method="L-BFGS-B", options=options).x.reshape(solution.shape)
        found, processes = summed(np.array([_log_loss(loss.head(solution), val, weights), 1.0]))
        found /= processes  # all processes decide by the same number
        progress("fitting the head", number + 1, len(PENALTIES))
        if found >= best[0]:
            break
        best = float(found), penalty, solution
    head = _Loss(chunks, weights, scale, best[1], summed).head(best[2])
    correct = np.zeros(2)
    for features, labels in chunks():
        correct += ((features @ head.weight.T + head.bias).argmax(axis=1) == labels).sum(), len(labels)
    correct = summed(correct)
    progress("fitting the head", len(PENALTIES), len(PENALTIES))
    return head, float(correct[0] / max(correct[1], 1.0))


def _standardize(chunks: Chunks, weights: Array, width: int, summed: Sum) -> _Scale:
    moments = np.zeros((3, width))
    total = np.zeros(1)
    for features, labels in chunks():
        moments[0] += features.sum(axis=0, dtype=np.float64)
        moments[1] += np.square(features, dtype=np.float64).sum(axis=0)
        moments[2] += len(labels)
        total += weights[labels].sum()
    moments, total = summed(moments), summed(total)
    mean = moments[0] / moments[2]
    std = np.sqrt(np.maximum(moments[1] / moments[2] - mean**2, 0.0))
    return _Scale(float(total[0]), mean, np.maximum(std, SMALLEST_SPREAD * np.sqrt((std**2).mean()) + 1e-6))


def _log_loss(head: LinearHead, val: LabeledFeatures, weights: Array) -> float:
    outputs = (val.features @ head.weight.T + head.bias).astype(np.float64)
    losses = logsumexp(outputs, axis=1) - outputs[np.arange(len(outputs)), val.targets]
    return float(np.average(losses, weights=weights[val.targets]))


@dataclass(frozen=True)
class _Loss:
    """Penalized log-loss and its gradient. Parameters: standardized weights and bias, ``[classes, width + 1]``, flat."""

    chunks: Chunks
    weights: Array
    scale: _Scale
    penalty: float
    summed: Sum

    def __call__(self, flat: Array) -> tuple[float, Array]:
        """Return the loss and its gradient."""
        parameters = flat.reshape(len(self.weights), -1)
        head = self.head(parameters)
        found = np.zeros(1 + flat.size)
        gradient = found[1:].reshape(parameters.shape)
        for features, labels in self.chunks():
            outputs = (features @ head.weight.T + head.bias).astype(np.float64)
            rows, row_weights = np.arange(len(labels)), self.weights[labels]
            normalizer = logsumexp(outputs, axis=1)
            found[0] += row_weights @ (normalizer - outputs[rows, labels])
            errors = np.exp(outputs - normalizer[:, None])
            errors[rows, labels] -= 1.0
            errors *= row_weights[:, None]
            gradient[:, :-1] += errors.T.astype(np.float32) @ features
            gradient[:, -1] += errors.sum(axis=0)
        found = self.summed(found) / self.scale.total
        gradient = found[1:].reshape(parameters.shape)
        # The rows are not standardized one by one: the chain rule does it for their sum.
        gradient[:, :-1] = (gradient[:, :-1] - gradient[:, -1:] * self.scale.mean) / self.scale.std
        gradient[:, :-1] += self.penalty * parameters[:, :-1]
        return float(found[0] + self.penalty / 2 * np.square(parameters[:, :-1]).sum()), gradient.ravel()

    def head(self, parameters: Array) -> LinearHead:
        """Return the head of ``parameters`` for features that are not standardized."""
        weight = parameters[:, :-1] / self.scale.std
        bias = parameters[:, -1] - weight @ self.scale.mean
        return LinearHead(weight.astype(np.float32), bias.astype(np.float32), self.penalty, ())
