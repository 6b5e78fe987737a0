"""Training of an adapted network: the loop of a fine-tuning on unlabeled target images, with the images of the training as a loss term."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeAlias

import torch
from lightning_fabric import seed_everything
from torch import nn

from edgetl.data.folder import Sample
from edgetl.train.adaptation.terms import SourceTerm, TargetLoss
from edgetl.train.config.adaptation.options import AdaptationConfig, Method
from edgetl.train.config.plan import Plan
from edgetl.train.inputs.activation_cache import CacheOptions
from edgetl.train.inputs.augmentation import make_augmentation, mirrors_well
from edgetl.train.inputs.batches import make_batches
from edgetl.train.inputs.dataset import Batches, TrainingBatches, TrainingImages
from edgetl.train.inputs.samplers import BatchOptions
from edgetl.train.loop.checkpoints import SavedState
from edgetl.train.loop.loop import LoopSettings, Objective, Session, run_loop
from edgetl.train.loop.losses import LossTerm, TaskTerm
from edgetl.train.loop.processes import Execution, explain_torch_errors, launch
from edgetl.train.networks.backbone import Backbone
from edgetl.train.networks.stages import HEAD, STEM, Stage, choose_stages, find_stages, set_trainable

# Stages that train, and the rate of the head relative to the last stage: as in the fine-tuning of few images.
UNFREEZE, HEAD_RATE, LR_DECAY, WEIGHT_DECAY = "0.33", 5.0, 1.0, 0.01
LABEL_SMOOTHING = 0.05
VIEWS, CACHE_GB = 4, 4.0
# Images of each domain that the loop validates on. The validation is reported and selects nothing.
VALIDATED = 32


@dataclass(frozen=True)
class TargetTraining:
    """Inputs of the training of an adapted network.

    Attributes:
        method: ``mcc`` or ``shot``.
        labels: names of the classes.
        run: network of the run, which computes the frozen layers of the source images.
        start: network with the BatchNorm statistics of the target images, which is trained.
        target: target images. The label of each is its position.
        source: labeled images of the training. Empty for a source-free method.
        pseudo_labels: int64 ``[target images]``, classes that ``start`` predicts.
        plan: plan of the run's training.
        steps: optimizer steps.
        config: options of the adaptation.
        execution: device, folder for temporary files, and progress.
    """

    method: Method
    labels: Sequence[str]
    run: Backbone
    start: Backbone
    target: Sequence[Sample]
    source: Sequence[Sample]
    pseudo_labels: torch.Tensor
    plan: Plan
    steps: int
    config: AdaptationConfig
    execution: Execution


# Loss terms for the trained network, on its device, and for the source batches, one for each step. Without source images there are none.
ObjectiveFactory: TypeAlias = Callable[[TargetTraining, nn.Module, Batches | None], Objective]


def make_objective(training: TargetTraining, network: nn.Module, source: Batches | None) -> Objective:
    """Make the loss terms of an adaptation: that of the target images, and that of the source images if there are any."""
    others: dict[str, LossTerm] = {}
    if source is not None:
        others["source"] = SourceTerm(network, source, smoothing=LABEL_SMOOTHING)
    return Objective(TaskTerm(TargetLoss(training.method, training.pseudo_labels, len(training.labels))), others)


def train_on_target(training: TargetTraining, objective_of: ObjectiveFactory = make_objective) -> nn.Module:
    """Train a copy of the starting network on the target images, and return it in evaluation mode on the CPU.

    Its BatchNorm statistics are those of the last batches. Replace them by ``adapt_batchnorm``.

    Args:
        training: networks, images and settings.
        objective_of: makes the loss terms.

    Raises:
        TrainingError: the loss became infinite or not a number.
    """
    config, execution, plan = training.config, training.execution, _plan(training)
    # Without an activation cache, the loop trains this network itself.
    start = replace(training.start, model=copy.deepcopy(training.start.model))
    stages = trained_stages(training.start, training.method)
    seed_everything(config.seed, verbose=False)
    fabric = launch(execution.device)
    with explain_torch_errors(config.batch_size), TemporaryDirectory(dir=execution.folder, prefix="activations-") as folder:
        target = _batches(training, start, training.target, Path(folder), "target")
        network = target.backbone.model.train().to(fabric.device).to(memory_format=torch.channels_last)
        source = _batches(training, training.run, training.source, Path(folder), "source").train if training.source else None
        objective = objective_of(training, network, source)
        settings = LoopSettings(stages, plan, config.seed, patience=plan.steps)
        session = Session(fabric, progress=execution.progress)
        run_loop(network, objective, (target.train, target.val), settings, session, SavedState())
    model = start.model.cpu()
    model.load_state_dict({**model.state_dict(), **network.cpu().state_dict()})
    set_trainable(model, find_stages(model, start.head_name), freeze_batchnorm=False)
    return model.to(memory_format=torch.contiguous_format).eval()


def trained_stages(backbone: Backbone, method: Method) -> tuple[Stage, ...]:
    """Return the stages that ``method`` trains.

    ``mcc`` trains the last third of the stages and the head. ``shot`` keeps the head, which has the classes of the training.
    """
    stages = choose_stages(find_stages(backbone.model, backbone.head_name), UNFREEZE)
    return stages if method == "mcc" else tuple(stage for stage in stages if stage.name != HEAD)


def _plan(training: TargetTraining) -> Plan:
    """Return the plan of the loop: constant settings, and the length and rate of the adaptation."""
    lr = training.config.lr
    return training.plan.model_copy(
        update={
            "strategy": "partial",
            "steps": training.steps,
            "lr": HEAD_RATE * lr,
            "backbone_lr": lr,
            "lr_decay": LR_DECAY,
            "weight_decay": WEIGHT_DECAY,
            "ema_decay": 0.0,
            "mixup": 0.0,
            "freeze_batchnorm": False,
            "schedule": "cosine",
            "warmup_fraction": 0.1,
            "frozen_steps": 0,
        }
    )


def _batches(training: TargetTraining, backbone: Backbone, samples: Sequence[Sample], folder: Path, name: str) -> TrainingBatches:
    """Make the batches of one domain: activations of the frozen layers if possible, otherwise images."""
    config, execution = training.config, training.execution
    options = BatchOptions(config.batch_size, seed=config.seed, workers=config.workers, device=execution.device)
    augment = make_augmentation("light", backbone.spec, flip=mirrors_well(training.labels))
    stages = trained_stages(training.start, training.method)
    place = folder / name
    place.mkdir()
    cache = None if stages[0].name == STEM else CacheOptions(stages, VIEWS, CACHE_GB, place, execution.progress)
    images = TrainingImages(samples, samples[:: max(1, len(samples) // VALIDATED)])
    return make_batches(backbone, images, augment, options, steps=range(training.steps), cache=cache)
