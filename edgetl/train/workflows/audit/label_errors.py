"""Label errors: out-of-sample probabilities of a linear probe and of nearest neighbors, and confident learning."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import log_softmax
from sklearn.decomposition import PCA

from edgetl.core.progress import Progress, silent
from edgetl.train.heads.knn import nearest_others
from edgetl.train.heads.linear import left_out_residuals, spread

# Least number of images of a class, and of classes.
LEAST_IMAGES, LEAST_CLASSES = 10, 2
# Principal components of the features. They bound the time and the memory.
COMPONENTS = 1024
# Penalties of the ridge regression, relative to the variance of all features.
PENALTIES = (1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5)
# Factors that make log-odds of scores between 0 and 1.
SCALES = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0)
# Neighbors of an image, temperature of their votes, and principal components that compare them.
NEIGHBORS, TEMPERATURE, NEIGHBOR_COMPONENTS = 20, 0.1, 256
# Weight of the neighbors. 0.3 and 0.5 find more label errors than the probe alone.
NEIGHBOR_WEIGHT = 0.3


def out_of_sample(
    features: NDArray[np.float32], labels: NDArray[np.int64], groups: NDArray[np.int64], *, progress: Progress = silent
) -> NDArray[np.float64]:
    """Predict each image by a linear probe that was fitted without it, and by the labels of its nearest neighbors.

    The weighted mean of both is returned.

    Args:
        features: float32 ``[n, width]``.
        labels: classes 0..classes-1, each with at least ``LEAST_IMAGES`` images.
        groups: set of each image. Images of a set are left out together, because a copy would reveal the given label.
        progress: callback, called after each penalty.

    Returns:
        Probabilities, ``[n, classes]``.
    """
    scaled = (features - features.mean(axis=0)) / spread(features)
    rows = PCA(min(COMPONENTS, *scaled.shape), svd_solver="covariance_eigh").fit_transform(scaled)
    probe, neighbors = _probe(rows, labels, groups, progress), _neighbors(rows[:, :NEIGHBOR_COMPONENTS], labels, groups)
    return (1 - NEIGHBOR_WEIGHT) * probe + NEIGHBOR_WEIGHT * neighbors


def _probe(rows: NDArray[np.float32], labels: NDArray[np.int64], groups: NDArray[np.int64], progress: Progress) -> NDArray[np.float64]:
    """Return leave-one-out probabilities of a ridge regression on the classes: ``softmax(scale * scores)``.

    One fit on the principal components gives the scores of all images (``left_out_residuals``). The penalty has the lowest leave-one-out
    error, and the scale the lowest log-loss.
    """
    sizes = np.maximum((rows**2).sum(axis=0), 1e-6)
    left, given = rows / np.sqrt(sizes), np.eye(int(labels.max()) + 1)[labels]
    center = given.mean(axis=0)
    projected, best, lowest = left.T @ (given - center), given, np.inf
    for done, penalty in enumerate(PENALTIES, start=1):
        shrinkage = sizes / (sizes + penalty * sizes.sum())
        residual = left_out_residuals(given - center - left @ (shrinkage[:, None] * projected), left * np.sqrt(shrinkage), groups)
        if (error := float((residual**2).mean())) < lowest:
            best, lowest = given - residual, error
        progress("searching label errors", done, len(PENALTIES))
    logs = (log_softmax(scale * best, axis=1) for scale in SCALES)
    found: NDArray[np.float64] = np.exp(max(logs, key=lambda item: float(item[np.arange(len(labels)), labels].mean())))
    return found


def _neighbors(rows: NDArray[np.float32], labels: NDArray[np.int64], groups: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the weighted ratio of each class among the nearest images of other sets."""
    bank = torch.nn.functional.normalize(torch.from_numpy(rows), dim=1)
    similarities, indices = nearest_others(bank, min(NEIGHBORS, len(rows) - 1), groups)
    weights = torch.softmax(similarities / TEMPERATURE, dim=1)
    votes = torch.zeros(len(rows), int(labels.max()) + 1).scatter_add_(1, torch.from_numpy(labels)[indices], weights)
    return votes.numpy().astype(np.float64)


def self_confidence(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the probability of the given label, ``[n]``. Low values indicate label errors.

    ``bench/accuracy/audit.py`` measures how many errors it finds.
    """
    return probabilities[np.arange(len(labels)), labels]


def find_label_errors(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the indices of probable label errors by confident learning, the most probable first.

    An image is confidently in a class if its probability is at least the mean probability of this class over the images with its label. An
    image that is confidently in another class than its label is a probable error (Northcutt et al. 2021, arXiv:1911.00068).
    """
    thresholds = np.array([probabilities[labels == label, label].mean() for label in range(probabilities.shape[1])])
    confident = np.where(probabilities >= thresholds, probabilities, -1)
    flagged = np.flatnonzero((confident.max(axis=1) > 0) & (confident.argmax(axis=1) != labels))
    return flagged[np.argsort(self_confidence(probabilities, labels)[flagged], kind="stable")]
