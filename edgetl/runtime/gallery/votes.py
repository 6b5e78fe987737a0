"""Logits of a k-NN head with the vectors of a gallery."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgetl.core.tasks import LEAST_WEIGHT, KnnHead


def new_class_weight(trained: float, added: int) -> float:
    """Return the vote weight of a new class: the square root of the ratio of the images per class, and at least 1.

    With equal votes, a new class with few images rarely has the majority beside classes with many (``bench.accuracy.gallery``).

    Args:
        trained: mean number of training images of a class of the bundle.
        added: number of images of the new class.
    """
    return float(max(1.0, (trained / added) ** 0.5))


def combined_logits(
    head: KnnHead,
    outputs: tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]],
    vectors: NDArray[np.float32],
    votes: NDArray[np.float32],
) -> NDArray[np.float32]:
    """Return the logits of a k-NN head that also stores the vectors of a gallery, float32 ``[batch, labels]``.

    The result equals that of a head that was fitted with the same center and parameters, and with the images of both. Only the nearest
    ``neighbors + 1`` images of each can be among the nearest of both. The votes are those of ``edgetl.train.heads.modules.class_votes``.

    Args:
        head: parameters of the votes.
        outputs: features, similarities and votes of the network (``KnnHead``).
        vectors: float32 ``[images, width]``, vectors of the gallery.
        votes: float32 ``[images, labels]``, votes of the gallery. The labels of the bundle are first.
    """
    features, nearest, own = outputs
    similarities = np.concatenate([nearest, features @ vectors.T], axis=1)
    count = head.neighbors + 1
    order = np.argsort(-similarities, axis=1, kind="stable")[:, :count]
    ordered = np.take_along_axis(similarities, order, axis=1)
    weights = np.exp((ordered - ordered[:, :1]) / np.float32(head.temperature))
    weights = weights[:, :-1] - weights[:, -1:] + np.float32(LEAST_WEIGHT)
    summed = np.zeros((len(features), votes.shape[1]), np.float32)
    for row, (chosen, weight) in enumerate(zip(order[:, :-1], weights, strict=True)):
        trained = chosen < count
        # The last of the nearest training images has no vote, and cannot be among the voters: its predecessors are at least as near.
        summed[row, : own.shape[2]] = weight[trained] @ own[row, chosen[trained]]
        summed[row] += weight[~trained] @ votes[chosen[~trained] - count]
    fractions = summed / summed.sum(axis=1, keepdims=True)
    logits: NDArray[np.float32] = (np.float32(head.scale) * (fractions - np.float32(1 / votes.shape[1]))).astype(np.float32)
    return logits
