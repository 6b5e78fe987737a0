"""Fine-tuning by gradient steps from a fitted head (LP-FT: Kumar et al. 2022, arXiv:2202.10054), resumable at any step."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from timm.utils import ModelEmaV3
from torch import nn

from edgetl.data.split import Splits
from edgetl.errors import TrainingError
from edgetl.train.config.options import TrainConfig
from edgetl.train.config.plan import Plan
from edgetl.train.continual.lwf import Guards
from edgetl.train.continual.prepare import Protection
from edgetl.train.continual.teacher import Tutor, distillation
from edgetl.train.inputs.activation_cache import CacheOptions, Workplace
from edgetl.train.inputs.augmentation import make_augmentation, mirrors_well, mixup
from edgetl.train.inputs.batches import make_batches
from edgetl.train.inputs.dataset import Batches, TrainingBatches, TrainingImages
from edgetl.train.inputs.samplers import BatchOptions, draw_seed
from edgetl.train.loop.checkpoints import Checkpoints, State
from edgetl.train.loop.compiled import CompiledForward
from edgetl.train.loop.fitting import explained, fit, give_moments, moments
from edgetl.train.loop.loggers import Logs
from edgetl.train.loop.losses import Classes, Objective, make_objective
from edgetl.train.loop.lr_finder import sweep_rates, tell, with_sweep
from edgetl.train.loop.optimizer import planned, rate_factor
from edgetl.train.loop.processes import StopRequest
from edgetl.train.loop.ranks import rank, world
from edgetl.train.loop.validation import History, Watch, measure
from edgetl.train.networks.backbone import Backbone
from edgetl.train.networks.stages import HEAD, LATERALS, STEM, Stage, choose_stages, find_stages, set_trainable
from edgetl.train.networks.stochastic_depth import stochastic_depth

_log = logging.getLogger(__name__)

CLIP_NORM = 1.0
INTERPOLATION_WEIGHTS = (0.2, 0.4, 0.6, 0.8)


@dataclass(frozen=True)
class Lessons:
    """What is learned or protected beside the labels.

    Attributes:
        protection: for the guards against forgetting.
        tutor: whose answers are learned.
    """

    protection: Protection = field(default_factory=Protection)
    tutor: Tutor | None = None


def tune(
    backbone: Backbone,
    splits: Splits,
    plan: Plan,
    config: TrainConfig,
    place: Workplace,
    *,
    checkpoints: Checkpoints | None = None,
    head_penalty: float | None = None,
    lessons: Lessons | None = None,
) -> History:
    """Train ``backbone.model`` in place and leave it with the weights that had the lowest validation loss.

    Args:
        backbone: with a fitted head, unless it is trained from random weights.
        splits: ``train`` teaches, ``val`` chooses.
        plan: what to do.
        config: batch size, seed, patience.
        place: device, folder for temporary files, and who is told of each step.
        checkpoints: where the state is saved, and taken up again if there is one.
        head_penalty: of the probe that fitted the head, for the record.
        lessons: what else is learned or protected.

    Raises:
        TrainingError: the loss became infinite, not a number, or much larger than that of answering at random.
        StoppedError: the process was asked to end; the state is saved.
    """
    L.seed_everything(config.run.seed, verbose=False)
    more = lessons or Lessons()
    stages = find_stages(backbone.model, backbone.head_name)
    trained = choose_stages(stages, plan.unfreeze)
    state = checkpoints.newest() if checkpoints else None
    steps = range(state.step if state else 0, plan.steps)
    with _workshop(backbone, plan, config, place) as (stop, inside):
        prepared = _prepare(backbone, trained, splits, plan, config, steps=steps, place=inside, lessons=more)
        module = Tuning(prepared.backbone, trained, plan, config, make_objective(splits, plan, config), more)
        history = module.restore(state) if state else History(head_penalty=head_penalty)
        if state:
            _log.info("going on after step %d of %d", state.step, plan.steps)
        watch = Watch(module, history, prepared.val, config, progress=place.progress, checkpoints=checkpoints, stop=stop)
        _learn(module, prepared.train, watch, config, place)
    _keep_best(backbone, stages, history)
    return history


@contextmanager
def _workshop(backbone: Backbone, plan: Plan, config: TrainConfig, place: Workplace) -> Iterator[tuple[StopRequest, Workplace]]:
    """While entered: SIGTERM is a request, residual branches drop out, and there is a folder for temporary files."""
    with (
        explained(config.optim.batch_size),
        StopRequest() as stop,
        stochastic_depth(backbone.model, plan.drop_path),
        tempfile.TemporaryDirectory(dir=place.folder, prefix="activations-") as folder,
    ):
        yield stop, replace(place, folder=Path(folder))


def _learn(module: Tuning, train: Batches, watch: Watch, config: TrainConfig, place: Workplace) -> None:
    """Take the steps, at a rate that is looked for first where that was asked, and mix the result with the start where that was."""
    history = watch.history
    if config.optim.lr == "auto":
        _find_rate(module, history, train, config, place)
    logs = [Logs(config, place.folder, history)] if config.run.loggers else []
    fit(module, train, [watch, *logs], device=place.device, clip_norm=CLIP_NORM)
    if config.continual.wise_ft and module.anchors and history.best:
        _interpolate(module, history, watch.val)


def _find_rate(module: Tuning, history: History, train: Batches, config: TrainConfig, place: Workplace) -> None:
    """Set the plan's rates by a range test; a resumed training knows its own."""
    history.sweep = history.sweep or sweep_rates(module, train, device=place.device, clip_norm=CLIP_NORM, progress=place.progress)
    module.plan = with_sweep(module.plan, history.sweep, config)
    tell(module.plan)


