"""Training loop: gradient descent with named loss terms, EMA, early stopping and checkpoints, on Lightning Fabric."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.fabric import Fabric
from timm.utils import ModelEmaV3
from torch import nn

from edgetl.core.progress import Progress, silent
from edgetl.errors import TrainingError, first_line
from edgetl.train.config.plan import Plan
from edgetl.train.inputs.augmentation import mixup
from edgetl.train.inputs.dataset import Batches
from edgetl.train.inputs.samplers import draw_seed
from edgetl.train.loop.checkpoints import Checkpoints, SavedState, capture, restore
from edgetl.train.loop.loggers import MetricLoggers
from edgetl.train.loop.losses import TASK, LossTerm, ProximalTerm, StepOutputs, TaskTerm
from edgetl.train.loop.optimizer import learning_rates, make_schedule, parameter_groups, trainable_stages
from edgetl.train.loop.processes import StopRequest
from edgetl.train.loop.resume import resume_command
from edgetl.train.loop.validation import VALIDATIONS, LoopState, validate
from edgetl.train.networks.stages import Stage, set_trainable

_log = logging.getLogger(__name__)

CLIP_NORM = 1.0


@dataclass(frozen=True)
class Objective:
    """Function that the loop minimizes.

    Attributes:
        task: the task's loss term, which validation uses too.
        others: further loss terms by name: ``distillation``, ``lwf``, ``l2sp``, ``replay``.
        proximal: pulls on the weights after each step.
    """

    task: TaskTerm
    others: Mapping[str, LossTerm] = field(default_factory=dict)
    proximal: Sequence[ProximalTerm] = ()

    @property
    def losses(self) -> dict[str, LossTerm]:
        """All loss terms, the task's first."""
        return {TASK: self.task, **self.others}


@dataclass(frozen=True)
class LoopSettings:
    """Values of one training: stages that ever train (the head last), steps and rates, seed, early stopping, compilation."""

    stages: tuple[Stage, ...]
    plan: Plan
    seed: int = 0
    patience: int = 5
    compile: bool = False


@dataclass(frozen=True)
class Session:
    """Surroundings of a training: processes and device, stop requests, saved states, loggers and progress."""

    fabric: Fabric
    stop: StopRequest = field(default_factory=StopRequest)
    checkpoints: Checkpoints | None = None
    loggers: MetricLoggers = field(default_factory=MetricLoggers)
    progress: Progress = silent


@torch.enable_grad()  # also where the caller computes without gradients
def run_loop(
    network: nn.Module, objective: Objective, data: tuple[Batches, Batches], settings: LoopSettings, session: Session, start: SavedState
) -> LoopState:
    """Train ``network`` in place until the last step, or until the validation loss has not fallen for ``patience`` validations.

    Args:
        network: on the device, in channels-last layout.
        objective: loss terms and proximal terms.
        data: training batches from the step of ``start`` on, and validation batches.
        settings: stages, plan, seed.
        session: device, checkpoints, loggers.
        start: saved state of a stopped training; without tensors, a new one.

    Raises:
        TrainingError: the loss diverged.
        StoppedError: a signal came; the state is saved.
    """
    plan, fabric, task, losses, checkpoints = settings.plan, session.fabric, objective.task.loss, objective.losses, session.checkpoints
    ema = ModelEmaV3(network, decay=plan.ema_decay) if plan.ema_decay else None
    optimizer = torch.optim.AdamW(parameter_groups(network, settings.stages, plan))
    state = restore(start, network, ema, optimizer)
    schedule = make_schedule(optimizer, plan, first=state.step)
    # Before the first stage is frozen: DDP synchronizes the parameters that require gradients now.
    model, optimizer = fabric.setup(_compiled(network, fabric.device) if settings.compile else network, optimizer)
    for images, targets in data[0]:
        network.train()
        set_trainable(network, trainable_stages(settings.stages, plan, state.step), freeze_batchnorm=plan.freeze_batchnorm)
        torch.manual_seed(draw_seed(settings.seed, state.step))  # dropout does not depend on where a training was resumed
        with fabric.autocast():
            outputs = _forward(model, fabric.to_device((images, targets)), plan.mixup)
            values = {name: loss(outputs) for name, loss in losses.items()}
            total = sum((losses[name].weight * value for name, value in values.items()), torch.zeros((), device=fabric.device))
        fabric.backward(total)
        fabric.clip_gradients(model, optimizer, max_norm=CLIP_NORM, error_if_nonfinite=False)
        optimizer.step()
        optimizer.zero_grad()
        for pull in objective.proximal:
            pull(network, optimizer)
        schedule.step()
        if ema:
            ema.update(network)
        state.add_step(values, *objective.task.count_correct(outputs))
        if not bool(total.detach().isfinite()) or state.diverged(task.chance):
            raise _diverged(state, float(values[TASK].detach()), task.chance, plan, checkpoints)
        session.progress("fine-tuning", state.step, plan.steps)
        last = state.step == plan.steps
        if due := last or state.step % math.ceil(plan.steps / VALIDATIONS) == 0:
            evaluated = ema.module if ema else network
            figures = fabric.broadcast(validate(evaluated, data[1], task))
            state.add_validation(figures, evaluated, learning_rates(optimizer, plan, state.step - 1))
            session.loggers.write(state.rows[-1:])
        if last or state.waited >= settings.patience:
            break
        stop = float(fabric.all_reduce(torch.tensor(float(session.stop.requested)), reduce_op="sum")) > 0
        if checkpoints and fabric.is_global_zero and (due or stop or checkpoints.due):
            checkpoints.save(capture(state, network, ema, optimizer))
        if stop:
            raise session.stop.error(f"interrupted after step {state.step} of {plan.steps}.{_where(checkpoints)}")
    return state


def _forward(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor], alpha: float) -> StepOutputs:
    """Outputs of ``model`` for images and targets, mixed where ``alpha`` (mixup) is above 0."""
    images, targets = batch
    if images.ndim == 4:  # cached activations may be rows of tokens
        images = images.contiguous(memory_format=torch.channels_last)
    if not alpha:
        return StepOutputs(images, targets, model(images))
    images, others, weight = mixup(images, targets, alpha)
    return StepOutputs(images, targets, model(images), others, weight)


def _where(checkpoints: Checkpoints | None) -> str:
    return f" Its state is in {checkpoints.folder}. Go on with: {resume_command(checkpoints.out)}" if checkpoints else ""


def _compiled(network: nn.Module, device: torch.device) -> nn.Module:
    """``network`` behind torch's compiler, or itself where there is none. Weights keep their names."""
    try:
        torch.compile(lambda value: value + 1)(torch.zeros(1, device=device))
    except torch._dynamo.exc.TorchDynamoException as error:
        _log.warning("--compile: torch's compiler cannot be used here; the training goes on without it: %s", first_line(error))
        return network
    compiled: Any = torch.compile(network)
    assert isinstance(compiled, nn.Module)
    return compiled


def _diverged(state: LoopState, loss: float, chance: float, plan: Plan, checkpoints: Checkpoints | None) -> TrainingError:
    shown = f"{loss:.3g}" if math.isfinite(loss) else str(loss)
    kept = f" The last good state is in {checkpoints.folder}; --overwrite begins again." if checkpoints and state.best else ""
    return TrainingError(
        f"training diverged: the loss was {shown} at step {state.step}, and a random prediction costs {chance:.2f}. "
        f"Lower --lr (now {plan.lr:g}) or use --strategy probe.{kept}"
    )
