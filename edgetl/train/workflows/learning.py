"""Fit a network as planned: a head in closed form, then gradient descent."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, assert_never

import numpy as np
import torch
from lightning.fabric import seed_everything
from numpy.typing import NDArray
from torch import nn

from edgetl.core.licenses import check_policy, most_restrictive
from edgetl.core.options import flat
from edgetl.data.folder import Sample
from edgetl.data.loading import groups_of, labels_of, truth_of
from edgetl.data.split import Splits
from edgetl.errors import TrainingError
from edgetl.train.config.options import TrainConfig, logger_names
from edgetl.train.config.plan import Plan
from edgetl.train.config.tasks import value_scale
from edgetl.train.continual.prepare import ContinualLearning, prepare_continual
from edgetl.train.continual.previous_task import HeadInput, find_previous_task
from edgetl.train.continual.teacher import Distillation, Teacher, find_teacher
from edgetl.train.heads.fit import draw_head, fit_linear_head, fit_other_head, set_head, set_linear_head
from edgetl.train.heads.linear import class_weights, fold_scale
from edgetl.train.heads.modules import HeadSpec, LabeledFeatures
from edgetl.train.inputs.activation_cache import CacheOptions, Workplace
from edgetl.train.inputs.augmentation import make_augmentation, mirrors_well
from edgetl.train.inputs.batches import make_batches
from edgetl.train.inputs.dataset import TrainingBatches, TrainingImages
from edgetl.train.inputs.features import features_of
from edgetl.train.inputs.samplers import BatchOptions
from edgetl.train.loop.checkpoints import Checkpoints, SavedState
from edgetl.train.loop.loggers import MetricLoggers
from edgetl.train.loop.loop import LoopSettings, Objective, Session, run_loop
from edgetl.train.loop.losses import TaskTerm, make_task_loss
from edgetl.train.loop.processes import StopRequest, explain_out_of_memory, launch, rank, world_size
from edgetl.train.loop.validation import LoopState, interpolate
from edgetl.train.networks.backbone import Backbone
from edgetl.train.networks.stages import HEAD, STEM, Stage, choose_stages, find_stages, set_trainable
from edgetl.train.networks.stochastic_depth import stochastic_depth

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FitResult:
    """Figures of a fitted network.

    Attributes:
        head_penalty: of the linear probe that fitted the head; none for random weights.
        rows: figures of each validation.
        train_accuracy: on training images, in their last augmentation.
        interpolation_weight: of the tuned weights in the result.
    """

    head_penalty: float | None
    rows: list[dict[str, float]]
    train_accuracy: float
    interpolation_weight: float = 1.0


@dataclass(frozen=True)
class Prepared:
    """Inputs of gradient descent that are made ahead: continual learning, the teacher, and the penalty of the fitted head."""

    continual: ContinualLearning = field(default_factory=ContinualLearning)
    teacher: Teacher | None = None
    head_penalty: float | None = None


def fit_network(
    backbone: Backbone, splits: Splits, config: TrainConfig, plan: Plan, place: Workplace, checkpoints: Checkpoints, prepared: Prepared
) -> FitResult:
    """Fit the head, then train by gradient descent as planned, and scale the outputs to the values' unit."""
    samples = [*splits.train, *(sample for sample in prepared.continual.replay if sample.label >= 0)]
    # A head fitted on random features is large and wrong: training from random weights starts from a random head too.
    starts = config.backbone.pretrained and plan.strategy != "scratch" and checkpoints.newest() is None
    fits = plan.strategy == "probe" or (starts and plan.fit_head and not prepared.continual.keeps_head)
    penalty, accuracy = None, 0.0
    if fits:
        extract = features_of(backbone, config.optim.batch_size, device=place.device, images=config.head.augmented_views * len(samples))
        features = extract(samples, progress=place.progress)
        # A neighbor under another crop would vote a second time for the same image.
        count = 1 if config.head.kind == "knn" else config.head.augmented_views
        views = extract.views(samples, count, seed=config.run.seed, progress=place.progress)
        train = LabeledFeatures(features, head_targets(samples, splits), groups_of(samples), views)
        balanced = config.data.balance != "none"
        if config.head.kind != "linear":
            weights = class_weights(train.targets) if balanced else np.ones(len(splits.folder.labels), np.float32)
            val = LabeledFeatures(extract(splits.val, progress=place.progress), labels_of(splits.val))
            spec = HeadSpec(kind=config.head.kind, features=config.head.features)
            fitted = fit_other_head(spec, train, val, torch.from_numpy(weights), seed=config.run.seed, progress=place.progress)
            set_head(backbone.model, fitted)
            return FitResult(None, [], fitted.train_accuracy)
        head = fit_linear_head(
            train, splits.folder.task, len(splits.folder.labels), seed=config.run.seed, balanced=balanced, progress=place.progress
        )
        set_linear_head(backbone.head, head)
        outputs, truth = (torch.from_numpy(item) for item in (features @ head.weight.T + head.bias, truth_of(samples)))
        loss = make_task_loss(splits, config.optim, smoothing=0.0, balanced=False)
        penalty, accuracy = head.penalty, float(loss.correct(outputs, truth)) / len(outputs)
    elif not plan.fit_head:
        draw_head(backbone.head, config.run.seed)
    if plan.strategy == "probe":
        fold_scale(backbone.head, *value_scale(splits))
        return FitResult(penalty, [], accuracy)
    state = optimize(backbone, splits, plan, config, place, prepared=replace(prepared, head_penalty=penalty), checkpoints=checkpoints)
    fold_scale(backbone.head, *value_scale(splits))
    return FitResult(state.head_penalty, state.rows, state.rows[-1]["train_accuracy"], state.interpolation_weight)