def _keep_best(backbone: Backbone, stages: tuple[Stage, ...], history: History) -> None:
    if not history.best:
        raise TrainingError("the validation loss was never finite; lower --lr, or check the images with `edgetl evaluate`.")
    backbone.model.load_state_dict({**backbone.model.cpu().state_dict(), **history.best})
    set_trainable(backbone.model, stages, freeze_batchnorm=False)
    # As every other network lies in memory, so that the same kernels give the same bits.
    backbone.model.to(memory_format=torch.contiguous_format).eval()


def batch_options(config: TrainConfig, device: str) -> BatchOptions:
    """Options of drawing and loading batches."""
    return BatchOptions(
        batch_size=config.optim.batch_size,
        seed=config.run.seed,
        workers=config.data.workers,
        device=device,
        balanced=config.data.balance == "sampler",
        replay_fraction=config.continual.replay_fraction,
        shard=(rank(), world()),
    )


def _prepare(
    backbone: Backbone, trained: tuple[Stage, ...], splits: Splits, plan: Plan, config: TrainConfig, *,
    steps: range, place: Workplace, lessons: Lessons,
) -> TrainingBatches:  # fmt: skip
    """The trained network and its batches: of activations where the frozen layers can run ahead."""
    flip = mirrors_well(splits.folder.labels) if config.data.flip is None else config.data.flip
    images = TrainingImages(splits.train, splits.val or splits.train, lessons.protection.replay)
    # A teacher takes images, not activations, and mixup comes before it.
    ahead = config.run.cache_views and not plan.mixup and not lessons.tutor and plan.strategy == "partial" and trained[0].name != STEM
    cache = CacheOptions(trained, config.run.cache_views, config.run.cache_gb, place.folder, place.progress) if ahead and steps else None
    augment = make_augmentation(plan.augment, backbone.spec, flip=flip)
    return make_batches(backbone, images, augment, batch_options(config, place.device), steps=steps, cache=cache)


def parameter_groups(model: nn.Module, stages: Sequence[Stage], plan: Plan) -> list[dict[str, Any]]:
    """Optimizer groups, two a stage, each with a learning rate of its own in ``lr``.

    timm's ``lr_scale`` would be ignored by torch's optimizers. From the backbone's last stage (``backbone_lr``) the rate falls to
    ``backbone_lr * lr_decay`` at the lowest stage of ``stages``: a fixed factor a stage would mean another end for each depth. Lateral
    connections of columns learn at ``backbone_lr``. One-dimensional parameters (norms, biases) get no weight decay.

    Args:
        model: the network.
        stages: those that ever train, the head last.
        plan: the rates.
    """
    named = dict(model.named_parameters())
    trunk = [stage for stage in stages if stage.name not in (LATERALS, HEAD)]
    groups = []
    for stage in stages:
        if stage.name == HEAD:
            lr = plan.lr
        elif stage.name == LATERALS:
            lr = plan.backbone_lr
        else:
            lr = plan.backbone_lr * plan.lr_decay ** ((len(trunk) - 1 - trunk.index(stage)) / max(1, len(trunk) - 1))
        for decays in (True, False):
            parameters = [named[name] for name in stage.parameters if (named[name].ndim > 1) == decays]
            if parameters:
                decay = plan.weight_decay if decays else 0.0
                groups.append({"params": parameters, "lr": lr, "weight_decay": decay, "stage": stage.name})
    return groups


