"""k-nearest-neighbor head (k-NN): votes of the most similar training images."""

from __future__ import annotations

import itertools

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from edgetl.train.heads.modules import Directions, FittedHead, HeadSpec, KnnVotes, LabeledFeatures, class_votes, linear_layer

NEIGHBORS = (100, 50, 20, 10, 5, 3, 1)
TEMPERATURES = (0.3, 0.1, 0.07, 0.03)
# Temperature of Wu et al. 2018, used if there are too few images for leave-one-out.
DEFAULT_TEMPERATURE = 0.07
# Number of images at a time. It limits the memory for similarities to the whole bank.
BLOCK = 256


def fit_knn(spec: HeadSpec, train: LabeledFeatures, val: LabeledFeatures, weights: torch.Tensor) -> FittedHead:
    """Fit a k-NN head.

    The leave-one-out accuracy on the training images selects the number of neighbors and the temperature. The log-loss on ``val`` selects
    the scale of the logits.

    Args:
        spec: Kind and features of the head.
        train: Training data, which is stored in the head.
        val: Validation data.
        weights: float32 ``[classes]``, vote weights of the classes.
    """
    count, width = train.features.shape
    votes = F.one_hot(torch.from_numpy(train.targets), len(weights)) * weights
    directions = Directions(width)
    directions.center.copy_(torch.from_numpy(train.features.mean(axis=0)))
    bank = directions(torch.from_numpy(train.features))
    neighbors, temperature, accuracy = choose_votes(bank, votes, groups=train.groups)
    spec = spec.model_copy(update={"bank": count, "neighbors": neighbors, "temperature": temperature})
    adapter = KnnVotes(width, len(weights), spec)
    adapter.directions.center.copy_(directions.center)
    adapter.bank.copy_(bank)
    adapter.votes.copy_(votes)
    scale = _choose_scale(
        torch.cat([adapter(rows) for rows in torch.split(torch.from_numpy(val.features), BLOCK)]), torch.from_numpy(val.targets)
    )
    # Subtract the mean of the votes, so the bias is not zero. Exporters remove a zero bias, but head refitting needs one.
    head = linear_layer(scale * torch.eye(len(weights)), torch.full((len(weights),), -scale / len(weights)))
    return FittedHead(spec, adapter.eval(), head, accuracy)


def choose_votes(bank: torch.Tensor, votes: torch.Tensor, *, groups: NDArray[np.int64] | None = None) -> tuple[int, float, float]:
    """Choose the number of neighbors and the temperature by leave-one-out accuracy. Of equal results, more neighbors are chosen.

    Args:
        bank: float32 ``[n, width]``, features of length 1.
        votes: float32 ``[n, classes]``, one-hot rows times the weight of the class. The weights also apply to the accuracy that selects.
        groups: int64 ``[n]``. Images of one group are not neighbors of each other.

    Returns:
        Number of neighbors, temperature, and unweighted accuracy.
    """
    count = len(bank)
    similarities, indices = nearest_others(bank, min(NEIGHBORS[0] + 1, count - 1), groups)
    importance, labels = votes.max(dim=1).values, votes.argmax(dim=1)
    best, highest, accuracy = (1, DEFAULT_TEMPERATURE), -1.0, 0.0
    for neighbors, temperature in itertools.product(NEIGHBORS, TEMPERATURES):
        if neighbors + 1 > similarities.shape[1]:
            continue
        parts = zip(torch.split(similarities[:, : neighbors + 1], BLOCK), torch.split(indices[:, :neighbors], BLOCK), strict=True)
        predicted = [class_votes(part, votes[index], temperature).argmax(dim=1) for part, index in parts]
        correct = torch.cat(predicted) == labels
        score = float((correct * importance).sum() / importance.sum())
        if score > highest:
            best, highest, accuracy = (neighbors, temperature), score, float(correct.float().mean())
    return *best, accuracy


def nearest_others(bank: torch.Tensor, count: int, groups: NDArray[np.int64] | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Find the nearest neighbors of each image in other groups, and return their similarities and indices ``[n, count]``."""
    found = []
    numbers = torch.arange(len(bank)) if groups is None else torch.from_numpy(groups)
    for start in range(0, len(bank), BLOCK):
        similarities = bank[start : start + BLOCK] @ bank.T
        similarities[numbers[start : start + BLOCK, None] == numbers[None]] = -2.0  # exclude the image and its group
        found.append(similarities.topk(count, dim=1))
    return torch.cat([item.values for item in found]), torch.cat([item.indices for item in found])


def _choose_scale(votes: torch.Tensor, truth: torch.Tensor) -> float:
    """Choose the scale with the lowest log-loss of ``softmax(scale * votes)``. It changes scores, but not the predicted class."""
    scales = np.geomspace(1.0, 100.0, 60)
    losses = [float(F.cross_entropy(float(scale) * votes, truth)) for scale in scales]
    return float(scales[int(np.argmin(losses))])
