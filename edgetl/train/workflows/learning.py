"""How a network learns what a plan says: a fitted head, then gradient steps."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import assert_never

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgetl.core.licenses import check_policy, most_restrictive
from edgetl.core.progress import Progress
from edgetl.data.folder import Sample
from edgetl.data.loading import groups_of, labels_of, truth_of
from edgetl.data.split import Splits
from edgetl.train.config.options import TrainConfig
from edgetl.train.config.plan import Plan
from edgetl.train.config.tasks import value_scale
from edgetl.train.continual.teacher import Tutor, find_tutor
from edgetl.train.heads.fit import Rows, fit_other_head, set_head
from edgetl.train.heads.linear import LinearHead, fit_head, fit_label_heads, fit_value_head, fold_scale
from edgetl.train.heads.modules import HeadSpec
from edgetl.train.inputs.activation_cache import Workplace
from edgetl.train.inputs.dataset import random_crop
from edgetl.train.inputs.features import FrozenFeatures
from edgetl.train.loop.checkpoints import Checkpoints
from edgetl.train.loop.loop import Lessons, tune
from edgetl.train.loop.losses import make_objective
from edgetl.train.networks.backbone import Backbone, feature_extractor

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
        extract = make_extractor(backbone, config, place.device, config.head.augmented_views * len(samples))
        features = extract(samples, progress=place.progress)
        if config.head.kind != "linear":
            return Taught(None, [], _fit_other(extract, features, backbone, splits, samples, config=config, progress=place.progress))
        head = _fit_probe(extract, features, backbone, splits, samples, config=config, progress=place.progress)
        outputs, truth = (torch.from_numpy(item) for item in (features @ head.weight.T + head.bias, truth_of(samples)))
        penalty, accuracy = head.penalty, float(make_objective(splits, plan, config).right(outputs, truth)) / len(outputs)
    elif not plan.fit_head:
        _draw_head(backbone, config.run.seed)
    if plan.strategy == "probe":
        fold_scale(backbone.head, *value_scale(splits))
        return Taught(penalty, [], accuracy)
    history = tune(backbone, splits, plan, config, place, checkpoints=checkpoints, head_penalty=penalty, lessons=lessons)
    fold_scale(backbone.head, *value_scale(splits))
    return Taught(history.head_penalty, history.rows, history.rows[-1]["train_accuracy"], history.interpolation_weight, history.sweep)


def _draw_head(backbone: Backbone, seed: int) -> None:
    """A random head as fastai draws its own (He et al. 2015, arXiv:1502.01852): some architectures' own are ten times as large."""
    torch.manual_seed(seed)
    nn.init.kaiming_normal_(backbone.head.weight)
    nn.init.zeros_(backbone.head.bias)


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


def make_extractor(backbone: Backbone, config: TrainConfig, device: str, images: int) -> FrozenFeatures:
    """For the frozen part of ``backbone`` and about so many images."""
    trunk = feature_extractor(backbone.model, backbone.head_name)
    return FrozenFeatures(trunk, backbone.spec, device=device, batch_size=config.optim.batch_size, images=images)


def _views(extract: FrozenFeatures, samples: Sequence[Sample], config: TrainConfig, progress: Progress) -> list[NDArray[np.float32]]:
    """Features of other crops of the same images, each ``[n, width]``."""
    return [
        extract(samples, prepare=random_crop(config.run.seed, view), progress=progress) for view in range(1, config.head.augmented_views)
    ]


def _fit_other(
    extract: FrozenFeatures, features: NDArray[np.float32], backbone: Backbone, splits: Splits, samples: Sequence[Sample], *,
    config: TrainConfig, progress: Progress,
) -> float:  # fmt: skip
    """Fit a head that is not the linear one; the accuracy on the training images."""
    # A neighbour under another crop would vote a second time for the same picture.
    views = [] if config.head.kind == "knn" else _views(extract, samples, config, progress)
    fitted = fit_other_head(
        HeadSpec(kind=config.head.kind, features=config.head.features),
        Rows(features, labels_of(samples), groups_of(samples)),
        Rows(extract(splits.val, progress=progress), labels_of(splits.val)),
        len(splits.folder.labels),
        views=views,
        seed=config.run.seed,
        balanced=config.data.balance != "none",
        progress=progress,
    )
    set_head(backbone.model, fitted)
    return fitted.train_accuracy


def _fit_probe(
    extract: FrozenFeatures, features: NDArray[np.float32], backbone: Backbone, splits: Splits, samples: Sequence[Sample], *,
    config: TrainConfig, progress: Progress,
) -> LinearHead:  # fmt: skip
    """``samples`` are the training images, and replayed ones of the same classes."""
    views, groups = _views(extract, samples, config, progress), groups_of(samples)
    balanced = config.data.balance != "none"
    match splits.folder.task:
        case "classification":
            labels, classes = labels_of(samples), len(splits.folder.labels)
            head = fit_head(
                features, labels, classes, seed=config.run.seed, views=views, groups=groups, balanced=balanced, progress=progress
            )
        case "multi-label":
            truth = truth_of(samples)
            head = fit_label_heads(features, truth, seed=config.run.seed, views=views, groups=groups, balanced=balanced, progress=progress)
        case "regression" | "ordinal":
            mean, spread = value_scale(splits)
            head = fit_value_head(features, (truth_of(samples)[:, 0] - mean) / spread, views=views, groups=groups)
        case _:
            assert_never(splits.folder.task)
    with torch.no_grad():
        backbone.head.weight.copy_(torch.from_numpy(head.weight))
        backbone.head.bias.copy_(torch.from_numpy(head.bias))
    return head