class Tuning(L.LightningModule):
    """The task's objective, AdamW and the plan's learning rates by step, over the stages that a plan lets learn."""

    def __init__(
        self, backbone: Backbone, trained: tuple[Stage, ...], plan: Plan, config: TrainConfig,
        objective: Objective | None = None, lessons: Lessons | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        # Lightning leaves each module in the mode that it finds. Channels last: a step takes two thirds of the time, on a CPU too.
        self.model = backbone.model.train().to(memory_format=torch.channels_last)
        self.plan = plan
        self.seed = config.run.seed
        self.first = 0
        self.trained = trained
        self.compiled = CompiledForward(self.model) if config.run.compile else None
        self.average = ModelEmaV3(self.model, decay=plan.ema_decay) if plan.ema_decay else None
        self.objective = objective or Classes(backbone.head.out_features, smoothing=plan.label_smoothing)
        self.l2sp = config.continual.l2sp
        self.anchors = self._trunk_weights() if config.continual.l2sp or config.continual.wise_ft else {}
        self.moments: dict[str, torch.Tensor] = {}
        more = lessons or Lessons()
        self.guards = Guards(self.model, backbone.head_name, more.protection, config)
        # In a tuple: the teacher is no part of what is trained or saved.
        self.tutored = (
            distillation(self.model, backbone.spec, self.objective, more.tutor, config.distillation.weight) if more.tutor else None,
        )
        self.last = (0.0, 0.0, 0.0)  # of the last batch: images answered rightly, all of them, and the loss without guards

    def groups_of(self, model: nn.Module) -> list[dict[str, Any]]:
        """The optimizer's groups over the parameters of ``model``: this one, or a copy."""
        return parameter_groups(model, self.trained, self.plan)

    def _trunk_weights(self) -> dict[str, torch.Tensor]:
        """Copies of the weights that learn, without the head's."""
        names = {name for stage in self.trained if stage.name != HEAD for name in stage.parameters}
        return {name: value.detach().clone() for name, value in self.model.named_parameters() if name in names}

    def _distance(self) -> torch.Tensor:
        """Half the squared distance of the trunk from where it started (L2-SP: Li et al. 2018, arXiv:1802.01483)."""
        parameters = dict(self.model.named_parameters())
        parts = [(parameters[name] - anchor).square().sum() for name, anchor in self.anchors.items()]
        return torch.stack(parts).sum() / 2

    @property
    def step(self) -> int:
        """Optimizer steps done, those before a resumption too."""
        return self.first + self.global_step

    def rates_of(self, step: int) -> dict[str, float]:
        """Learning rate of each stage in the step that was the ``step``-th, counted from 1: ``lr/head``, ``lr/stage4`` …"""
        groups = self.groups_of(self.model)
        return {f"lr/{group['stage']}": group["lr"] * rate_factor(self.plan, group["stage"], step - 1) for group in groups}

    def trained_at(self, step: int) -> tuple[Stage, ...]:
        """The stages that learn at ``step``: in ``progressive`` the head alone at first, then one more in each equal interval."""
        if step < self.plan.frozen_steps:
            return self.trained[-1:]
        if self.plan.strategy != "progressive":
            return self.trained
        trunk = len(self.trained) - 1
        opened = min(trunk, step * (trunk + 1) // max(1, self.plan.steps))
        return self.trained[trunk - opened :]

    def on_train_batch_start(self, *_: Any) -> None:
        """Freeze what is not to change at this step, running statistics too, and wake what begins to."""
        self.model.train()
        set_trainable(self.model, self.trained_at(self.step), freeze_batchnorm=self.plan.freeze_batchnorm)

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], _: int) -> torch.Tensor:
        """One step's loss."""
        images, labels = batch
        torch.manual_seed(draw_seed(self.seed, self.step))  # dropout does not depend on where a training was resumed
        if images.ndim == 4:  # activations of a frozen half may be rows of tokens
            images = images.contiguous(memory_format=torch.channels_last)
        logits, loss = self._taught(images, labels) if self.tutored[0] else self._learned(images, labels)
        loss = self.guards.add(loss, images, labels, logits)
        if self.l2sp and self.anchors:
            loss = loss + self.l2sp * self._distance()
        return loss

    def _taught(self, images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits, and the loss with the teacher's part in it."""
        task = self.tutored[0]
        assert task is not None
        told = task.to(images.device)(images, labels)
        self.last = float(self.objective.right(told["output"].detach(), labels)), float(len(labels)), float(told["task_loss"].detach())
        return told["output"], told["loss"]

    def _learned(self, images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits, and the loss on the images that show new classes."""
        others, share = labels, 1.0
        if self.plan.mixup:
            images, others, share = mixup(images, labels, self.plan.mixup)
        logits = (self.compiled or self.model)(images)
        new = self.new_rows(labels)
        loss: torch.Tensor = self.objective(logits[new], labels[new])
        if share < 1.0:
            loss = share * loss + (1 - share) * self.objective(logits, others)
        self.last = float(self.objective.right(logits.detach()[new], labels[new])), float(len(labels[new])), float(loss.detach())
        return logits, loss

    def new_rows(self, labels: torch.Tensor) -> Any:
        """Which of a batch show new classes: replayed images may show none of them."""
        return labels >= 0 if self.guards.replays else slice(None)

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW over explicit groups, and a schedule by step."""
        return planned(torch.optim.AdamW(self.groups_of(self.model)), self.plan, first=self.first)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """One step, and what holds the weights back after it."""
        super().optimizer_step(*args, **kwargs)
        self.guards.hold(self.model, self.trainer.optimizers[0].param_groups)

    def on_train_end(self) -> None:
        """Let go of the network."""
        self.guards.release()

    def on_train_start(self) -> None:
        """Give a resumed optimizer its moments back."""
        self.anchors = {name: anchor.to(self.device) for name, anchor in self.anchors.items()}
        give_moments(self.trainer.optimizers[0], self.moments)

    def state(self, history: History) -> State:
        """All that a later call needs to go on."""
        tensors = {f"model.{key}": value for key, value in self.model.state_dict().items()}
        if self.average is not None:
            tensors |= {f"average.{key}": value for key, value in self.average.module.state_dict().items()}
        tensors |= {f"best.{key}": value for key, value in history.best.items()}
        tensors |= moments(self.trainer.optimizers[0])
        facts = {key: value for key, value in vars(history).items() if key != "best"}
        copies = {key: value.detach().cpu().clone().contiguous() for key, value in tensors.items()}
        return State(self.step, copies, facts)

    def restore(self, state: State) -> History:
        """Take up ``state``."""
        parts: dict[str, dict[str, torch.Tensor]] = {"model": {}, "average": {}, "best": {}, "optimizer": {}}
        for key, value in state.tensors.items():
            kind, _, name = key.partition(".")
            parts[kind][key if kind == "optimizer" else name] = value
        self.model.load_state_dict(parts["model"])
        if self.average is not None:
            self.average.module.load_state_dict(parts["average"])
        self.moments, self.first = parts["optimizer"], state.step
        return History(best=parts["best"], **state.facts)


def _interpolate(module: Tuning, history: History, val: Batches) -> None:
    """Put the starting trunk and the tuned one together in the share that validates best (WiSE-FT: Wortsman et al. 2022,
    arXiv:2109.01903). The head is the tuned one: it was fitted on the starting trunk, so that both understand it."""
    chosen = history.best
    for share in INTERPOLATION_WEIGHTS:
        mixed = {
            key: torch.lerp(module.anchors[key].cpu(), value, share) if key in module.anchors else value
            for key, value in history.best.items()
        }
        module.model.load_state_dict(mixed)
        loss, _ = measure(module.model, val, module.objective)
        if loss < history.best_loss:
            history.best_loss, history.interpolation_weight, chosen = loss, share, mixed
    history.best = chosen
