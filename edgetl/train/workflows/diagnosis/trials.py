"""Trials of a diagnosis: correct predictions of held-out images by linear probes and by trained networks."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from numpy.typing import NDArray
from torch.optim.swa_utils import update_bn

from edgetl.core.files.names import printable
from edgetl.core.preprocess import PreprocessSpec
from edgetl.core.progress import Progress, silent
from edgetl.data.folder import Sample
from edgetl.data.loading import batches, groups_of, labels_of
from edgetl.data.split import Splits
from edgetl.errors import ConfigError, DataError
from edgetl.train.artifacts.loading.lineage import seen_by_ancestors, without_seen
from edgetl.train.config.diagnosis.transfer import TRAINING
from edgetl.train.config.options import TrainConfig
from edgetl.train.config.plan import Plan
from edgetl.train.config.resolve import check_conflicts, resolve
from edgetl.train.config.tasks import scan_images, split_images
from edgetl.train.heads.linear import fit_logistic
from edgetl.train.heads.modules import LabeledFeatures
from edgetl.train.inputs.features import features_of
from edgetl.train.loop.processes import Execution
from edgetl.train.networks.backbone import Backbone
from edgetl.train.workflows.estimate import measure_training
from edgetl.train.workflows.finetune import choose_device, prepare
from edgetl.train.workflows.optimization import Training, fit_network

_log = logging.getLogger(__name__)

MIN_HELD_OUT = 20
# Images that set the BatchNorm statistics of a network with random weights.
STATISTICS_IMAGES = 256
BATCH = 64
PIXELS_SIDE = 16
# Validations without a lower loss that stop a training. A training has 20 validations: none stops early, so that all have equal steps.
NO_EARLY_STOP = 1000


@dataclass(frozen=True)
class Division:
    """Images of a diagnosis.

    Attributes:
        splits: train, validation and test images. Images that an ancestor of the weights has seen are excluded from the last two.
        train: images with labels to train on, in a random order in which each beginning has the classes in proportion.
        held_out: images that measure the accuracy.
    """

    splits: Splits
    train: tuple[Sample, ...]
    held_out: tuple[Sample, ...]

    @property
    def truth(self) -> NDArray[np.int64]:
        """Classes of the held-out images, int64 ``[n]``."""
        return labels_of(self.held_out)


def divide(data: Path, config: TrainConfig, *, images: int | None, progress: Progress = silent) -> Division:
    """Scan the folder ``data``, and divide its images into training and held-out images.

    Args:
        data: image folder.
        config: training options.
        images: largest number of training images for probes. Validation and test images are held out, because nothing is selected on
            them. None: trainings use all training images, and only test images are held out.
        progress: called during the scan.

    Raises:
        ConfigError: the task is not classification, or options conflict.
        DataError: the folder cannot be used, or too few images are held out.
    """
    check_conflicts(config)
    unused = [f"--{name.replace('_', '-')}" for name in TRAINING if name in config.given()]
    if images is not None and unused:
        raise ConfigError(f"{' and '.join(unused)}: only --fine-tune trains by steps. Add --fine-tune, or remove the option.")
    folder = scan_images(data, config.data, progress=progress)
    if folder.task != "classification":
        raise ConfigError(
            f"this command compares accuracies of classes, and {printable(data)} has the task {folder.task}. Give a column of classes."
        )
    splits = split_images(folder, config, progress=progress)
    splits = without_seen(splits, seen_by_ancestors(config.backbone))
    held_out = splits.test if images is None else (*splits.val, *splits.test)
    if len(held_out) < MIN_HELD_OUT:
        raise DataError(
            f"{printable(data)} has {len(held_out)} held-out images. At least {MIN_HELD_OUT} are needed to compare accuracies. "
            f"Add images, or raise --test."
        )
    order = nested_order(splits.train, np.random.default_rng(config.run.seed))
    return Division(splits, tuple(splits.train[index] for index in order[:images]), held_out)


def nested_order(samples: Sequence[Sample], rng: np.random.Generator) -> NDArray[np.int64]:
    """Return a random order of images, int64 ``[n]``, in which each beginning has the classes in proportion.

    With groups, whole groups are in random order instead, because a part of a group has fewer different images than its size suggests.
    """
    groups, labels = groups_of(samples), labels_of(samples)
    keys = np.empty(len(samples))
    if groups is not None:
        keys = rng.random(int(groups.max()) + 1)[groups]
    else:
        for label in np.unique(labels):
            rows = np.flatnonzero(labels == label)
            keys[rng.permutation(rows)] = (np.arange(len(rows)) + rng.random()) / len(rows)
    return np.argsort(keys, kind="stable")


@dataclass(frozen=True)
class ProbeFeatures:
    """Features of the images of a division, float32 ``[n, width]`` each, and the preprocessing of the images."""

    train: NDArray[np.float32]
    held_out: NDArray[np.float32]
    spec: PreprocessSpec


def frozen_features(division: Division, config: TrainConfig, *, pretrained: bool, seed: int, progress: Progress = silent) -> ProbeFeatures:
    """Compute the frozen features of pretrained or of random weights.

    The BatchNorm statistics of random weights are those of training images. Without them, the features of deep networks are nearly equal.

    Raises:
        BackboneError: the backbone cannot be found or loaded.
        LicenseError: the license of the weights does not fit ``license_policy``.
    """
    chosen = config.with_options(strategy="probe", **({} if pretrained else {"pretrained": False, "weights": None, "seed": seed}))
    backbone, _ = prepare(division.splits, resolve(chosen, division.splits))
    if not pretrained:
        images = batches(division.train[:STATISTICS_IMAGES], backbone.spec, batch_size=BATCH)
        update_bn((torch.from_numpy(batch) for batch in images), backbone.model)
    samples = [*division.train, *division.held_out]
    extract = features_of(backbone, config.optim.batch_size, device=choose_device(config.run.device), images=len(samples))
    rows = extract(samples, progress=progress)
    return ProbeFeatures(rows[: len(division.train)], rows[len(division.train) :], backbone.spec)


def pixel_features(division: Division, spec: PreprocessSpec) -> ProbeFeatures:
    """Return the pixels of small images as features. A probe on them is a control without a network."""
    spec = spec.model_copy(update={"input_size": (PIXELS_SIDE, PIXELS_SIDE)})
    train, held_out = (
        np.concatenate([batch.reshape(len(batch), -1) for batch in batches(samples, spec, batch_size=BATCH)])
        for samples in (division.train, division.held_out)
    )
    return ProbeFeatures(train, held_out, spec)


def probe(division: Division, features: ProbeFeatures, rows: NDArray[np.int64], *, seed: int = 0) -> NDArray[np.bool_]:
    """Fit a linear probe on the training images ``rows``, and return its correct predictions, bool ``[n]``, of the held-out images."""
    samples = [division.train[row] for row in rows]
    labels = labels_of(samples)
    if len(np.unique(labels)) == 1:  # nothing to fit in a very small subset
        return division.truth == labels[0]
    head = fit_logistic(LabeledFeatures(features.train[rows], labels, groups_of(samples)), len(division.splits.folder.labels), seed=seed)
    correct: NDArray[np.bool_] = (features.held_out @ head.weight.T + head.bias).argmax(axis=1) == division.truth
    return correct


def training_config(config: TrainConfig, *, pretrained: bool, seed: int) -> TrainConfig:
    """Return the options of a training without early stopping. Without ``pretrained``, all layers start from random weights."""
    changes = {"augmented_views": 1, "patience": NO_EARLY_STOP, "seed": seed}
    return config.with_options(**changes, **({} if pretrained else {"strategy": "scratch", "unfreeze": None}))


def plan_training(splits: Splits, config: TrainConfig) -> tuple[Plan, Plan]:
    """Return the plans of the trainings from pretrained and from random weights, with equal steps.

    Raises:
        ConfigError: the strategy trains only the head or starts from random weights, or options conflict.
    """
    configs = (training_config(config, pretrained=pretrained, seed=config.run.seed) for pretrained in (True, False))
    plan, scratch = (prepare(splits, resolve(item, splits))[1] for item in configs)
    if not plan.steps or plan.strategy == "scratch":
        raise ConfigError(
            f"--fine-tune compares a training from pretrained weights, and the strategy is {plan.strategy} ({plan.reason}). Add "
            f"--strategy partial or --strategy full."
        )
    return plan, scratch.model_copy(update={"steps": plan.steps})


def announce_trainings(division: Division, config: TrainConfig, plans: tuple[Plan, Plan], *, trainings: int) -> None:
    """Log the expected time of ``trainings`` trainings by each plan."""
    device, minutes = choose_device(config.run.device), 0.0
    for pretrained, plan in zip((True, False), plans, strict=True):
        job = resolve(training_config(config, pretrained=pretrained, seed=config.run.seed), division.splits)
        backbone, _ = prepare(division.splits, job)
        measured = measure_training(Training(backbone, division.splits, job.config, plan, Execution(device, Path())))
        minutes += trainings * measured.minutes
    _log.info("%d trainings of %d steps: about %.0f min on this host", 2 * trainings, plans[0].steps, max(1.0, minutes))


def train_network(
    division: Division, rows: NDArray[np.int64], config: TrainConfig, plan: Plan, *, progress: Progress = silent
) -> tuple[Backbone, NDArray[np.bool_]]:
    """Train a network by ``plan`` on the training images ``rows``, and return it with its correct predictions of the held-out images.

    Raises:
        TrainingError: the training diverged.
    """
    splits = dataclasses.replace(division.splits, train=tuple(division.train[row] for row in rows))
    job = resolve(config, division.splits)  # a rare class may be absent from a subset
    device = choose_device(config.run.device)
    with TemporaryDirectory() as work:
        backbone, _ = prepare(splits, job)
        fit_network(Training(backbone, splits, job.config, plan, Execution(device, Path(work), progress, config.run.seed)))
    extract = features_of(backbone, device=device, images=len(division.held_out))
    with torch.no_grad():
        outputs = backbone.head.cpu()(torch.from_numpy(extract(division.held_out, progress=progress)))
    return backbone, outputs.argmax(dim=1).numpy() == division.truth
