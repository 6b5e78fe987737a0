"""Other heads of an update, for comparison: elastic weight consolidation (EWC), and progressive heads that keep the previous classes.

Both start from the previous head, and replace ``edgetl.train.workflows.update.head.fit_head``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from edgetl.train.heads.linear import LinearHead, spread
from edgetl.train.workflows.update.head import MAX_ITERATIONS, PENALTY, UpdateData

# Weight of the EWC term.
EWC = 1.0


def fit_ewc(data: UpdateData, previous: LinearHead, *, replay: bool = False) -> LinearHead:
    """Fit the head on the new images with the EWC term (Kirkpatrick et al. 2017, arXiv:1612.00796).

    Args:
        data: features and classes. Those of the previous classes give the Fisher information.
        previous: head of the previous classes.
        replay: use the features of the previous classes for the loss as well.
    """
    known, old = len(previous.bias), slice(0, data.previous)
    mean, std, rows, start = _standardized(data, previous)
    probabilities = softmax(rows[old] @ start[:known].T, axis=1)
    fisher = (probabilities * (1 - probabilities)).T @ rows[old] ** 2 / max(1, data.previous)
    fisher /= max(float(fisher.mean()), 1e-12)
    used = slice(0 if replay else data.previous, None)
    weights = data.weights()[used, None]
    weights /= weights.sum()
    truth = np.eye(data.classes, dtype=np.float32)[data.labels[used]]

    def objective(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        layer = flat.reshape(start.shape).astype(np.float32)
        scores, moved = log_softmax(rows[used] @ layer.T, axis=1), layer[:known] - start[:known]
        loss = -(weights * truth * scores).sum() + PENALTY / 2 * (layer[:, :-1] ** 2).sum()
        loss += EWC / 2 * (fisher * moved**2).sum() / fisher.size
        total = (weights * (np.exp(scores) - truth)).T @ rows[used]
        total[:, :-1] += PENALTY * layer[:, :-1]
        total[:known] += EWC * fisher * moved / fisher.size
        return float(loss), total.ravel().astype(np.float64)

    found = minimize(objective, start.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": MAX_ITERATIONS}).x
    return _head(found.reshape(start.shape), mean, std)


def fit_progressive(data: UpdateData, previous: LinearHead) -> LinearHead:
    """Fit the outputs of the new classes only, and keep those of the previous ones (progressive networks: Rusu et al. 2016,
    arXiv:1606.04671, for a frozen backbone).

    Args:
        data: features and classes.
        previous: head of the previous classes.
    """
    known = len(previous.bias)
    mean, std, rows, start = _standardized(data, previous)
    weights, truth = data.weights()[:, None], np.eye(data.classes, dtype=np.float32)[data.labels]
    kept = rows @ start[:known].T

    def objective(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        layer = flat.reshape(-1, rows.shape[1]).astype(np.float32)
        scores = log_softmax(np.concatenate([kept, rows @ layer.T], axis=1), axis=1)
        loss = -(weights * truth * scores).sum() + PENALTY / 2 * (layer[:, :-1] ** 2).sum()
        total = (weights * (np.exp(scores) - truth))[:, known:].T @ rows
        total[:, :-1] += PENALTY * layer[:, :-1]
        return float(loss), total.ravel().astype(np.float64)

    if data.classes == known:
        return previous
    found = minimize(objective, start[known:].ravel(), jac=True, method="L-BFGS-B", options={"maxiter": MAX_ITERATIONS}).x
    return _head(np.concatenate([start[:known], found.reshape(-1, rows.shape[1])]), mean, std)


def _standardized(
    data: UpdateData, previous: LinearHead
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Return mean and spread of the features, standardized features with a constant, and the previous head for them."""
    mean, std = data.features.mean(axis=0), spread(data.features)
    rows = np.concatenate([(data.features - mean) / std, np.ones((len(data.labels), 1), np.float32)], axis=1)
    start = np.zeros((data.classes, rows.shape[1]), np.float32)
    start[: len(previous.bias)] = np.column_stack([previous.weight * std, previous.bias + previous.weight @ mean])
    return mean, std, rows, start


def _head(layer: NDArray[np.float64], mean: NDArray[np.float32], std: NDArray[np.float32]) -> LinearHead:
    weight = layer[:, :-1] / std
    return LinearHead(weight.astype(np.float32), (layer[:, -1] - weight @ mean).astype(np.float32), PENALTY, ())
