"""Transferability metrics of frozen features: k-NN and ridge accuracy (leave-one-out) and LogME.

All are computed in float64 and exactly (no sampling); N is the number of images, D the width of the features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

NEIGHBORS = 5
PENALTIES = np.logspace(-1, 5, 13)
LOGME_ITERATIONS = 200
LOGME_TOLERANCE = 1e-10


@dataclass(frozen=True)
class Score:
    """Value of one metric.

    Attributes:
        value: higher is better: an accuracy 0..1, or log evidence per image.
        rows: contribution of each image, float64 ``[N]``; their mean is ``value``.
    """

    value: float
    rows: NDArray[np.float64]


def knn_score(features: NDArray[np.float32], labels: NDArray[np.int64]) -> Score:
    """Leave-one-out accuracy of the 5 nearest neighbors by cosine similarity; the vote weight is 1 + similarity."""
    index = NearestNeighbors(n_neighbors=min(NEIGHBORS, len(labels) - 1), metric="cosine").fit(features.astype(np.float64))
    distances, nearest = index.kneighbors()  # without the image itself
    votes = np.zeros((len(labels), int(labels.max()) + 1))
    np.add.at(votes, (np.arange(len(labels))[:, None], labels[nearest]), 2.0 - distances)
    correct = (votes.argmax(axis=1) == labels).astype(np.float64)
    return Score(float(correct.mean()), correct)


def ridge_score(features: NDArray[np.float32], labels: NDArray[np.int64]) -> Score:
    """Leave-one-out accuracy of a ridge classifier on standardized features, at the best of 13 penalties.

    Exact for N and D of any size, from one eigendecomposition of the N x N Gram matrix: the residual of a left-out image is
    ``(G y)_i / G_ii`` with ``G = (K + λ I)⁻¹`` (Rifkin and Lippert 2007, Notes on Regularized Least Squares).
    """
    scaled = _standardize(features)
    targets = np.where(labels[:, None] == np.arange(int(labels.max()) + 1), 1.0, -1.0)
    values, vectors = np.linalg.eigh(scaled @ scaled.T + 1.0)  # + 1: a constant feature, the intercept
    best: NDArray[np.float64] | None = None
    for penalty in PENALTIES:
        inverse = (vectors / (np.maximum(values, 0.0) + penalty)) @ vectors.T
        left_out = targets - (inverse @ targets) / np.diag(inverse)[:, None]
        right = (left_out.argmax(axis=1) == labels).astype(np.float64)
        if best is None or right.mean() > best.mean():
            best = right
    assert best is not None
    return Score(float(best.mean()), best)


def logme_score(features: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Mean over the classes of the maximum log evidence per image of a Bayesian linear model (LogME: You et al. 2021, arXiv:2102.11005).

    ``y ~ N(0, XXᵀ/α + I/β)`` for each one-hot column ``y``, with α and β at MacKay's fixed point. The whole spectrum counts, zeros
    included: leaving out the D − N of them when D > N, as the widely copied code does, favours wide features.
    """
    data = features.astype(np.float64)
    left, singular, _ = np.linalg.svd(data, full_matrices=False)
    return float(np.mean([_log_evidence(left, singular**2, data.shape[1], labels == label) for label in np.unique(labels)]))


def _log_evidence(left: NDArray[np.float64], spectrum: NDArray[np.float64], width: int, member: NDArray[np.bool_]) -> float:
    """Log evidence per image at the fixed point of α (precision of the weights) and β (precision of the noise)."""
    target = member.astype(np.float64)
    n = len(target)
    projected = (left.T @ target) ** 2
    outside = max(0.0, float(target @ target - projected.sum()))
    alpha = beta = 1.0
    for _ in range(LOGME_ITERATIONS):
        ratio = alpha / beta
        effective = float((spectrum / (spectrum + ratio)).sum())
        weights, errors = _fit(spectrum, projected, outside, ratio)
        alpha, beta = effective / max(weights, 1e-12), (n - effective) / max(errors, 1e-12)
        if abs(alpha / beta - ratio) <= LOGME_TOLERANCE * ratio:
            break
    return log_evidence_at(spectrum, projected, outside, (n, width), (alpha, beta))


def log_evidence_at(
    spectrum: NDArray[np.float64], projected: NDArray[np.float64], outside: float, shape: tuple[int, int], precisions: tuple[float, float]
) -> float:
    """``log N(y; 0, XXᵀ/α + I/β) / N`` from the singular values of X.

    Args:
        spectrum: squared singular values, float64 ``[min(N, D)]``.
        projected: squared coordinates of y along the left singular vectors.
        outside: squared length of what is left of y.
        shape: N and D.
        precisions: α and β.
    """
    (n, width), (alpha, beta) = shape, precisions
    weights, errors = _fit(spectrum, projected, outside, alpha / beta)
    log_determinant = np.log(alpha + beta * spectrum).sum() + (width - len(spectrum)) * np.log(alpha)
    total = width * np.log(alpha) + n * np.log(beta) - log_determinant - beta * errors - alpha * weights - n * np.log(2 * np.pi)
    return float(total / 2 / n)


def _fit(spectrum: NDArray[np.float64], projected: NDArray[np.float64], outside: float, ratio: float) -> tuple[float, float]:
    """Squared lengths of the posterior mean and of the residual, for ``ratio`` = α / β."""
    weights = float((spectrum * projected / (spectrum + ratio) ** 2).sum())
    errors = float((projected * (ratio / (spectrum + ratio)) ** 2).sum()) + outside
    return weights, errors


def _standardize(features: NDArray[np.float32]) -> NDArray[np.float64]:
    data = features.astype(np.float64)
    scaled: NDArray[np.float64] = (data - data.mean(axis=0)) / (data.std(axis=0) + 1e-6)
    return scaled
