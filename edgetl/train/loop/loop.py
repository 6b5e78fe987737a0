"""Training loop: gradient descent with named loss terms, EMA, early stopping and checkpoints. Uses Lightning Fabric."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from lightning_fabric import Fabric
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
LoopData: TypeAlias = tuple[Batches, Batches | None]


@dataclass(frozen=True)
class Objective:
    """Training objective: the sum of all loss terms, and the proximal terms.

    Attributes:
        task: Loss term of the task. Validation also uses it.
        others: Other loss terms by name: ``distillation``, ``lwf``, ``l2sp``, ``replay``.
        proximal: Proximal terms, applied to the weights after each step.
    """

    task: TaskTerm
    others: Mapping[str, LossTerm] = field(default_factory=dict)
    proximal: Sequence[ProximalTerm] = ()

    @property
    def losses(self) -> dict[str, LossTerm]:
        """All loss terms by name. The task's loss is the first."""
        return {TASK: self.task, **self.others}


@dataclass(frozen=True)
class LoopSettings:
    """Settings of one training.

    Attributes:
        stages: Stages that are trained at any step. The head is the last.
        plan: Steps, learning rates and regularization.
        seed: Random seed.
        patience: Early stopping: number of validations without a lower loss.
        compile: Compile the network with ``torch.compile``.
    """

    stages: tuple[Stage, ...]
    plan: Plan
    seed: int = 0
    patience: int = 5
    compile: bool = False


@dataclass(frozen=True)
class Session:
    """Runtime objects of a training: processes and device, stop requests, checkpoints, loggers and progress."""

    fabric: Fabric
    stop: StopRequest = field(default_factory=StopRequest)
    checkpoints: Checkpoints | None = None
    loggers: MetricLoggers = field(default_factory=MetricLoggers)
    progress: Progress = silent


@torch.enable_grad()  # the caller may have disabled gradients
def run_loop(
    network: nn.Module, objective: Objective, data: LoopData, settings: LoopSettings, session: Session, start: SavedState
) -> LoopState:
    """Train ``network`` in place until the last step, or until the validation loss has not decreased for ``patience`` validations.

    Args:
        network: Network on the device, in channels-last layout.
        objective: Loss terms and proximal terms.
        data: Training batches, starting at the step of ``start``, and validation batches. Without these, the last weights are the result.
        settings: Stages, plan, seed.
        session: Device, checkpoints, loggers.
        start: Saved state of a stopped training. Without tensors, a new training starts.

    Raises:
        TrainingError: If the loss diverges.
        StoppedError: After a signal. The state is saved.
    """
    plan, fabric, task, losses, checkpoints = settings.plan, session.fabric, objective.task.loss, objective.losses, session.checkpoints
    ema = ModelEmaV3(network, decay=plan.ema_decay) if plan.ema_decay else None
    optimizer = torch.optim.AdamW(parameter_groups(network, settings.stages, plan))
    state = restore(start, network, ema, optimizer)
    schedule = make_schedule(optimizer, plan, first=state.step)
    # Call setup before any stage is frozen, because DDP synchronizes the parameters that require gradients at this moment.
    model, optimizer = fabric.setup(_compiled(network, fabric.device) if settings.compile else network, optimizer)
    for images, targets in data[0]:
        network.train()
        set_trainable(network, trainable_stages(settings.stages, plan, state.step), freeze_batchnorm=plan.freeze_batchnorm)
        torch.manual_seed(draw_seed(settings.seed, state.step))  # dropout is then the same in a resumed training
        with fabric.autocast():
            outputs = _forward(model, fabric.to_device((images, targets)), plan.mixup)
            values = {name: loss(outputs) for name, loss in losses.items()}
            total = sum((losses[name].weight * value for name, value in values.items()), torch.zeros((), device=fabric.device))
        fabric.backward(total)
        fabric.clip_gradients(model, optimizer, max_norm=CLIP_NORM, error_if_nonfinite=False)
        optimizer.step()
        optimizer.zero_grad()
        for apply_proximal in objective.proximal:
            apply_proximal(network, optimizer)
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
            result = fabric.broadcast(validate(evaluated, data[1], task))
            state.add_validation(result, evaluated, learning_rates(optimizer, plan, state.step - 1))
            session.loggers.write(state.rows[-1:])
        if last or state.waited >= settings.patience:
            break
        stop = float(fabric.all_reduce(torch.tensor(float(session.stop.requested)), reduce_op="sum")) > 0
        if checkpoints and fabric.is_global_zero and (due or stop or checkpoints.due):
            checkpoints.save(capture(state, network, ema, optimizer))
        if stop:
            raise session.stop.error(f"interrupted after step {state.step} of {plan.steps}.{_resume_hint(checkpoints)}")
    return state


def _forward(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor], alpha: float) -> StepOutputs:
    """Run ``model`` on images and targets. Mixup is applied if ``alpha`` is above 0."""
    images, targets = batch
    if images.ndim == 4:  # cached activations may be tokens [batch, tokens, channels]
        images = images.contiguous(memory_format=torch.channels_last)
    if not alpha:
        return StepOutputs(images, targets, model(images))
    images, others, weight = mixup(images, targets, alpha)
    return StepOutputs(images, targets, model(images), others, weight)


def _resume_hint(checkpoints: Checkpoints | None) -> str:
    return f" The state is saved in {checkpoints.folder}. Resume with: {resume_command(checkpoints.out)}" if checkpoints else ""


def _compiled(network: nn.Module, device: torch.device) -> nn.Module:
    """Compile ``network`` with ``torch.compile``. If no compiler is available, return it unchanged. Weights keep their names."""
    try:
        torch.compile(lambda value: value + 1)(torch.zeros(1, device=device))
    except torch._dynamo.exc.TorchDynamoException as error:
        _log.warning("--compile: torch cannot compile on this machine. Training continues without it: %s", first_line(error))
        return network
    compiled: Any = torch.compile(network)
    assert isinstance(compiled, nn.Module)
    return compiled


def _diverged(state: LoopState, loss: float, chance: float, plan: Plan, checkpoints: Checkpoints | None) -> TrainingError:
    shown = f"{loss:.3g}" if math.isfinite(loss) else str(loss)
    kept = f" The last good state is in {checkpoints.folder}. Start again with --overwrite." if checkpoints and state.best else ""
    return TrainingError(
        f"training diverged at step {state.step}: the loss is {shown}, and a random prediction has a loss of {chance:.2f}. "
        f"Lower --lr (now {plan.lr:g}), or use --strategy probe.{kept}"
    )
