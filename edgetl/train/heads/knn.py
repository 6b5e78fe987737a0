"""k-nearest-neighbor head: a bank of training features whose votes are the prediction."""

from __future__ import annotations

import itertools

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from edgetl.train.heads.modules import Directions, FittedHead, HeadSpec, KnnVotes, LabeledFeatures, class_votes, linear_layer

NEIGHBORS = (100, 50, 20, 10, 5, 3, 1)
TEMPERATURES = (0.3, 0.1, 0.07, 0.03)
# Where leave-one-out can choose nothing: Wu et al.'s temperature.
USUAL_TEMPERATURE = 0.07
# Images at a time: similarities to the whole bank take memory.
BLOCK = 256


def fit_knn(spec: HeadSpec, train: LabeledFeatures, val: LabeledFeatures, weights: torch.Tensor) -> FittedHead:
    """Fit a k-NN head; leave-one-out accuracy on the training images selects the number of neighbors and the temperature."""
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
    # The mean of the votes is subtracted: exporters leave out a bias of zeros, and head refitting needs one.
    head = linear_layer(scale * torch.eye(len(weights)), torch.full((len(weights),), -scale / len(weights)))
    return FittedHead(spec, adapter.eval(), head, accuracy)


def choose_votes(bank: torch.Tensor, votes: torch.Tensor, *, groups: NDArray[np.int64] | None = None) -> tuple[int, float, float]:
    """Choose the number of neighbors and the temperature by leave-one-out accuracy on the training images; of equals, more neighbors.

    Args:
        bank: float32 ``[n, width]`` of length 1.
        votes: ``[n, classes]``; a class whose votes weigh more counts more here too.
        groups: int64 ``[n]``: images of one number are no neighbors of each other.

    Returns:
        Number of neighbors, temperature, and accuracy.
    """
    count = len(bank)
    near, places = _nearest_others(bank, min(NEIGHBORS[0] + 1, count - 1), groups)
    importance, labels = votes.max(dim=1).values, votes.argmax(dim=1)
    best, most, accuracy = (1, USUAL_TEMPERATURE), -1.0, 0.0
    for neighbors, temperature in itertools.product(NEIGHBORS, TEMPERATURES):
        if neighbors + 1 > near.shape[1]:
            continue
        parts = zip(torch.split(near[:, : neighbors + 1], BLOCK), torch.split(places[:, :neighbors], BLOCK), strict=True)
        found = [class_votes(part, votes[where], temperature).argmax(dim=1) for part, where in parts]
        right = torch.cat(found) == labels
        score = float((right * importance).sum() / importance.sum())
        if score > most:
            best, most, accuracy = (neighbors, temperature), score, float(right.float().mean())
    return *best, accuracy


def _nearest_others(bank: torch.Tensor, count: int, groups: NDArray[np.int64] | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Similarities and indices ``[n, count]`` of each image's nearest neighbors from other groups."""
    found = []
    numbers = torch.arange(len(bank)) if groups is None else torch.from_numpy(groups)
    for start in range(0, len(bank), BLOCK):
        alike = bank[start : start + BLOCK] @ bank.T
        alike[numbers[start : start + BLOCK, None] == numbers[None]] = -2.0  # itself, and its group
        found.append(alike.topk(count, dim=1))
    return torch.cat([item.values for item in found]), torch.cat([item.indices for item in found])


def _choose_scale(votes: torch.Tensor, truth: torch.Tensor) -> float:
    """Scale with the lowest log-loss of ``softmax(scale * votes)``; it changes scores, never the predicted class."""
    scales = np.geomspace(1.0, 100.0, 60)
    losses = [float(F.cross_entropy(float(scale) * votes, truth)) for scale in scales]
    return float(scales[int(np.argmin(losses))])
