"""What is looked at while a network is tuned: losses, validations, saved states, and when to end."""

from __future__ import annotations

import copy
import math
import signal
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn

from edgetl.core.progress import Progress
from edgetl.errors import CancelledError, StoppedError, TrainingError
from edgetl.train.config.options import TrainConfig
from edgetl.train.inputs.dataset import Batches
from edgetl.train.loop.checkpoints import Checkpoints
from edgetl.train.loop.losses import Objective
from edgetl.train.loop.processes import StopRequest
from edgetl.train.loop.ranks import any_says, first_says, rank
from edgetl.train.loop.resume import resume_command

if TYPE_CHECKING:
    from edgetl.train.loop.loop import Tuning

VALIDATIONS = 20
# Steps over which the loss is averaged to judge it, and before it is judged at all.
LOSS_MEMORY = 20
# A smoothed loss above this many times that of answering at random, and that of the first step, has diverged.
DIVERGED = 5.0


@dataclass
class History:
    """What a training has seen so far.

    Attributes:
        rows: figures of each validation.
        best_loss: the lowest validation loss.
        best: the weights that had it.
        waited: validations since.
        first: loss of the first step; high where BatchNorm meets images unlike those it was trained on, and soon mended.
        recent: smoothed loss of the last steps.
        right, seen, lost: training images answered rightly, all of them, and the sum of losses since the last validation.
        head_penalty: of the probe that fitted the head.
        interpolation_weight: of the tuned weights in the result; 1 unless they were mixed with the starting ones.
        sweep: learning rates and losses of the range test (``--lr auto``).
    """

    rows: list[dict[str, float]] = field(default_factory=list)
    best_loss: float = math.inf
    best: dict[str, torch.Tensor] = field(default_factory=dict)
    waited: int = 0
    first: float | None = None
    recent: float | None = None
    right: float = 0.0
    seen: float = 0.0
    lost: float = 0.0
    head_penalty: float | None = None
    interpolation_weight: float = 1.0
    sweep: list[tuple[float, float]] = field(default_factory=list)


def measure(model: nn.Module, val: Batches, objective: Objective) -> tuple[float, float]:
    """Loss (without smoothing) and share of images answered rightly; every module stays in the mode that it was in."""
    device = next(model.parameters()).device
    modes = [module.training for module in model.modules()]
    model.eval()
    lost = right = count = 0.0
    with torch.inference_mode():
        for images, labels in val:
            logits, truth = model(images.to(device)), labels.to(device)
            lost += float(objective.judge(logits, truth))
            right += float(objective.right(logits, truth))
            count += len(labels)
    for module, mode in zip(model.modules(), modes, strict=True):
        module.training = mode
    return lost / count, right / count


class Watch(Callback):
    """After each step: average, judge the loss, validate now and then, save, report, and stop when asked to."""

    def __init__(
        self, module: Tuning, history: History, val: Batches, config: TrainConfig, *,
        progress: Progress, checkpoints: Checkpoints | None, stop: StopRequest,
    ) -> None:  # fmt: skip
        self.module = module
        self.history = history
        self.val = val
        self.config = config
        self.progress = progress
        self.checkpoints = checkpoints
        self.stop = stop
        steps = module.plan.steps
        self.interval = max(1, math.ceil(steps / VALIDATIONS))
        self._saved = time.monotonic()

    def on_train_start(self, *_: Any) -> None:
        """Install the handlers of SIGTERM and SIGINT."""
        self.stop.install()

    def on_train_batch_end(self, trainer: L.Trainer, _module: L.LightningModule, outputs: Any, *_: Any) -> None:
        module, plan = self.module, self.module.plan
        step = module.step
        if module.average is not None:
            module.average.update(module.model)
        self._judge(float(outputs["loss"]), step, saved=self.checkpoints is not None and bool(self.history.best))
        self.progress("fine-tuning", step, plan.steps)
        due = step % self.interval == 0 or step == plan.steps
        if due:
            self._validate(step)
        # A control from random weights gets all of its steps: its validation loss falls late.
        ended = step == plan.steps or (self.history.waited >= self.config.optim.patience and plan.strategy != "scratch")
        asked = any_says(self.stop.asked, module.device)
        if (
            self.checkpoints
            and rank() == 0
            and (due or asked or time.monotonic() - self._saved > self.config.run.checkpoint_s)
            and not ended
        ):
            self._save()
        if asked and not ended:
            saved = self.checkpoints
            how = f" Its state is in {saved.folder}. Go on with: {resume_command(saved.out)}" if saved else ""
            kind = CancelledError if self.stop.number == signal.SIGINT else StoppedError
            raise kind(f"interrupted after step {step} of {plan.steps}.{how}")
        trainer.should_stop = ended

    def _judge(self, total: float, step: int, *, saved: bool) -> None:
        """Add up the training's figures, and end it when it diverged. ``total`` holds the guards' losses too."""
        right, count, loss = self.module.last
        history = self.history
        history.right, history.seen, history.lost = history.right + right, history.seen + count, history.lost + loss * count
        history.first = loss if history.first is None else history.first
        history.recent = loss if history.recent is None else history.recent + (loss - history.recent) / LOSS_MEMORY
        chance = self.module.objective.chance
        if not math.isfinite(total) or (step > LOSS_MEMORY and history.recent > DIVERGED * max(chance, history.first)):
            said = f"{loss:.3g}" if math.isfinite(loss) else str(loss)
            folder = self.checkpoints.folder if self.checkpoints else ""
            kept = f" The last good state is in {folder}; --overwrite begins again." if saved else ""
            raise TrainingError(
                f"training diverged: the loss was {said} at step {step}, and answering at random costs {chance:.2f}. "
                f"Lower --lr (now {self.module.plan.lr:g}) or use --strategy probe.{kept}"
            )

    def _validate(self, step: int) -> None:
        """Compare the averaged weights, or the plain ones where there are none, with the best so far."""
        judged = self.module.model if self.module.average is None else self.module.average.module
        loss, accuracy = first_says(*measure(judged, self.val, self.module.objective), device=self.module.device)
        history = self.history
        seen = max(1.0, history.seen)
        figures = {"train_loss": history.lost / seen, "train_accuracy": history.right / seen}
        history.rows.append({"step": step, **figures, "val_loss": loss, "val_accuracy": accuracy, **self.module.rates_of(step)})
        history.lost = history.right = history.seen = 0.0
        if loss < history.best_loss:
            history.best_loss, history.waited = loss, 0
            history.best = copy.deepcopy({key: value.detach().cpu() for key, value in judged.state_dict().items()})
        else:
            history.waited += 1

    def _save(self) -> None:
        assert self.checkpoints is not None
        self.checkpoints.save(self.module.state(self.history))
        self._saved = time.monotonic()