def optimize(
    backbone: Backbone, splits: Splits, plan: Plan, config: TrainConfig, place: Workplace, *,
    prepared: Prepared | None = None, checkpoints: Checkpoints | None = None,
) -> LoopState:  # fmt: skip
    """Train ``backbone.model`` by gradient descent from a fitted head (LP-FT: Kumar et al. 2022, arXiv:2202.10054), resumable at any step.

    The network is left with the weights that had the lowest validation loss.

    Args:
        backbone: with a fitted head, unless it is trained from random weights.
        splits: training and validation images.
        plan: strategy, steps, rates.
        config: batch size, seed, patience, loss.
        place: device, folder for temporary files, progress.
        prepared: continual learning, teacher, penalty of the head.
        checkpoints: folder of saved states, from which a stopped training is resumed.

    Raises:
        TrainingError: the loss became infinite, not a number, or much larger than that of a random prediction.
        StoppedError: a signal came; the state is saved.
    """
    seed_everything(config.run.seed, verbose=False)
    extra = prepared or Prepared(ContinualLearning(config.continual))
    stages = find_stages(backbone.model, backbone.head_name)
    trained = choose_stages(stages, plan.unfreeze)
    saved = checkpoints.newest() if checkpoints else None
    if saved:
        _log.info("going on after step %d of %d", saved.step, plan.steps)
    start = saved or SavedState(facts={"head_penalty": extra.head_penalty})
    names = logger_names(config.run.loggers) if rank() == 0 else ()
    fabric = launch(place.device)
    with (
        explain_out_of_memory(config.optim.batch_size),
        StopRequest() as stop,
        stochastic_depth(backbone.model, plan.drop_path),
        tempfile.TemporaryDirectory(dir=place.folder, prefix="activations-") as temporary,
    ):
        batches = _batches(backbone, trained, splits, plan, config, extra, Path(temporary), range(start.step, plan.steps), place)
        tail = batches.backbone
        # Channels last: a step takes two thirds of the time, on a CPU too.
        network = tail.model.train().to(fabric.device).to(memory_format=torch.channels_last)
        anchors = _trained_weights(network, trained) if config.continual.l2sp or config.continual.wise_ft else {}
        # The validation loss of random weights falls late.
        patience = plan.steps if plan.strategy == "scratch" else config.optim.patience
        with (
            HeadInput(network, tail.head_name) as head_input,
            MetricLoggers(names, place.folder, flat(config), start.facts.get("rows", ())) as loggers,
        ):
            objective = _objective(network, tail, splits, plan, config, extra, head_input, anchors)
            settings = LoopSettings(trained, plan, config.run.seed, patience, config.run.compile)
            session = Session(fabric, stop, checkpoints, loggers, place.progress)
            state = run_loop(network, objective, (batches.train, batches.val), settings, session, start)
        if config.continual.wise_ft and anchors and state.best:
            interpolate(network, state, anchors, batches.val, objective.task.loss)
    _keep_best(backbone, stages, state)
    return state


def batch_options(config: TrainConfig, device: str) -> BatchOptions:
    """Options of drawing and loading batches."""
    return BatchOptions(
        batch_size=config.optim.batch_size,
        seed=config.run.seed,
        workers=config.data.workers,
        device=device,
        balanced=config.data.balance == "sampler",
        replay_fraction=config.continual.replay_fraction,
        shard=(rank(), world_size()),
    )


