"""Cosine head: cosine similarity to one direction per class (Gidaris and Komodakis 2018, arXiv:1804.09458)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from edgetl.core.progress import Progress, silent
from edgetl.train.heads.modules import Directions, LabeledFeatures, linear_layer

SCALES = (4.0, 8.0, 16.0, 32.0, 64.0)
COSINE_ITERATIONS = 100


def fit_cosine(
    train: LabeledFeatures, val: LabeledFeatures, weights: torch.Tensor, *, progress: Progress = silent
) -> tuple[Directions, nn.Linear]:
    """Fit a cosine head: ``logits = scale * (cosine(features - center, class direction) - 1) + bias``.

    The directions start from the class means (Qi et al. 2018, arXiv:1712.07136). L-BFGS fits the directions and the bias on the log-loss.
    The scale with the lowest log-loss on ``val`` is chosen. The bias models unequal class frequencies. Predictions do not depend on the
    scale of the features.

    Args:
        train: Training data.
        val: Validation data, which selects the scale.
        weights: float32 ``[classes]``, class weights of the loss.
        progress: Callback, called after each scale.

    Returns:
        The module before the linear layer, and the linear layer.
    """
    adapter = Directions(train.features.shape[1])
    adapter.center.copy_(torch.from_numpy(train.features.mean(axis=0)))
    rows, labels = adapter(torch.from_numpy(train.features)), torch.from_numpy(train.targets)
    val_rows, val_labels = adapter(torch.from_numpy(val.features)), torch.from_numpy(val.targets)
    first = torch.stack([rows[labels == index].sum(dim=0) for index in range(len(weights))])
    best, lowest = linear_layer(first, torch.zeros(len(weights))), math.inf
    for index, scale in enumerate(SCALES, start=1):
        directions, bias = _fit_directions(rows, labels, first, scale, weights)
        # cosine - 1 is minus half the squared distance. The bias is then never all zeros: exporters remove a zero bias, but head
        # refitting needs one.
        head = linear_layer(scale * F.normalize(directions, dim=1), bias - scale)
        loss = float(F.cross_entropy(head(val_rows), val_labels, weights))
        if loss < lowest:
            best, lowest = head, loss
        progress("fitting the head", index, len(SCALES))
    return adapter, best


def _fit_directions(
    rows: torch.Tensor, labels: torch.Tensor, first: torch.Tensor, scale: float, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Fit the directions ``[classes, width]``, which are not normalized, and the bias ``[classes]``."""
    directions = F.normalize(first, dim=1).clone().requires_grad_(True)
    bias = torch.zeros(len(first), requires_grad=True)
    optimizer = torch.optim.LBFGS([directions, bias], max_iter=COSINE_ITERATIONS, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(scale * rows @ F.normalize(directions, dim=1).T + bias, labels, weights)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return directions.detach(), bias.detach()
