"""Optimization of a network as planned: fit the head on frozen features, then train by gradient descent."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, assert_never

import numpy as np
import torch
from lightning_fabric import seed_everything
from numpy.typing import NDArray
from torch import nn

from edgetl.core.bundle import is_run
from edgetl.core.licenses import check_policy, most_restrictive
from edgetl.core.options import flat
from edgetl.data.folder import Sample
from edgetl.data.loading import groups_of, labels_of, truth_of
from edgetl.data.split import Splits
from edgetl.errors import ConfigError, TrainingError
from edgetl.train.artifacts.loading.load import load_published
from edgetl.train.config.options import TrainConfig, logger_names
from edgetl.train.config.plan import Plan
from edgetl.train.config.tasks import balancing_cells, value_scale
from edgetl.train.continual.prepare import ContinualLearning, prepare_continual
from edgetl.train.continual.previous_task import HeadInput, find_previous_task
from edgetl.train.continual.teacher import Distillation, Teacher, find_teacher
from edgetl.train.heads.fit import draw_head, fit_linear_head, fit_other_head, set_head, set_linear_head
from edgetl.train.heads.linear import LinearHead, OutOfFold, class_weights, fold_scale
from edgetl.train.heads.modules import LabeledFeatures, head_of
from edgetl.train.heads.zero_shot import make_zero_shot, read_text_embeddings
from edgetl.train.inputs.activation_cache import CacheOptions
from edgetl.train.inputs.augmentation import make_augmentation, mirrors_well
from edgetl.train.inputs.batches import make_batches
from edgetl.train.inputs.dataset import ImageDataset, TrainingBatches, TrainingImages, in_order
from edgetl.train.inputs.features import FrozenFeatures, features_of
from edgetl.train.inputs.samplers import BatchOptions
from edgetl.train.inputs.shards.batches import ShardBatches, warn_unreadable
from edgetl.train.loop.checkpoints import Checkpoints, SavedState
from edgetl.train.loop.loggers import MetricLoggers
from edgetl.train.loop.loop import LoopSettings, Objective, Session, run_loop
from edgetl.train.loop.losses import TaskTerm, make_task_loss
from edgetl.train.loop.processes import Execution, StopRequest, explain_torch_errors, gather, launch, rank, world_size
from edgetl.train.loop.validation import LoopState, interpolate
from edgetl.train.networks.backbone import Backbone, find_head
from edgetl.train.networks.stages import STEM, Stage, choose_stages, find_stages, set_trainable
from edgetl.train.networks.stochastic_depth import stochastic_depth

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FitResult:
    """Result of a training.

    Attributes:
        head_penalty: L2 strength of the linear probe that fitted the head. ``None`` if no probe was fitted.
        rows: metrics of each validation.
        train_accuracy: accuracy on training images with their last augmentation, 0..1. NaN if no training image was used.
        interpolation_weight: weight of the fine-tuned weights in the result, 0..1. The rest is the starting weights (WiSE-FT).
        out_of_fold: outputs of a cross-validation for the training images. ``None`` with validation images.
        unreadable: keys of streamed images that cannot be decoded.
        plain_head: head of the same features without ``--balance``, to measure its effect; none if it is not known.
    """

    head_penalty: float | None
    rows: list[dict[str, float]]
    train_accuracy: float
    interpolation_weight: float = 1.0
    out_of_fold: OutOfFold | None = None
    plain_head: LinearHead | None = None
    unreadable: tuple[str, ...] = ()


@dataclass(frozen=True)
class Training:
    """Inputs of a fine-tuning.

    Attributes:
        backbone: backbone with its starting weights.
        splits: training and validation images.
        config: training options.
        plan: strategy, steps and rates after the data-dependent defaults.
        execution: device, folder for temporary files, and progress.
        checkpoints: folder of saved states, from which a stopped training is resumed.
        continual: replayed images, previous task and Fisher information.
        teacher: distillation teacher.
    """

    backbone: Backbone
    splits: Splits
    config: TrainConfig
    plan: Plan
    execution: Execution
    checkpoints: Checkpoints | None = None
    continual: ContinualLearning = field(default_factory=ContinualLearning)
    teacher: Teacher | None = None

    @property
    def trained(self) -> tuple[Stage, ...]:
        """Stages that train at any time of the training."""
        return choose_stages(find_stages(self.backbone.model, self.backbone.head_name), self.plan.unfreeze)

    def saved_state(self) -> SavedState | None:
        """Return the newest saved state of a stopped training, or ``None``."""
        return self.checkpoints.newest() if self.checkpoints else None


def prepare_training(training: Training) -> Training:
    """Return ``training`` with the distillation teacher and the inputs of continual learning. A probe is returned unchanged.

    Raises:
        ConfigError: LwF or EWC is on, and the starting weights have no head; or the teacher has other classes.
        DataError: the images to replay cannot be used.
        LicenseError: the license of the teacher's weights does not fit ``license_policy``.
    """
    config, continual = training.config, training.config.continual
    previous_task = [f"--{name}" for name in ("lwf", "ewc", "replay") if getattr(continual, name)]
    if training.plan.strategy == "probe":
        for name in [*previous_task, *(["--teacher"] if config.distillation.teacher else [])]:
            _log.info("%s has no effect, because the strategy probe trains only the head", name)
        return training
    labels = training.splits.folder.labels
    previous = find_previous_task(config.backbone, training.backbone, labels) if previous_task else None
    prepared = prepare_continual(training.backbone, training.splits, training.trained, continual, previous, training.execution)
    return replace(training, continual=prepared, teacher=_teacher(training))


def _teacher(training: Training) -> Teacher | None:
    name = training.config.distillation.teacher
    if name is None:
        return None
    teacher = find_teacher(name, training.config.backbone, training.splits, training.execution)
    licenses = most_restrictive(parent.license for parent in teacher.parents)
    check_policy(licenses, training.config.backbone.license_policy, name=name)
    return teacher


def fit_network(training: Training) -> FitResult:
    """Fit the head, train by gradient descent as planned, and scale regression outputs to the unit of the values."""
    backbone, splits, config, plan, execution = training.backbone, training.splits, training.config, training.plan, training.execution
    samples = [*splits.train, *(sample for sample in training.continual.replay if sample.label >= 0)]
    # With random features, a fitted head has large weights and little accuracy. Training from scratch uses a random head instead.
    starts = config.backbone.pretrained and plan.strategy != "scratch" and training.saved_state() is None
    fits = plan.strategy == "probe" or (starts and plan.fit_head and not training.continual.keeps_head)
    penalty, accuracy, plain = None, 0.0, None
    if fits:
        extract = features_of(backbone, config.optim.batch_size, device=execution.device, images=config.head.augmented_views * len(samples))
        features = extract(samples, progress=execution.progress)
        # Several views of an image would be several neighbors, each with its own vote.
        count = 1 if config.head.kind == "knn" else config.head.augmented_views
        views = extract.views(samples, count, seed=config.run.seed, progress=execution.progress)
        balanced, cells = config.data.balance != "none", balancing_cells(samples, splits.folder.root, config.data)
        train = LabeledFeatures(features, head_targets(samples, splits), groups_of(samples), views, cells)
        if config.head.kind != "linear":
            return _fit_other_head(training, train, extract)
        fit = partial(fit_linear_head, task=splits.folder.task, classes=len(splits.folder.labels), seed=config.run.seed)
        head = fit(train, balanced=balanced, progress=execution.progress)
        set_linear_head(backbone.head, head)
        if balanced and plan.strategy == "probe" and splits.folder.task == "classification":
            plain = fit(replace(train, cells=None), progress=execution.progress)
        outputs, truth = (torch.from_numpy(item) for item in (features @ head.weight.T + head.bias, truth_of(samples)))
        loss = make_task_loss(splits, config.optim, smoothing=0.0, balanced=False)
        penalty, accuracy = head.penalty, float(loss.correct(outputs, truth)) / len(outputs)
    elif not plan.fit_head:
        draw_head(backbone.head, config.run.seed)
    if plan.strategy == "probe":
        fold_scale(backbone.head, *value_scale(splits))
        return FitResult(penalty, [], accuracy, plain_head=plain)
    state = optimize(training, head_penalty=penalty)
    if config.data.balance == "head":
        plain = refit_head(training)
    fold_scale(backbone.head, *value_scale(splits))
    accuracy, unreadable = state.rows[-1]["train_accuracy"], tuple(state.unreadable)
    return FitResult(state.head_penalty, state.rows, accuracy, state.interpolation_weight, plain_head=plain, unreadable=unreadable)


def set_text_head(training: Training) -> FitResult:
    """Set the zero-shot head of a CLIP image tower: its published projection, and the text embeddings of the classes. Nothing is fitted.

    Raises:
        ConfigError: the text embeddings cannot be used, or the backbone is not a published image tower.
    """
    backbone, config = training.backbone, training.config
    embeddings = read_text_embeddings(Path(config.head.text_embeddings or ""), training.splits.folder.labels)
    if is_run(config.backbone.name) or config.backbone.weights is not None:
        raise ConfigError("--head text needs a published CLIP image tower: a name of timm, local-dir:PATH or hf-hub:ORG/NAME.")
    published = load_published(config.backbone)
    projection = published.get_submodule(find_head(published)) if published is not None else None
    assert projection is None or isinstance(projection, nn.Linear)
    fitted = make_zero_shot(embeddings, backbone.head.in_features, projection)
    set_head(backbone.model, fitted)
    return FitResult(None, [], fitted.train_accuracy)


def _fit_other_head(training: Training, train: LabeledFeatures, extract: FrozenFeatures) -> FitResult:
    """Fit a cosine, MLP or k-NN head, and append it to the network."""
    splits, config, progress = training.splits, training.config, training.execution.progress
    balanced = config.data.balance != "none"
    weights = class_weights(train.targets) if balanced else np.ones(len(splits.folder.labels), np.float32)
    val = LabeledFeatures(extract(splits.val, progress=progress), labels_of(splits.val))
    spec = head_of(training.backbone.model).model_copy(update={"kind": config.head.kind})
    fitted = fit_other_head(spec, train, val, torch.from_numpy(weights), seed=config.run.seed, progress=progress)
    set_head(training.backbone.model, fitted)
    return FitResult(None, [], fitted.train_accuracy)


def refit_head(training: Training) -> LinearHead:
    """Fit the last layer of a trained network again, with equal weights of the balancing cells. Return the earlier head.

    Deep feature reweighting (DFR: Kirichenko et al. 2023, arXiv:2204.02937), with weights instead of a balanced subset.
    """
    backbone, splits, config, execution = training.backbone, training.splits, training.config, training.execution
    extract = features_of(backbone, config.optim.batch_size, device=execution.device, images=len(splits.train))
    features = extract(splits.train, progress=execution.progress)
    cells = balancing_cells(splits.train, splits.folder.root, config.data)
    train = LabeledFeatures(features, labels_of(splits.train), groups_of(splits.train), cells=cells)
    labels, layer = len(splits.folder.labels), backbone.head
    earlier = LinearHead(layer.weight.detach().numpy().copy(), layer.bias.detach().numpy().copy(), penalty=0.0, folds=())
    head = fit_linear_head(train, "classification", labels, seed=config.run.seed, balanced=True, progress=execution.progress)
    set_linear_head(layer, head)
    return earlier


def head_targets(samples: Sequence[Sample], splits: Splits) -> NDArray[Any]:
    """Return the targets for fitting a head: classes ``[n]``, labels ``[n, labels]``, or standardized values ``[n]``."""
    match splits.folder.task:
        case "classification":
            return labels_of(samples)
        case "multi-label":
            return truth_of(samples)
        case "regression" | "ordinal":
            mean, spread = value_scale(splits)
            return (truth_of(samples)[:, 0] - mean) / spread
        case "anomaly":
            raise AssertionError("edgetl.train.workflows.anomaly fits a detector")
        case _:
            assert_never(splits.folder.task)


def optimize(training: Training, *, head_penalty: float | None = None) -> LoopState:
    """Train the network by gradient descent from a fitted head (LP-FT: Kumar et al. 2022, arXiv:2202.10054).

    The training can be resumed at any step. At the end the network has the weights with the lowest validation loss, or the last ones
    without validation images.

    Args:
        training: inputs of the training.
        head_penalty: L2 strength of the fitted head, for the run record.

    Raises:
        TrainingError: the loss became infinite, not a number, or much larger than that of a random prediction.
        StoppedError: a signal stopped the training after its state was saved.
    """
    config, plan, execution, model = training.config, training.plan, training.execution, training.backbone.model
    seed_everything(config.run.seed, verbose=False)
    start = training.saved_state() or SavedState(facts={"head_penalty": head_penalty})
    if start.step:
        _log.info("resuming after step %d of %d", start.step, plan.steps)
    fabric, names = launch(execution.device), logger_names(config.run.loggers) if rank() == 0 else ()
    with (
        explain_torch_errors(config.optim.batch_size),
        StopRequest() as stop,
        stochastic_depth(model, plan.drop_path),
        TemporaryDirectory(dir=execution.folder, prefix="activations-") as folder,
        MetricLoggers(names, execution.folder, flat(config), start.facts.get("rows", ())) as loggers,
    ):
        batches = _make_batches(training, range(start.step, plan.steps), Path(folder))
        session = Session(fabric, stop, training.checkpoints, loggers, execution.progress)
        state = _descend(training, batches, session, start)
    if isinstance(batches.train, ShardBatches):
        state.unreadable = gather(batches.train.unreadable)
        warn_unreadable(state.unreadable)
    if not state.best:
        raise TrainingError("the validation loss was never finite. Lower --lr. The option --preview shows the images that training sees.")
    model.load_state_dict({**model.cpu().state_dict(), **state.best})
    set_trainable(model, find_stages(model, training.backbone.head_name), freeze_batchnorm=False)
    # The contiguous layout selects the same kernels as before the training, which give the same bits.
    model.to(memory_format=torch.contiguous_format).eval()
    return state


def batch_options(training: Training) -> BatchOptions:
    """Return the options for sampling and loading batches."""
    config, splits = training.config, training.splits
    cells = balancing_cells(splits.train, splits.folder.root, config.data)
    return BatchOptions(
        batch_size=config.optim.batch_size,
        seed=config.run.seed,
        workers=config.data.workers,
        device=training.execution.device,
        cells=tuple((labels_of(splits.train) if cells is None else cells).tolist()) if config.data.balance == "sampler" else (),
        replay_fraction=config.continual.replay_fraction,
        shard=(rank(), world_size()),
    )


def _make_batches(training: Training, steps: range, folder: Path) -> TrainingBatches:
    """Build the network to train and its batches. The batches contain activations if the frozen layers can run in advance."""
    splits, config, plan, execution, trained = training.splits, training.config, training.plan, training.execution, training.trained
    flip = mirrors_well(splits.folder.labels) if config.data.flip is None else config.data.flip
    augment = make_augmentation(plan.augment, training.backbone.spec, flip=flip)
    if splits.shards:
        options = batch_options(training)
        batches = ShardBatches(splits.shards, options, steps, training.backbone.spec, augment)
        # The validation images are decoded for each validation, because memory must not grow with their number.
        return TrainingBatches(training.backbone, batches, in_order(ImageDataset(splits.val, training.backbone.spec), options))
    images = TrainingImages(splits.train, splits.val, training.continual.replay)
    # A teacher and mixup need images, not activations.
    cached = config.run.cache_views and not plan.mixup and not training.teacher and plan.strategy == "partial" and trained[0].name != STEM
    cache = CacheOptions(trained, config.run.cache_views, config.run.cache_gb, folder, execution.progress) if cached and steps else None
    return make_batches(training.backbone, images, augment, batch_options(training), steps=steps, cache=cache)


def _descend(training: Training, batches: TrainingBatches, session: Session, start: SavedState) -> LoopState:
    """Train by gradient descent with all loss terms, then interpolate with the starting weights if WiSE-FT is on."""
    config, plan, continual, device = training.config, training.plan, training.continual, session.fabric.device
    # In the channels-last layout a step takes two thirds of the time, also on a CPU.
    network = batches.backbone.model.train().to(device).to(memory_format=torch.channels_last)
    needed = training.trained[:-1] if config.continual.l2sp or config.continual.wise_ft else ()
    names = {name for stage in needed for name in stage.parameters}
    starting = {name: value.detach().clone() for name, value in network.named_parameters() if name in names}
    loss = make_task_loss(training.splits, config.optim, smoothing=plan.label_smoothing, balanced=config.data.balance == "loss").to(device)
    with HeadInput(network, batches.backbone.head_name) as head_input:
        others = continual.loss_terms(network, head_input, config.continual, starting)
        weight = 1.0
        if training.teacher:
            weight = 1 - config.distillation.weight
            distillation = Distillation(training.teacher, batches.backbone.spec, weight=config.distillation.weight)
            others = {"distillation": distillation.to(device), **others}
        task = TaskTerm(loss, weight=weight, replay=bool(continual.replay))
        objective = Objective(task, others, continual.proximal_terms(network, config.continual.ewc))
        # From random weights the validation loss decreases late.
        patience = plan.steps if plan.strategy == "scratch" else config.optim.patience
        settings = LoopSettings(training.trained, plan, config.run.seed, patience, config.run.compile)
        state = run_loop(network, objective, (batches.train, batches.val), settings, session, start)
    if config.continual.wise_ft and starting and state.best:
        interpolate(network, state, starting, batches.val, loss)
    return state
