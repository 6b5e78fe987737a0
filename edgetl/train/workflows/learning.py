"""How a network learns what a plan says: a fitted head, then gradient steps."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, assert_never

import numpy as np
import torch
from numpy.typing import NDArray

from edgetl.core.licenses import check_policy, most_restrictive
from edgetl.data.folder import Sample
from edgetl.data.loading import groups_of, labels_of, truth_of
from edgetl.data.split import Splits
from edgetl.train.config.options import TrainConfig
from edgetl.train.config.plan import Plan
from edgetl.train.config.tasks import value_scale
from edgetl.train.continual.teacher import Tutor, find_tutor
from edgetl.train.heads.fit import draw_head, fit_linear_head, fit_other_head, set_head, set_linear_head
from edgetl.train.heads.linear import class_weights, fold_scale
from edgetl.train.heads.modules import HeadSpec, LabeledFeatures
from edgetl.train.inputs.activation_cache import Workplace
from edgetl.train.inputs.features import features_of
from edgetl.train.loop.checkpoints import Checkpoints
from edgetl.train.loop.loop import Lessons, tune
from edgetl.train.loop.losses import make_objective
from edgetl.train.networks.backbone import Backbone

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Taught:
    """What happened while the network learned.

    Attributes:
        head_penalty: of the probe that fitted the head; none for random weights.
        rows: figures of each validation.
        train_accuracy: on training images, as they were shown last.
        interpolation_weight: of the tuned weights in the result.
        sweep: learning rates and losses of the range test (``--lr auto``).
    """

    head_penalty: float | None
    rows: list[dict[str, float]]
    train_accuracy: float
    interpolation_weight: float = 1.0
    sweep: list[tuple[float, float]] = field(default_factory=list)


def teach(
    backbone: Backbone, splits: Splits, config: TrainConfig, plan: Plan, place: Workplace, checkpoints: Checkpoints, lessons: Lessons
) -> Taught:
    """Fit the head, then tune as planned, and give its answers their unit."""
    samples = [*splits.train, *(sample for sample in lessons.protection.replay if sample.label >= 0)]
    # A head fitted on random features is large and wrong: training from random weights starts from a random head too.
    starts = config.backbone.pretrained and plan.strategy != "scratch" and checkpoints.newest() is None
    fits = plan.strategy == "probe" or (starts and plan.fit_head and not lessons.protection.keeps_head)
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
            return Taught(None, [], fitted.train_accuracy)
        head = fit_linear_head(
            train, splits.folder.task, len(splits.folder.labels), seed=config.run.seed, balanced=balanced, progress=place.progress
        )
        set_linear_head(backbone.head, head)
        outputs, truth = (torch.from_numpy(item) for item in (features @ head.weight.T + head.bias, truth_of(samples)))
        penalty, accuracy = head.penalty, float(make_objective(splits, plan, config).right(outputs, truth)) / len(outputs)
    elif not plan.fit_head:
        draw_head(backbone.head, config.run.seed)
    if plan.strategy == "probe":
        fold_scale(backbone.head, *value_scale(splits))
        return Taught(penalty, [], accuracy)
    history = tune(backbone, splits, plan, config, place, checkpoints=checkpoints, head_penalty=penalty, lessons=lessons)
    fold_scale(backbone.head, *value_scale(splits))
    return Taught(history.head_penalty, history.rows, history.rows[-1]["train_accuracy"], history.interpolation_weight, history.sweep)


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


def choose_tutor(config: TrainConfig, plan: Plan, splits: Splits, place: Workplace) -> Tutor | None:
    """The teacher that was asked for, if its license allows; none for a probe."""
    if config.distillation.teacher and plan.strategy == "probe":
        _log.info("--teacher: a probe is fitted in closed form and asks no teacher")
        return None
    tutor = find_tutor(config, splits, place)
    if tutor:
        check_policy(
            most_restrictive(parent.license for parent in tutor.parents),
            config.backbone.license_policy,
            name=str(config.distillation.teacher),
        )
    return tutor
