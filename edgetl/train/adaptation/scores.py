"""Validation of a network on target images without labels: information, diversity and collapse of its predictions."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

# Diversity below which predictions count as collapsed to few classes. Equally frequent predictions of the square root of the number of
# classes have this diversity.
COLLAPSED_BELOW = 0.5


def diversity(scores: NDArray[np.float32]) -> float:
    """Compute the entropy of the mean scores, relative to the logarithm of the number of classes, 0..1.

    Args:
        scores: scores that sum to 1, float32 ``[images, classes]``.
    """
    return _entropy(scores.mean(axis=0, dtype=np.float64)[None]) / math.log(scores.shape[1])


def information(scores: NDArray[np.float32]) -> float:
    """Compute the mutual information of images and classes, relative to the logarithm of the number of classes, 0..1.

    It is high if the predictions are certain and of all classes (Bridle et al. 1991, "Unsupervised classifiers, mutual information and
    phantom targets"). It needs no labels, and does not show whether the classes are the right ones.

    Args:
        scores: scores that sum to 1, float32 ``[images, classes]``.
    """
    return diversity(scores) - _entropy(scores.astype(np.float64)) / math.log(scores.shape[1])


def _entropy(scores: NDArray[np.float64]) -> float:
    """Compute the mean entropy of the rows, in nats."""
    return float(-(scores * np.log(np.maximum(scores, 1e-12))).sum(axis=1).mean())
