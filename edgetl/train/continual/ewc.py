"""How much each weight matters to what a network answers: the diagonal of the Fisher information."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import nn

# What earlier tasks of a chain still count (online EWC: Schwarz et al. 2018, arXiv:1805.06370).
FISHER_MEMORY = 0.9


def measure_fisher(
    model: nn.Module, images: Iterable[torch.Tensor], names: set[str], *, seed: int, earlier: Mapping[str, torch.Tensor] | None = None
) -> dict[str, torch.Tensor]:
    """Diagonal of the Fisher information: the mean square of the gradient of the log-likelihood of an answer that the network draws
    itself, image by image (drawn, not true, answers: Kunstner et al. 2019, arXiv:1905.12558).

    Args:
        model: with its old head, in evaluation mode.
        images: float32 ``[3, H, W]`` each.
        names: of the parameters.
        seed: of the draws.
        earlier: the same of the tasks before, which count for ``FISHER_MEMORY``.

    Returns:
        By name, scaled so that their mean over all these parameters is 1.
    """
    parameters = {name: parameter for name, parameter in model.named_parameters() if name in names}
    total = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    generator = torch.Generator().manual_seed(seed)
    for image in images:
        logits = model(image.unsqueeze(0))
        drawn = torch.multinomial(logits.detach().softmax(dim=1).cpu(), 1, generator=generator)[:, 0].to(logits.device)
        found = torch.autograd.grad(F.cross_entropy(logits, drawn), list(parameters.values()), allow_unused=True)
        for name, gradient in zip(parameters, found, strict=True):
            if gradient is not None:
                total[name] += gradient.square()
    scaled = _mean_one(total)
    if earlier:
        scaled = {name: value + FISHER_MEMORY * earlier[name] if name in earlier else value for name, value in scaled.items()}
    return scaled


def _mean_one(values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    mean = sum(float(value.sum()) for value in values.values()) / max(1, sum(value.numel() for value in values.values()))
    return {name: value / max(mean, 1e-30) for name, value in values.items()}
