"""Training with few labeled images: cross-validation of a linear probe, and a final head that is fitted on all images."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TypedDict

import numpy as np
import torch
from numpy.typing import NDArray

from edgetl.core.progress import Progress
from edgetl.data.audit.copies import copy_sets
from edgetl.data.loading import groups_of, truth_of
from edgetl.errors import ConfigError
from edgetl.train.config.tasks import balancing_cells, value_scale
from edgetl.train.heads.fit import fit_linear_head, set_linear_head, stage_extractor, with_head_modules
from edgetl.train.heads.linear import LinearHead, OutOfFold, fold_scale
from edgetl.train.heads.modules import HeadSpec, LabeledFeatures, head_of
from edgetl.train.inputs.features import FrozenFeatures
from edgetl.train.loop.losses import make_task_loss
from edgetl.train.networks.backbone import Backbone, feature_extractor
from edgetl.train.workflows.few_labels.discriminant import fit_mixture
from edgetl.train.workflows.optimization import FitResult, Training, head_targets

_log = logging.getLogger(__name__)


class FitOptions(TypedDict):
    """Options of all functions that fit a linear head."""

    seed: int
    balanced: bool
    progress: Progress


def fit_few_labels(training: Training) -> tuple[Backbone, FitResult]:
    """Fit a linear probe on all training images. Cross-validation chooses its features, penalty and mixture.

    The out-of-fold outputs replace the outputs for validation images: they give the accuracy, thresholds and calibration.

    Returns:
        The backbone with the chosen features and the fitted head, and the result.

    Raises:
        ConfigError: all images of a class are in one group, so that cross-validation is impossible.
    """
    backbone, splits, config = training.backbone, training.splits, training.config
    samples = splits.train
    features, views = _compute_features(training)
    heads = _fit_heads(training, features, views)
    head = min(heads, key=lambda item: item.out_of_fold.loss if item.out_of_fold else math.inf)
    if head.out_of_fold is None:
        raise ConfigError("the images of a class are in one group, so that cross-validation is not possible. Give --val 0.15.")
    width = head.weight.shape[1]
    if width != backbone.head.in_features:
        backbone = with_head_modules(backbone, HeadSpec(features="layers"))
    set_linear_head(backbone.head, head)
    outputs = torch.from_numpy(features[:, -width:] @ head.weight.T + head.bias)
    loss = make_task_loss(splits, config.optim, smoothing=0.0, balanced=False)
    accuracy = float(loss.correct(outputs, torch.from_numpy(truth_of(samples)))) / len(samples)
    mean, scale = value_scale(splits)
    fold_scale(backbone.head, mean, scale)
    found = replace(head.out_of_fold, outputs=(head.out_of_fold.outputs * scale + mean).astype(np.float32))
    _log.info("%s", _describe(head_of(backbone.model), head, found))
    return backbone, FitResult(head.penalty, [], accuracy, out_of_fold=found)


def _compute_features(training: Training) -> tuple[NDArray[np.float32], list[NDArray[np.float32]]]:
    """Compute the features of the training images and of their augmented views. They are joined if there is a choice."""
    backbone, config, execution = training.backbone, training.config, training.execution
    samples, count = training.splits.train, config.head.augmented_views
    chooses = config.head.features == "auto" and training.splits.folder.task == "classification"
    network = (stage_extractor(backbone) if chooses else None) or feature_extractor(backbone.model, backbone.head_name)
    size = config.optim.batch_size
    extract = FrozenFeatures(network, backbone.spec, device=execution.device, batch_size=size, images=count * len(samples))
    features = extract(samples, progress=execution.progress)
    return features, extract.views(samples, count, seed=config.run.seed, progress=execution.progress)


def _fit_heads(training: Training, features: NDArray[np.float32], views: Sequence[NDArray[np.float32]]) -> list[LinearHead]:
    """Fit a head on the network's last features, and another one on the joined features if ``features`` has them."""
    splits, config = training.splits, training.config
    samples, task, classes = splits.train, splits.folder.task, len(splits.folder.labels)
    copies = copy_sets(samples) if config.data.near_duplicates == "together" else {}
    targets, groups = head_targets(samples, splits), groups_of(samples, copies)
    cells = balancing_cells(samples, splits.folder.root, config.data)
    options: FitOptions = {"seed": config.run.seed, "balanced": config.data.balance != "none", "progress": training.execution.progress}
    heads = []
    # The network's last features are the last columns of the joined features.
    for width in sorted({training.backbone.head.in_features, features.shape[1]}):
        train = LabeledFeatures(features[:, -width:], targets, groups, [view[:, -width:] for view in views], cells)
        mixes = task == "classification"
        heads.append(fit_mixture(train, classes, **options) if mixes else fit_linear_head(train, task, classes, **options))
    return heads


def _describe(spec: HeadSpec, head: LinearHead, found: OutOfFold) -> str:
    """Describe the cross-validation and the head that it selected, for the log."""
    return (
        f"cross-validated ({found.folds} folds) on {len(found.outputs)} images, without a validation split (--val). Features: "
        f"{spec.features}. Weight of linear discriminant analysis in the head: {head.discriminant_weight:g}. The final head is fitted on "
        f"all images."
    )
