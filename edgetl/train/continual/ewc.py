"""Elastic weight consolidation (EWC): keep the weights that are important for the previous task.

The diagonal of the Fisher information measures the importance of each weight.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import nn

# Weight of earlier tasks in a chain of runs (online EWC: Schwarz et al. 2018, arXiv:1805.06370).
FISHER_DECAY = 0.9


def measure_fisher(
    model: nn.Module, images: Iterable[torch.Tensor], names: set[str], *, seed: int, earlier: Mapping[str, torch.Tensor] | None = None
) -> dict[str, torch.Tensor]:
    """Measure the diagonal of the Fisher information.

    The diagonal is the mean square, over single images, of the gradient of the log-likelihood of a class. The class is drawn from the
    network's own prediction. The true class would give the empirical Fisher, which is another quantity (Kunstner et al. 2019,
    arXiv:1905.12558).

    Args:
        model: network with the previous head, in evaluation mode.
        images: preprocessed images, float32 ``[3, H, W]`` each.
        names: names of the parameters to measure.
        seed: seed of the draws.
        earlier: result for the earlier tasks. It is added with the weight ``FISHER_DECAY``.

    Returns:
        One tensor per parameter, in its shape, by name. Without ``earlier`` the mean over all values is 1.
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
        scaled = {name: value + FISHER_DECAY * earlier[name] if name in earlier else value for name, value in scaled.items()}
    return scaled


def _mean_one(values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    mean = sum(float(value.sum()) for value in values.values()) / max(1, sum(value.numel() for value in values.values()))
    return {name: value / max(mean, 1e-30) for name, value in values.items()}


class EWC:
    """Proximal term of elastic weight consolidation (EWC), after Kirkpatrick et al. 2017, arXiv:1612.00796.

    After each optimizer step, each weight ``w`` moves toward its starting value ``w0`` in proportion to its importance ``F``:
    ``w = (w + lr*s*F*w0) / (1 + lr*s*F)`` with the strength ``s``. As a loss term, a strong penalty would dominate the clipped gradient
    and oscillate under Adam. The proximal update is stable for any strength. With infinite strength the weights do not move. AdamW
    applies weight decay in the same way (Loshchilov and Hutter 2019, arXiv:1711.05101).

    Args:
        network: network with its starting weights, on its device.
        fisher: diagonal of the Fisher information, by parameter name.
        strength: strength ``s`` of the term.
    """

    def __init__(self, network: nn.Module, fisher: Mapping[str, torch.Tensor], strength: float) -> None:
        self.start = {name: value.detach().clone() for name, value in network.named_parameters() if name in fisher}
        self.fisher = {name: fisher[name].to(value.device) for name, value in self.start.items()}
        self.strength = strength

    @torch.no_grad()
    def __call__(self, network: nn.Module, optimizer: torch.optim.Optimizer, /) -> None:
        rates = {id(parameter): float(group["lr"]) for group in optimizer.param_groups for parameter in group["params"]}
        for name, parameter in network.named_parameters():
            if name in self.fisher and id(parameter) in rates:
                kept = 1 / (1 + rates[id(parameter)] * self.strength * self.fisher[name])
                parameter.copy_(torch.lerp(self.start[name], parameter, kept))
