"""Validation: loss and accuracy on the validation images, early stopping, divergence, and interpolation of weights (WiSE-FT)."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from edgetl.train.inputs.dataset import Batches
from edgetl.train.loop.losses import TASK, TaskLoss

VALIDATIONS = 20
# Steps over which the loss is averaged to detect divergence, and before it is checked at all.
LOSS_MEMORY = 20
# A smoothed loss above this many times that of a random prediction, and that of the first step, has diverged.
DIVERGED = 5.0
INTERPOLATION_WEIGHTS = (0.2, 0.4, 0.6, 0.8)


@dataclass
class LoopState:
    """State of a training: figures, best weights and early stopping.

    Attributes:
        step: optimizer steps done.
        rows: figures of each validation.
        best_loss: the lowest validation loss.
        best: the weights that had it.
        waited: validations since.
        first_loss: task loss of the first step; high where BatchNorm gets images unlike those it was trained on, but only briefly.
        recent_loss: smoothed task loss of the last steps.
        correct, seen: correct predictions and images since the last validation.
        sums: of each loss term over those images.
        head_penalty: of the linear probe that fitted the head, for the run's record.
        interpolation_weight: of the tuned weights in the result; 1 unless they were interpolated with the starting ones.
    """

    step: int = 0
    rows: list[dict[str, float]] = field(default_factory=list)
    best_loss: float = math.inf
    best: dict[str, torch.Tensor] = field(default_factory=dict)
    waited: int = 0
    first_loss: float | None = None
    recent_loss: float | None = None
    correct: float = 0.0
    seen: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)
    head_penalty: float | None = None
    interpolation_weight: float = 1.0

    def add_step(self, losses: Mapping[str, torch.Tensor], correct: float, seen: int) -> None:
        """Count a step: ``losses`` are means over ``seen`` images, by name, and ``correct`` of these are predicted correctly."""
        means = {name: float(value.detach()) for name, value in losses.items()}
        self.step += 1
        self.correct, self.seen = self.correct + correct, self.seen + seen
        self.sums = {name: self.sums.get(name, 0.0) + value * seen for name, value in means.items()}
        loss = means[TASK]
        self.first_loss = loss if self.first_loss is None else self.first_loss
        self.recent_loss = loss if self.recent_loss is None else self.recent_loss + (loss - self.recent_loss) / LOSS_MEMORY

    def diverged(self, chance: float) -> bool:
        """True if the smoothed task loss is far above ``chance``, the loss of a random prediction, and above that of the first step."""
        assert self.recent_loss is not None and self.first_loss is not None
        return self.step > LOSS_MEMORY and self.recent_loss > DIVERGED * max(chance, self.first_loss)

    def add_validation(self, result: tuple[float, float], network: nn.Module, rates: Mapping[str, float]) -> None:
        """Add a row with the loss and accuracy of ``network``, and keep its weights if they are the best so far."""
        loss, accuracy = result
        seen = max(1.0, self.seen)
        means = {name: value / seen for name, value in self.sums.items()}
        figures = {"train_loss": means.pop(TASK), "train_accuracy": self.correct / seen}
        terms = {f"loss/{name}": value for name, value in means.items()}
        self.rows.append({"step": self.step, **figures, **terms, "val_loss": loss, "val_accuracy": accuracy, **rates})
        self.correct, self.seen, self.sums = 0.0, 0.0, {}
        if loss < self.best_loss:
            self.best_loss, self.waited = loss, 0
            self.best = copy.deepcopy({key: value.detach().cpu() for key, value in network.state_dict().items()})
        else:
            self.waited += 1


def validate(network: nn.Module, batches: Batches, loss: TaskLoss) -> tuple[float, float]:
    """Mean loss (without smoothing) and accuracy; every module stays in the mode that it was in."""
    device = next(network.parameters()).device
    modes = [module.training for module in network.modules()]
    network.eval()
    total = correct = count = 0.0
    with torch.inference_mode():
        for images, labels in batches:
            logits, targets = network(images.to(device)), labels.to(device)
            total += float(loss.validation(logits, targets))
            correct += float(loss.correct(logits, targets))
            count += len(labels)
    for module, mode in zip(network.modules(), modes, strict=True):
        module.training = mode
    return total / count, correct / count


def interpolate(network: nn.Module, state: LoopState, start: Mapping[str, torch.Tensor], batches: Batches, loss: TaskLoss) -> None:
    """Interpolate between starting and tuned weights, with the weight of the lowest validation loss (WiSE-FT: Wortsman et al. 2022,
    arXiv:2109.01903).

    The head stays the tuned one: it was fitted on the starting features, and fits both.

    Args:
        network: any weights; it is left with the last ones that were tried.
        state: its best weights, loss and interpolation weight are updated.
        start: starting weights by name, without the head's.
        batches: of validation images.
        loss: of the task.
    """
    tuned = state.best
    for weight in INTERPOLATION_WEIGHTS:
        mixed = {key: torch.lerp(start[key].cpu(), value, weight) if key in start else value for key, value in tuned.items()}
        network.load_state_dict(mixed)
        found, _ = validate(network, batches, loss)
        if found < state.best_loss:
            state.best_loss, state.interpolation_weight, state.best = found, weight, mixed
