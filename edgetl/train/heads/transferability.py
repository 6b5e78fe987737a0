"""Transferability metrics of frozen features: k-NN accuracy and ridge accuracy (leave-one-out), and LogME.

All metrics are exact (no sampling) and computed in float64. N is the number of images, and D the number of features.
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
    """Value of a transferability metric.

    Attributes:
        value: Accuracy, 0..1. Higher is better.
        rows: float64 ``[N]``, value of each image. Their mean is ``value``.
    """

    value: float
    rows: NDArray[np.float64]


def knn_score(features: NDArray[np.float32], labels: NDArray[np.int64]) -> Score:
    """Compute the leave-one-out accuracy of 5 nearest neighbors by cosine similarity. The vote weight is 1 + similarity."""
    index = NearestNeighbors(n_neighbors=min(NEIGHBORS, len(labels) - 1), metric="cosine").fit(features.astype(np.float64))
    distances, nearest = index.kneighbors()  # without the image itself
    votes = np.zeros((len(labels), int(labels.max()) + 1))
    np.add.at(votes, (np.arange(len(labels))[:, None], labels[nearest]), 2.0 - distances)
    correct = (votes.argmax(axis=1) == labels).astype(np.float64)
    return Score(float(correct.mean()), correct)


def ridge_score(features: NDArray[np.float32], labels: NDArray[np.int64]) -> Score:
    """Compute the leave-one-out accuracy of a ridge classifier on standardized features, for the best of 13 penalties.

    The result is exact for any N and D. It needs one eigendecomposition of the N x N Gram matrix ``K``. The residual of a left-out image is
    ``(G y)_i / G_ii`` with ``G = (K + λ I)⁻¹`` (Rifkin and Lippert 2007, Notes on Regularized Least Squares).
    """
    scaled = _standardize(features)
    targets = np.where(labels[:, None] == np.arange(int(labels.max()) + 1), 1.0, -1.0)
    values, vectors = np.linalg.eigh(scaled @ scaled.T + 1.0)  # + 1 is a constant feature for the intercept
    best: NDArray[np.float64] | None = None
    for penalty in PENALTIES:
        inverse = (vectors / (np.maximum(values, 0.0) + penalty)) @ vectors.T
        left_out = targets - (inverse @ targets) / np.diag(inverse)[:, None]
        correct = (left_out.argmax(axis=1) == labels).astype(np.float64)
        if best is None or correct.mean() > best.mean():
            best = correct
    assert best is not None
    return Score(float(best.mean()), best)


def logme_score(features: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Compute LogME (You et al. 2021, arXiv:2102.11005): the maximum log evidence per image of a Bayesian linear model, mean over classes.

    The model is ``y ~ N(0, XXᵀ/α + I/β)`` for each one-hot column ``y``, with α and β at MacKay's fixed point. The whole spectrum is used.
    Commonly copied code omits the D − N zeros if D > N, which favors wide features.

    scikit-learn's ``BayesianRidge`` gives the same values, but needs a decomposition for each class. It is 25 times slower for 50 classes.
    """
    left, singular, _ = np.linalg.svd(features.astype(np.float64), full_matrices=False)
    return float(np.mean([_largest_evidence(left, singular**2, (labels == label).astype(np.float64)) for label in np.unique(labels)]))


def _largest_evidence(left: NDArray[np.float64], spectrum: NDArray[np.float64], target: NDArray[np.float64]) -> float:
    """Compute the log evidence per image at the fixed point of α (precision of the weights) and β (precision of the noise)."""
    projected = (left.T @ target) ** 2
    outside = max(0.0, float(target @ target - projected.sum()))
    alpha = beta = 1.0
    for _ in range(LOGME_ITERATIONS):
        ratio = alpha / beta
        effective = float((spectrum / (spectrum + ratio)).sum())
        weights = float((spectrum * projected / (spectrum + ratio) ** 2).sum())  # squared length of the posterior mean
        errors = float((projected * (ratio / (spectrum + ratio)) ** 2).sum()) + outside
        alpha, beta = effective / max(weights, 1e-12), (len(target) - effective) / max(errors, 1e-12)
        if abs(alpha / beta - ratio) <= LOGME_TOLERANCE * ratio:
            break
    return log_evidence(spectrum, projected, outside, n=len(target), alpha=alpha, beta=beta)


def log_evidence(
    spectrum: NDArray[np.float64], projected: NDArray[np.float64], outside: float, *, n: int, alpha: float, beta: float
) -> float:
    """Compute the log evidence per image: ``log N(y; 0, XXᵀ/α + I/β) / N``.

    Args:
        spectrum: float64 ``[min(N, D)]``, squared singular values of X.
        projected: float64 ``[min(N, D)]``, squared coordinates of y along the left singular vectors.
        outside: Squared length of the rest of y.
        n: Number of images N.
        alpha: Precision of the weights.
        beta: Precision of the noise.
    """
    variances = spectrum / alpha + 1 / beta
    determinant = np.log(variances).sum() - (n - len(spectrum)) * np.log(beta)
    return float(-(determinant + (projected / variances).sum() + beta * outside + n * np.log(2 * np.pi)) / 2 / n)


def _standardize(features: NDArray[np.float32]) -> NDArray[np.float64]:
    data = features.astype(np.float64)
    scaled: NDArray[np.float64] = (data - data.mean(axis=0)) / (data.std(axis=0) + 1e-6)
    return scaled
