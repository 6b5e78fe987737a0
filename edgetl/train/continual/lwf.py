"""Guards for what pretrained weights know: a pull towards them, and their answers as a second lesson."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from edgetl.train.config.options import TrainConfig
from edgetl.train.continual.prepare import Protection
from edgetl.train.continual.previous_task import OldTask
from edgetl.train.continual.replay import UNLABELLED
from edgetl.train.networks.distillation import distillation_loss

# Softens the old answers (Li and Hoiem 2016, arXiv:1606.09282).
TEMPERATURE = 2.0


class Guards(nn.Module):
    """What one training adds to its loss, and does after its steps, for the old task's sake; nothing unless it was asked for."""

    def __init__(self, model: nn.Module, head_name: str, kept: Protection, config: TrainConfig) -> None:
        super().__init__()
        self.replays = bool(kept.replay)
        old = kept.old
        asks_old_head = old is not None and any(UNLABELLED < sample.label < 0 for sample in kept.replay)
        self.answers = OldAnswers(model, head_name, old, config.continual.lwf) if old and config.continual.lwf else None
        self.old_head = copy.deepcopy(old.head).requires_grad_(False) if old and asks_old_head else None
        self.elastic = Elastic(model, kept.fisher, config.continual.ewc) if kept.fisher else None
        self._features = torch.empty(0)
        listens = self.answers is not None or self.old_head is not None
        self._hook = model.get_submodule(head_name).register_forward_pre_hook(self._listen) if listens else None

    def _listen(self, _head: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        self._features = given[0]

    def release(self) -> None:
        """Stop listening to the network."""
        if self._hook is not None:
            self._hook.remove()

    def add(self, loss: torch.Tensor, images: torch.Tensor, labels: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """``loss`` and those of the guards; ``images`` have just been through the network and gave ``logits``."""
        if self.old_head is not None and bool((asked := (labels < 0) & (labels > UNLABELLED)).any()):
            loss = loss + F.cross_entropy(self.old_head(self._features[asked]), -1 - labels[asked])
        return loss if self.answers is None else loss + self.answers.loss(images, self._features, logits)

    def hold(self, model: nn.Module, groups: Iterable[Mapping[str, Any]]) -> None:
        """After a step of the optimizer, whose groups these are."""
        if self.elastic is not None:
            self.elastic.hold(model, groups)


class OldAnswers(nn.Module):
    """Learning without forgetting: the new network is to answer new images as the old one did (Li and Hoiem 2016, arXiv:1606.09282).

    Where the new network has the old classes, its own logits for them are compared; elsewhere its features go through the old head.
    """

    def __init__(self, model: nn.Module, head_name: str, old: OldTask, strength: float) -> None:
        super().__init__()
        self.old_head = copy.deepcopy(old.head)
        self.teacher = copy.deepcopy(model)
        self.teacher.set_submodule(head_name, self.old_head)
        self.teacher.eval().requires_grad_(False)
        self.places = old.places
        self.strength = strength

    def loss(self, images: torch.Tensor, features: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Divergence of the new answers from the old ones, times the strength.

        Args:
            images: float32 ``[batch, 3, H, W]``, or activations where the frozen half was run ahead.
            features: what enters the new network's head, ``[batch, width]``.
            logits: its answers, ``[batch, classes]``.
        """
        with torch.no_grad():
            told = self.teacher(images)
        said = self.old_head(features) if self.places is None else logits[:, list(self.places)]
        return self.strength * distillation_loss(said, told, TEMPERATURE)


class Elastic:
    """Elastic weight consolidation (Kirkpatrick et al. 2017, arXiv:1612.00796): weights that mattered to the old task are held more firmly.

    The pull is applied after each step, exactly, and not as a loss: ``w = (w + lr*s*F*w0) / (1 + lr*s*F)``. A loss of this size would
    fill the clipped gradient and, divided by Adam's moments, swing about its goal; this form holds the weights at any strength, and at
    an infinite one they do not move. AdamW treats weight decay in the same way (Loshchilov and Hutter 2019, arXiv:1711.05101).
    """

    def __init__(self, model: nn.Module, fisher: Mapping[str, torch.Tensor], strength: float) -> None:
        self.anchors = {name: value.detach().clone() for name, value in model.named_parameters() if name in fisher}
        self.fisher = {name: fisher[name] for name in self.anchors}
        self.strength = strength

    @torch.no_grad()
    def hold(self, model: nn.Module, groups: Iterable[Mapping[str, Any]]) -> None:
        """Pull back what the last step moved; ``groups`` are the optimizer's, for their learning rates."""
        rates = {id(parameter): float(group["lr"]) for group in groups for parameter in group["params"]}
        for name, parameter in model.named_parameters():
            if name in self.fisher and id(parameter) in rates:
                anchor, fisher = (item[name].to(parameter.device) for item in (self.anchors, self.fisher))
                share = 1 / (1 + rates[id(parameter)] * self.strength * fisher)
                parameter.copy_(torch.lerp(anchor, parameter, share))