def _batches(  # noqa: PLR0913
    backbone: Backbone, trained: tuple[Stage, ...], splits: Splits, plan: Plan, config: TrainConfig, extra: Prepared, folder: Path,
    steps: range, place: Workplace,
) -> TrainingBatches:  # fmt: skip
    """The trained network and its batches: of activations where the frozen layers can run ahead."""
    flip = mirrors_well(splits.folder.labels) if config.data.flip is None else config.data.flip
    images = TrainingImages(splits.train, splits.val or splits.train, extra.continual.replay)
    # A teacher takes images, not activations, and mixup comes before it.
    ahead = config.run.cache_views and not plan.mixup and not extra.teacher and plan.strategy == "partial" and trained[0].name != STEM
    cache = CacheOptions(trained, config.run.cache_views, config.run.cache_gb, folder, place.progress) if ahead and steps else None
    augment = make_augmentation(plan.augment, backbone.spec, flip=flip)
    return make_batches(backbone, images, augment, batch_options(config, place.device), steps=steps, cache=cache)


def _objective(
    network: nn.Module, tail: Backbone, splits: Splits, plan: Plan, config: TrainConfig, extra: Prepared, head_input: HeadInput,
    anchors: dict[str, torch.Tensor],
) -> Objective:  # fmt: skip
    """Loss terms of the training: the task's, the teacher's, and those of continual learning."""
    device = next(network.parameters()).device
    loss = make_task_loss(splits, config.optim, smoothing=plan.label_smoothing, balanced=config.data.balance == "loss")
    others = extra.continual.loss_terms(network, head_input, tail.head_name, anchors)
    weight = 1.0
    if extra.teacher:
        weight = 1 - config.distillation.weight
        others = {"distillation": Distillation(extra.teacher, tail.spec, weight=config.distillation.weight).to(device), **others}
    task = TaskTerm(loss.to(device), weight=weight, replay=bool(extra.continual.replay))
    return Objective(task, others, extra.continual.proximal_terms(network))


def _trained_weights(network: nn.Module, trained: tuple[Stage, ...]) -> dict[str, torch.Tensor]:
    """Copies of the weights that train, without the head's."""
    names = {name for stage in trained if stage.name != HEAD for name in stage.parameters}
    return {name: value.detach().clone() for name, value in network.named_parameters() if name in names}


def _keep_best(backbone: Backbone, stages: tuple[Stage, ...], state: LoopState) -> None:
    if not state.best:
        raise TrainingError("the validation loss was never finite; lower --lr, or check the images with `edgetl evaluate`.")
    backbone.model.load_state_dict({**backbone.model.cpu().state_dict(), **state.best})
    set_trainable(backbone.model, stages, freeze_batchnorm=False)
    # In the usual memory layout, so that the same kernels give the same bits.
    backbone.model.to(memory_format=torch.contiguous_format).eval()


def head_targets(samples: Sequence[Sample], splits: Splits) -> NDArray[Any]:
    """Targets of a head's fit: classes, labels ``[n, labels]``, or standardized values ``[n]``."""
    match splits.folder.task:
        case "classification":
            return labels_of(samples)
        case "multi-label":
            return truth_of(samples)
        case "regression" | "ordinal":
            mean, spread = value_scale(splits)
            return (truth_of(samples)[:, 0] - mean) / spread
        case _:
            assert_never(splits.folder.task)


def prepare_inputs(backbone: Backbone, splits: Splits, config: TrainConfig, plan: Plan, place: Workplace) -> Prepared:
    """The teacher, if its license allows, and what continual learning needs; nothing for a probe.

    Raises:
        ConfigError: there is no previous task.
        DataError: the images to replay cannot be used.
        LicenseError: of the teacher.
    """
    options = config.continual
    asked = [f"--{name}" for name in ("lwf", "ewc", "replay") if getattr(options, name)]
    if plan.strategy == "probe":
        for name in [*asked, *(["--teacher"] if config.distillation.teacher else [])]:
            _log.info("%s: no effect, because a probe trains the head alone", name)
        return Prepared()
    teacher = _teacher(config, splits, place)
    previous = find_previous_task(config.backbone, backbone, splits.folder.labels) if asked else None
    trained = choose_stages(find_stages(backbone.model, backbone.head_name), plan.unfreeze)
    return Prepared(prepare_continual(backbone, splits, trained, options, previous, place), teacher)


def _teacher(config: TrainConfig, splits: Splits, place: Workplace) -> Teacher | None:
    if config.distillation.teacher is None:
        return None
    teacher = find_teacher(config.distillation.teacher, config.backbone, splits, place)
    licenses = most_restrictive(parent.license for parent in teacher.parents)
    check_policy(licenses, config.backbone.license_policy, name=config.distillation.teacher)
    return teacher
