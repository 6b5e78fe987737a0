"""Distillation loss: divergence of a network's predictions from those of another one (Hinton et al. 2015, arXiv:1503.02531)."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def distillation_loss(logits: torch.Tensor, target: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Kullback-Leibler divergence of the softened class probabilities, times the square of the temperature; a mean over the batch.

    The square keeps the size of the gradient independent of the temperature.

    Args:
        logits: float ``[batch, classes]``, of the network that is trained.
        target: logits of the other network, of the same shape.
        temperature: divides both; above 1 it softens the probabilities.
    """
    wanted, given = F.log_softmax(target / temperature, dim=1), F.log_softmax(logits / temperature, dim=1)
    return temperature**2 * F.kl_div(given, wanted, log_target=True, reduction="batchmean")
