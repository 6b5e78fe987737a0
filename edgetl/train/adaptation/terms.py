"""Loss terms of a domain adaptation: unlabeled target images, and labeled images of the training."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn

from edgetl.train.adaptation.losses import class_confusion, entropy, information_loss
from edgetl.train.config.adaptation.options import Method
from edgetl.train.inputs.dataset import Batches
from edgetl.train.loop.losses import StepOutputs

# Weight of the cross-entropy with pseudo-labels beside the information loss, as in SHOT (Liang et al. 2020).
PSEUDO_LABEL_WEIGHT = 0.3


class TargetLoss:
    """Loss of unlabeled target images, in the interface of a task loss. The target of an image is its position among the target images.

    Args:
        method: ``mcc`` or ``shot``.
        pseudo_labels: int64 ``[images]``, class of each target image. ``shot`` trains on them; metrics compare predictions with them.
        classes: number of classes.
    """

    def __init__(self, method: Method, pseudo_labels: torch.Tensor, classes: int) -> None:
        self.method = method
        self.pseudo_labels = pseudo_labels
        self.chance = math.log(classes)

    def __call__(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Compute the mean loss of a training step."""
        if self.method == "mcc":
            return class_confusion(logits)
        return information_loss(logits) + PSEUDO_LABEL_WEIGHT * F.cross_entropy(logits, self._classes(targets))

    def validation(self, logits: torch.Tensor, _targets: torch.Tensor) -> torch.Tensor:
        """Compute the summed entropy of the scores. It is reported and selects nothing."""
        return entropy(logits) * len(logits)

    def correct(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Count the predictions that agree with the pseudo-labels."""
        return (logits.argmax(dim=1) == self._classes(targets)).sum()

    def _classes(self, positions: torch.Tensor) -> torch.Tensor:
        return self.pseudo_labels.to(positions.device)[positions]


class SourceTerm:
    """Loss term of the labeled images of the training: cross-entropy of one more batch in each step.

    It is a forward pass of its own, so that BatchNorm normalizes the images of each domain with their own statistics.

    Args:
        network: network that is trained, on its device.
        batches: as many batches of images and classes as there are steps.
        smoothing: label smoothing.
    """

    weight = 1.0

    def __init__(self, network: nn.Module, batches: Batches, *, smoothing: float) -> None:
        self.network = network
        self.batches: Iterator[tuple[torch.Tensor, torch.Tensor]] = iter(batches)
        self.smoothing = smoothing

    def __call__(self, step: StepOutputs, /) -> torch.Tensor:
        images, classes = (item.to(step.logits.device) for item in next(self.batches))
        return F.cross_entropy(self.network(images), classes, label_smoothing=self.smoothing)
