"""Distillation loss: divergence between the predictions of a network and of its teacher (Hinton et al. 2015, arXiv:1503.02531)."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def distillation_loss(logits: torch.Tensor, target: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Compute the distillation loss: Kullback-Leibler divergence of softened class probabilities, mean over the batch.

    The divergence is multiplied by the square of the temperature. The size of the gradient then does not depend on the temperature.

    Args:
        logits: float ``[batch, classes]``, outputs of the trained network.
        target: float ``[batch, classes]``, outputs of the teacher.
        temperature: Divisor of both logits. Values above 1 soften the probabilities.
    """
    teacher, student = F.log_softmax(target / temperature, dim=1), F.log_softmax(logits / temperature, dim=1)
    return temperature**2 * F.kl_div(student, teacher, log_target=True, reduction="batchmean")
