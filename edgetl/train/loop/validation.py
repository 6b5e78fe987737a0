"""Validation: loss and accuracy on validation images, early stopping, divergence check, and weight interpolation (WiSE-FT)."""

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
# Steps over which the loss is smoothed for the divergence check, and steps before the first check.
LOSS_MEMORY = 20
# Training has diverged if the smoothed loss exceeds this multiple of both the loss of a random prediction and the first step's loss.
DIVERGED = 5.0
INTERPOLATION_WEIGHTS = (0.2, 0.4, 0.6, 0.8)


@dataclass
class LoopState:
    """State of the training loop: metrics, best weights and early stopping.

    Attributes:
        step: Optimizer steps done.
        rows: Metrics of each validation.
        best_loss: Lowest validation loss.
        best: Weights with this loss.
        waited: Number of validations since then.
        first_loss: Task loss of the first step. It can be high for a few steps if BatchNorm is trained on images that differ from the
            pretraining images.
        recent_loss: Smoothed task loss of the last steps.
        correct: Number of correct predictions since the last validation.
        seen: Number of training images since the last validation.
        sums: Sum of each loss term over these images.
        head_penalty: L2 penalty of the linear probe that fitted the head, for the run record.
        interpolation_weight: Weight of the fine-tuned weights in the result, 0..1. It is 1 without interpolation.
        unreadable: Keys of streamed images that cannot be decoded.
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
    unreadable: list[str] = field(default_factory=list)

    def add_step(self, losses: Mapping[str, torch.Tensor], correct: float, seen: int) -> None:
        """Record one training step.

        Args:
            losses: Loss terms by name, means over the images of the step.
            correct: Number of correct predictions.
            seen: Number of images.
        """
        means = {name: float(value.detach()) for name, value in losses.items()}
        self.step += 1
        self.correct, self.seen = self.correct + correct, self.seen + seen
        self.sums = {name: self.sums.get(name, 0.0) + value * seen for name, value in means.items()}
        loss = means[TASK]
        self.first_loss = loss if self.first_loss is None else self.first_loss
        self.recent_loss = loss if self.recent_loss is None else self.recent_loss + (loss - self.recent_loss) / LOSS_MEMORY

    def diverged(self, chance: float) -> bool:
        """Return True if training has diverged.

        The smoothed task loss is compared with ``chance``, the loss of a random prediction, and with the loss of the first step.
        """
        assert self.recent_loss is not None and self.first_loss is not None
        return self.step > LOSS_MEMORY and self.recent_loss > DIVERGED * max(chance, self.first_loss)

    def add_validation(self, result: tuple[float, float] | None, network: nn.Module, rates: Mapping[str, float]) -> None:
        """Record a validation, and copy the weights of ``network`` if they are the best so far.

        Args:
            result: Loss and accuracy, or None without validation images. The newest weights are then the best.
            network: Network that was validated.
            rates: Learning rates by name.
        """
        seen = max(1.0, self.seen)
        means = {name: value / seen for name, value in self.sums.items()}
        metrics = {"train_loss": means.pop(TASK), "train_accuracy": self.correct / seen}
        terms = {f"loss/{name}": value for name, value in means.items()}
        validation = {"val_loss": result[0], "val_accuracy": result[1]} if result else {}
        self.rows.append({"step": self.step, **metrics, **terms, **validation, **rates})
        self.correct, self.seen, self.sums = 0.0, 0.0, {}
        if result is None or result[0] < self.best_loss:
            self.best_loss, self.waited = result[0] if result else math.inf, 0
            self.best = copy.deepcopy({key: value.detach().cpu() for key, value in network.state_dict().items()})
        else:
            self.waited += 1


def validate(network: nn.Module, batches: Batches | None, loss: TaskLoss) -> tuple[float, float] | None:
    """Compute the mean loss (without label smoothing) and the accuracy. The mode of every module (training or evaluation) is restored.

    Returns:
        Loss and accuracy, or None without validation images (``batches`` is None).
    """
    if batches is None:
        return None
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


def interpolate(network: nn.Module, state: LoopState, start: Mapping[str, torch.Tensor], batches: Batches | None, loss: TaskLoss) -> None:
    """Interpolate between starting and fine-tuned weights (WiSE-FT: Wortsman et al. 2022, arXiv:2109.01903).

    The interpolation weight with the lowest validation loss is chosen. The head is not interpolated: it was fitted on the starting
    features before fine-tuning, and fits both.

    Args:
        network: Network with any weights. Its weights are overwritten.
        state: Its best weights, loss and interpolation weight are updated.
        start: Starting weights by name, without the head.
        batches: Validation batches.
        loss: Loss of the task.
    """
    tuned = state.best
    for weight in INTERPOLATION_WEIGHTS:
        mixed = {key: torch.lerp(start[key].cpu(), value, weight) if key in start else value for key, value in tuned.items()}
        network.load_state_dict(mixed)
        found = validate(network, batches, loss)
        if found and found[0] < state.best_loss:
            state.best_loss, state.interpolation_weight, state.best = found[0], weight, mixed
