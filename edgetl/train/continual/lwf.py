"""Learning without Forgetting (LwF): keep the outputs for the previous classes on new images."""

from __future__ import annotations

import copy

import torch
from torch import nn

from edgetl.train.continual.previous_task import HeadInput, PreviousTask
from edgetl.train.loop.losses import StepOutputs
from edgetl.train.networks.distillation import distillation_loss

# Softens the outputs of the starting network (Li and Hoiem 2016, arXiv:1606.09282).
TEMPERATURE = 2.0


class LwF:
    """Learning-without-Forgetting loss term: distillation from the starting network (Li and Hoiem 2016, arXiv:1606.09282).

    The term compares the outputs for the previous classes with those of the starting network. If the new network has all previous
    classes, its own logits are compared. Otherwise its features are passed through the previous head.

    Args:
        network: network with its starting weights, on its device. The weights are copied.
        previous: the previous task.
        head_input: input of the network's head.
        weight: weight of the term in the loss.
    """

    def __init__(self, network: nn.Module, previous: PreviousTask, head_input: HeadInput, *, weight: float) -> None:
        self.weight = weight
        self.classes = previous.places
        self.head_input = head_input
        device = next(network.parameters()).device
        self.previous_head = copy.deepcopy(previous.head).to(device)
        self.previous = copy.deepcopy(network)
        self.previous.set_submodule(head_input.head_name, self.previous_head)
        self.previous.eval().requires_grad_(False)

    def __call__(self, step: StepOutputs, /) -> torch.Tensor:
        with torch.no_grad():
            target = self.previous(step.images)
        logits = self.previous_head(self.head_input.features) if self.classes is None else step.logits[:, list(self.classes)]
        return distillation_loss(logits, target, TEMPERATURE)
