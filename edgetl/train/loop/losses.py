"""Loss functions: the interface of loss terms, and the losses of classification, multi-label, regression and ordinal tasks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, assert_never

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from timm.loss import AsymmetricLossMultiLabel
from torch import nn

from edgetl.data.loading import labels_of, truth_of
from edgetl.data.split import Splits
from edgetl.train.config.options import OptimConfig
from edgetl.train.config.tasks import TOLERANCE_SHARE, value_scale
from edgetl.train.heads.linear import class_weights

TASK = "task"


@dataclass(frozen=True)
class StepOutputs:
    """Inputs and outputs of one training step.

    Attributes:
        images: float32 ``[batch, 3, H, W]``, or cached activations of the frozen layers.
        targets: int64 ``[batch]`` (classes) or float32 ``[batch, labels]``. A negative class marks a replayed image of a class that the
            new task does not have.
        logits: float32 ``[batch, classes]``.
        mixed_targets: Targets of the images that mixup added, or None without mixup.
        mixup_weight: Weight of ``targets`` in the loss, 0..1. It is 1 without mixup.
    """

    images: torch.Tensor
    targets: torch.Tensor
    logits: torch.Tensor
    mixed_targets: torch.Tensor | None = None
    mixup_weight: float = 1.0


class LossTerm(Protocol):
    """Term of the loss. The training loop adds ``weight`` times its value."""

    weight: float

    def __call__(self, step: StepOutputs, /) -> torch.Tensor:
        """Compute the loss: a scalar, mean over the batch."""


class ProximalTerm(Protocol):
    """Proximal term: changes the weights directly after each optimizer step, without a gradient."""

    def __call__(self, network: nn.Module, optimizer: torch.optim.Optimizer, /) -> None:
        """Change the weights of ``network`` in place."""


class TaskLoss(Protocol):
    """Loss of a task. ``targets`` is int64 ``[batch]`` (classes) or float32 ``[batch, labels]``."""

    chance: float
    """Loss of a random prediction."""

    def __call__(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Compute the mean loss of a training step."""

    def validation(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Compute the summed loss of validation images, without label smoothing and class weights."""

    def correct(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Count correct predictions. A multi-label prediction is correct if all its labels are."""


class TaskTerm:
    """Loss term of the task. It covers the images of new classes, with mixup.

    Args:
        loss: Loss of the task.
        weight: Weight of the term. It is below 1 if there is a teacher.
        replay: True if batches contain replayed images. Those with a negative class are ignored.
    """

    def __init__(self, loss: TaskLoss, *, weight: float = 1.0, replay: bool = False) -> None:
        self.loss = loss
        self.weight = weight
        self.replay = replay

    def __call__(self, step: StepOutputs, /) -> torch.Tensor:
        logits, targets = self.new_images(step)
        loss = self.loss(logits, targets)
        if step.mixed_targets is not None and step.mixup_weight < 1.0:
            loss = step.mixup_weight * loss + (1 - step.mixup_weight) * self.loss(step.logits, step.mixed_targets)
        return loss

    def count_correct(self, step: StepOutputs) -> tuple[float, int]:
        """Count the correct predictions for images of new classes, and these images."""
        logits, targets = self.new_images(step)
        return float(self.loss.correct(logits, targets)), len(targets)

    def new_images(self, step: StepOutputs) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits and targets of the images of new classes."""
        if not self.replay:
            return step.logits, step.targets
        new = step.targets >= 0
        return step.logits[new], step.targets[new]


class ClassLoss(nn.Module):
    """Cross-entropy loss for classification."""

    def __init__(self, classes: int, *, smoothing: float = 0.0, weights: NDArray[np.float32] | None = None) -> None:
        super().__init__()
        self.chance = math.log(max(2, classes))
        self.loss = nn.CrossEntropyLoss(None if weights is None else torch.from_numpy(weights), label_smoothing=smoothing)

    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Compute the mean loss of a training step."""
        loss: torch.Tensor = self.loss(logits, targets)
        return loss

    def validation(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Compute the summed loss of validation images."""
        return F.cross_entropy(logits, targets, reduction="sum")

    def correct(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Count correct predictions."""
        return (logits.argmax(dim=1) == targets).sum()


class LabelLoss(nn.Module):
    """Multi-label loss: binary cross-entropy, or the asymmetric loss (Ridnik et al. 2021, arXiv:2009.14119) with the paper's constants.

    A prediction is correct if it is correct for all labels at a threshold of 0.5.
    """

    weights: torch.Tensor | None

    def __init__(self, *, smoothing: float = 0.0, weights: NDArray[np.float32] | None = None, asymmetric: bool = False) -> None:
        super().__init__()
        self.chance = math.log(2)
        self.smoothing = smoothing
        self.asymmetric = AsymmetricLossMultiLabel(gamma_neg=4, gamma_pos=0, clip=0.05, reduction="mean") if asymmetric else None
        self.register_buffer("weights", None if weights is None else torch.from_numpy(weights), persistent=False)

    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Compute the mean loss of a training step."""
        if self.asymmetric is not None:
            loss: torch.Tensor = self.asymmetric(logits, targets)
            return loss
        smoothed = targets * (1 - self.smoothing) + self.smoothing / 2
        return F.binary_cross_entropy_with_logits(logits, smoothed, pos_weight=self.weights)

    def validation(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Compute the summed loss of validation images."""
        mean = F.binary_cross_entropy_with_logits(logits, targets) if self.asymmetric is None else self.asymmetric(logits, targets)
        return mean * len(targets)

    def correct(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Count correct predictions."""
        return ((logits > 0) == (targets > 0)).all(dim=1).sum()


class ValueLoss(nn.Module):
    """Regression loss: mean squared error or Huber loss of standardized values. ``tolerance`` is also standardized."""

    def __init__(self, mean: float, spread: float, *, tolerance: float, huber: bool = False) -> None:
        super().__init__()
        self.chance = 1.0
        self.mean, self.spread, self.tolerance, self.huber = mean, spread, tolerance, huber

    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Compute the mean loss of a training step."""
        standardized = (targets - self.mean) / self.spread
        return F.huber_loss(logits, standardized) if self.huber else F.mse_loss(logits, standardized)

    def validation(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Compute the summed loss of validation images."""
        return self.forward(logits, targets) * len(targets)

    def correct(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Count correct predictions."""
        return ((logits - (targets - self.mean) / self.spread).abs() <= self.tolerance).sum()


def make_task_loss(splits: Splits, optim: OptimConfig, *, smoothing: float, balanced: bool) -> ClassLoss | LabelLoss | ValueLoss:
    """Make the loss for the task of ``splits``.

    Args:
        splits: Images and labels. The training images determine class weights and the scale of values.
        optim: Kind of loss, and tolerance.
        smoothing: Label smoothing, 0..1.
        balanced: Give rare classes, or positive labels, a higher weight.
    """
    folder = splits.folder
    match folder.task:
        case "classification":
            weights = balanced_weights(splits) if balanced else None
            return ClassLoss(len(folder.labels), smoothing=smoothing, weights=weights)
        case "multi-label":
            weights = presence_weights(truth_of(splits.train)) if balanced else None
            return LabelLoss(smoothing=smoothing, weights=weights, asymmetric=optim.multilabel_loss == "asymmetric")
        case "regression" | "ordinal":
            mean, spread = value_scale(splits)
            tolerance = 0.5 if folder.task == "ordinal" else optim.tolerance or TOLERANCE_SHARE * spread
            return ValueLoss(mean, spread, tolerance=tolerance / spread, huber=optim.regression_loss == "huber")
        case "anomaly":
            raise AssertionError("edgetl.train.workflows.anomaly fits a detector")
        case _:
            assert_never(folder.task)


def balanced_weights(splits: Splits) -> NDArray[np.float32]:
    """Compute class weights, float32 ``[classes]``, inverse to the class frequency in all training images."""
    if splits.shards is None:
        return class_weights(labels_of(splits.train))
    counts = np.array(splits.shards.class_counts, np.float32)
    weights: NDArray[np.float32] = counts.sum() / (np.count_nonzero(counts) * np.maximum(counts, 1))
    return weights


def presence_weights(truth: NDArray[np.float64]) -> NDArray[np.float32]:
    """Compute the weight of each positive label that balances positive and negative images.

    Args:
        truth: float64 ``[n, labels]``. A value above 0 is positive.

    Returns:
        float32 ``[labels]``.
    """
    present = (truth > 0).sum(axis=0)
    return np.where(present > 0, np.maximum(len(truth) - present, 1) / np.maximum(present, 1), 1.0).astype(np.float32)
