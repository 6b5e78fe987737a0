"""What gradient steps lower and validations judge, one objective for each task."""

from __future__ import annotations

import math
from typing import Protocol, assert_never

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from edgetl.data.loading import labels_of, truth_of
from edgetl.data.split import Splits
from edgetl.train.config.options import TrainConfig
from edgetl.train.config.plan import Plan
from edgetl.train.config.tasks import TOLERANCE_SHARE, value_scale
from edgetl.train.heads.linear import class_weights

# Of the asymmetric loss (Ridnik et al. 2021, arXiv:2009.14119): exponents for absent and present labels, and the score below which an
# absent label costs nothing.
GAMMA_ABSENT, GAMMA_PRESENT, MARGIN = 4.0, 0.0, 0.05


class Objective(Protocol):
    """A loss that knows its task. ``truth`` is int64 ``[batch]`` of classes, else float32 ``[batch, labels]``."""

    chance: float
    """What answering at random costs."""

    def __call__(self, logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        """The mean loss of a training step."""

    def judge(self, logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        """The summed loss of validation images, without smoothing and weights."""

    def right(self, logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        """Number of images that are answered wholly right."""


class Classes(nn.Module):
    """Cross-entropy."""

    def __init__(self, classes: int, *, smoothing: float = 0.0, weights: NDArray[np.float32] | None = None) -> None:
        super().__init__()
        self.chance = math.log(max(2, classes))
        self.loss = nn.CrossEntropyLoss(None if weights is None else torch.from_numpy(weights), label_smoothing=smoothing)

    def forward(self, logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        loss: torch.Tensor = self.loss(logits, truth)
        return loss

    def judge(self, logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits, truth, reduction="sum")

    def right(self, logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        return (logits.argmax(dim=1) == truth).sum()


class Labels(nn.Module):
    """Binary cross-entropy of each label, or the asymmetric loss; an answer is right when all labels are, at a score of a half."""

    weights: torch.Tensor | None

    def __init__(self, *, smoothing: float = 0.0, weights: NDArray[np.float32] | None = None, asymmetric: bool = False) -> None:
        super().__init__()
        self.chance = math.log(2)
        self.smoothing = smoothing
        self.asymmetric = asymmetric
        self.register_buffer("weights", None if weights is None else torch.from_numpy(weights), persistent=False)

    def forward(self, logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        if self.asymmetric:
            return asymmetric_loss(logits, truth)
        smoothed = truth * (1 - self.smoothing) + self.smoothing / 2
        return F.binary_cross_entropy_with_logits(logits, smoothed, pos_weight=self.weights)

    def judge(self, logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        mean = asymmetric_loss(logits, truth) if self.asymmetric else F.binary_cross_entropy_with_logits(logits, truth)
        return mean * len(truth)

    def right(self, logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        return ((logits > 0) == (truth > 0)).all(dim=1).sum()


class Numbers(nn.Module):
    """Squared or Huber's error of standardised numbers; ``tolerance`` is standardised too."""

    def __init__(self, mean: float, spread: float, *, tolerance: float, huber: bool = False) -> None:
        super().__init__()
        self.chance = 1.0
        self.mean, self.spread, self.tolerance, self.huber = mean, spread, tolerance, huber

    def forward(self, logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        wanted = (truth - self.mean) / self.spread
        return F.huber_loss(logits, wanted) if self.huber else F.mse_loss(logits, wanted)

    def judge(self, logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        return self.forward(logits, truth) * len(truth)

    def right(self, logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        return ((logits - (truth - self.mean) / self.spread).abs() <= self.tolerance).sum()


def make_objective(splits: Splits, plan: Plan, config: TrainConfig) -> Objective:
    """The objective of the task that ``splits`` have labels for."""
    folder, balanced = splits.folder, config.data.balance == "loss"
    match folder.task:
        case "classification":
            weights = class_weights(labels_of(splits.train)) if balanced else None
            return Classes(len(folder.labels), smoothing=plan.label_smoothing, weights=weights)
        case "multi-label":
            weights = presence_weights(truth_of(splits.train)) if balanced else None
            return Labels(smoothing=plan.label_smoothing, weights=weights, asymmetric=config.optim.multilabel_loss == "asymmetric")
        case "regression" | "ordinal":
            mean, spread = value_scale(splits)
            within = 0.5 if folder.task == "ordinal" else config.optim.tolerance or TOLERANCE_SHARE * spread
            return Numbers(mean, spread, tolerance=within / spread, huber=config.optim.regression_loss == "huber")
        case _:
            assert_never(folder.task)


def presence_weights(truth: NDArray[np.float64]) -> NDArray[np.float32]:
    """Float32 ``[labels]``: what a present label weighs so that presence and absence count the same; ``truth`` ``[n, labels]``."""
    present = (truth > 0).sum(axis=0)
    return np.where(present > 0, np.maximum(len(truth) - present, 1) / np.maximum(present, 1), 1.0).astype(np.float32)


def asymmetric_loss(logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """The mean asymmetric loss of logits and labels ``[batch, labels]``: easy absent labels weigh little, sure ones nothing.

    Ridnik et al. 2021 (arXiv:2009.14119), equations 5 to 7, with the paper's constants; the mean and not the sum over the labels.
    """
    present = torch.sigmoid(logits)
    absent = (present - MARGIN).clamp(min=0)
    of_present = truth * (1 - present) ** GAMMA_PRESENT * F.logsigmoid(logits)
    of_absent = (1 - truth) * absent**GAMMA_ABSENT * torch.log((1 - absent).clamp(min=1e-8))
    return -(of_present + of_absent).mean()
