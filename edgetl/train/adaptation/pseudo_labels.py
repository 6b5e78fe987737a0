"""Pseudo-labels of target images: the class of the nearest centroid of features."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

ROUNDS = 2


def pseudo_labels(features: NDArray[np.float32], scores: NDArray[np.float32]) -> NDArray[np.int64]:
    """Assign each image to the class with the nearest centroid by cosine similarity (SHOT: Liang et al. 2020, arXiv:2002.08546).

    The first centroids are means of the features weighted by the scores. Later centroids are means of the images of each class. Where the
    scores of a network are biased to one class, the centroids are less so.

    Args:
        features: float32 ``[images, width]``.
        scores: scores that sum to 1, float32 ``[images, classes]``.

    Returns:
        int64 ``[images]``.
    """
    rows = np.concatenate([features, np.ones((len(features), 1), np.float32)], axis=1)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    weights, assigned = scores, scores.argmax(axis=1)
    for _ in range(ROUNDS):
        centroids = weights.T @ rows / np.maximum(weights.sum(axis=0), 1e-8)[:, None]
        centroids /= np.maximum(np.linalg.norm(centroids, axis=1, keepdims=True), 1e-8)
        assigned = (rows @ centroids.T).argmax(axis=1)
        weights = np.eye(scores.shape[1], dtype=np.float32)[assigned]
    return assigned.astype(np.int64)
