"""Cosine head: class directions on the unit sphere (Gidaris and Komodakis 2018, arXiv:1804.09458)."""

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
    """Fit ``logits = scale * (cosine(features - center, direction of the class) - 1) + bias``.

    The directions start as the class means (Qi et al. 2018, arXiv:1712.07136); L-BFGS fits them and the bias on the log-loss. The scale is
    the one with the lowest log-loss on ``val``. The bias allows a class to be rarer than another. Predictions do not depend on the scale
    of the features.

    Args:
        train: data of the fit.
        val: data that selects the scale.
        weights: float32 ``[classes]``, class weights of the loss.
        progress: called after each scale.
    """
    adapter = Directions(train.features.shape[1])
    adapter.center.copy_(torch.from_numpy(train.features.mean(axis=0)))
    rows, labels = adapter(torch.from_numpy(train.features)), torch.from_numpy(train.targets)
    seen, truth = adapter(torch.from_numpy(val.features)), torch.from_numpy(val.targets)
    first = torch.stack([rows[labels == index].sum(dim=0) for index in range(len(weights))])
    best, least = linear_layer(first, torch.zeros(len(weights))), math.inf
    for index, scale in enumerate(SCALES, start=1):
        directions, bias = _fit_directions(rows, labels, first, scale, weights)
        # cosine - 1 is minus half the squared distance. Exporters leave out a bias of zeros, and head refitting needs one.
        head = linear_layer(scale * F.normalize(directions, dim=1), bias - scale)
        loss = float(F.cross_entropy(head(seen), truth, weights))
        if loss < least:
            best, least = head, loss
        progress("fitting the head", index, len(SCALES))
    return adapter, best


def _fit_directions(
    rows: torch.Tensor, labels: torch.Tensor, first: torch.Tensor, scale: float, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Directions ``[classes, width]``, of any length, and the bias ``[classes]``."""
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
