"""L2-SP: penalize the distance of the fine-tuned weights from the starting weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from edgetl.train.loop.losses import StepOutputs


class L2SP:
    """L2-SP loss term: half the squared distance of the backbone from its starting weights (Li et al. 2018, arXiv:1802.01483).

    Args:
        network: network to train.
        start: starting weights by name, on the network's device.
        weight: weight of the term in the loss.
    """

    def __init__(self, network: nn.Module, start: Mapping[str, torch.Tensor], *, weight: float) -> None:
        self.weight = weight
        self.start = start
        self.parameters = {name: value for name, value in network.named_parameters() if name in start}

    def __call__(self, _step: StepOutputs, /) -> torch.Tensor:
        parts = [(self.parameters[name] - anchor).square().sum() for name, anchor in self.start.items()]
        return torch.stack(parts).sum() / 2
