"""Data-dependent defaults: strategy, steps, learning rates and regularization by the number of training images.

Sources: a probe beats fine-tuning on very few images and loses to it as they grow (Kumar et al. 2022, arXiv:2202.10054); lengths in steps
with floors, not in epochs, and mixup only with many images (BiT: Kolesnikov et al. 2020, arXiv:1912.11370); learning rates that decay
towards the stem (Howard and Ruder 2018, arXiv:1801.06146); the decay of the EMA fits short trainings; stochastic depth where such networks
are usually trained with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, TypeVar

from pydantic import Field

from edgetl.core.config import StrictModel
from edgetl.core.tasks import Task
from edgetl.errors import ConfigError
from edgetl.train.config.options import Augment, OptimConfig, Strategy, TrainConfig
from edgetl.train.config.recipe import Recipe, Schedule

Family: TypeAlias = Literal["batchnorm", "layernorm"]
PlannedStrategy: TypeAlias = Literal["probe", "partial", "full", "progressive", "scratch"]
Given = TypeVar("Given", bool, float)

# Learning rates of the table are for this batch size; others scale with the square root.
BATCH_OF_RATES = 64
MIN_BATCH_FOR_BATCHNORM = 16
SCRATCH_LR = 3e-3
MIXUP_ABOVE = 20_000
PROBE_BELOW, PARTIAL_UP_TO, FULL_UP_TO = 100, 10_000, 100_000


@dataclass(frozen=True)
class Rates:
    """Learning rates of the head and of the last trained stage, decay towards the lowest trained stage, and weight decay."""

    lr: float
    backbone_lr: float
    lr_decay: float
    weight_decay: float


@dataclass(frozen=True)
class Defaults:
    """One row of the table: for up to ``images`` training images; ``drop_path`` is for networks without BatchNorm."""

    images: float
    unfreeze: str
    epochs: int
    least_steps: int
    most_steps: int
    augment: Augment
    label_smoothing: float
    ema_decay: float
    rates: dict[Family, Rates]
    drop_path: float = 0.1
    mixup: float = 0.0


MANY_IMAGES = Defaults(
    images=100_000,
    unfreeze="stage1",
    epochs=7,
    least_steps=3_000,
    most_steps=22_000,
    augment="strong",
    label_smoothing=0.1,
    ema_decay=0.9998,
    rates={"batchnorm": Rates(1e-3, 1e-3, 0.1, 0.05), "layernorm": Rates(1e-3, 2e-4, 0.03, 0.05)},
    mixup=0.1,
)
TABLE = (
    Defaults(
        images=1_000,
        unfreeze="0.33",
        epochs=20,
        least_steps=300,
        most_steps=500,
        augment="light",
        label_smoothing=0.05,
        ema_decay=0.999,
        rates={"batchnorm": Rates(1e-3, 2e-4, 0.3, 0.01), "layernorm": Rates(1e-3, 5e-5, 0.3, 0.05)},
        drop_path=0.0,
    ),
    Defaults(
        images=10_000,
        unfreeze="0.5",
        epochs=15,
        least_steps=1_000,
        most_steps=2_500,
        augment="medium",
        label_smoothing=0.1,
        ema_decay=0.999,
        rates={"batchnorm": Rates(1e-3, 5e-4, 0.1, 0.02), "layernorm": Rates(5e-4, 1e-4, 0.05, 0.05)},
    ),
    MANY_IMAGES,
    replace(MANY_IMAGES, images=math.inf, least_steps=10_000, most_steps=20_000, mixup=0.2),
)


def defaults_for(images: int) -> Defaults:
    """Row of the table for ``images`` distinct training images."""
    return next(row for row in TABLE if images <= row.images)


class Plan(StrictModel):
    """Resolved figures of one fine-tuning; ``run.json`` holds them.

    Attributes:
        strategy, reason: the strategy, and the rule that chose it, as a sentence.
        images: distinct training images.
        family: whether the network has BatchNorm.
        unfreeze: layers that train; see ``edgetl.train.networks.stages.choose_stages``.
        steps: optimizer steps; 0 for a probe.
        lr, backbone_lr: learning rates of the head and of the backbone's last stage.
        lr_decay: rate of the lowest trained stage relative to ``backbone_lr``; the rates between are geometric.
        label_smoothing, augment, drop_path, mixup, weight_decay: as the options of ``edgetl train``.
        ema_decay: decay of the exponential moving average (EMA) of the weights; 0 for none.
        freeze_batchnorm: keep every BatchNorm as it is, statistics too.
        schedule, warmup_fraction, div_factor: of the learning rates; see ``Recipe``.
        frozen_steps: of ``steps``, the first ones, which train the head alone at ``frozen_lr``.
        fit_head: start from the closed-form head.
    """

    strategy: PlannedStrategy
    reason: str
    images: int = Field(ge=0)
    family: Family
    unfreeze: str
    steps: int = Field(ge=0, le=10**9)
    lr: float = Field(ge=0.0)
    backbone_lr: float = Field(ge=0.0)
    lr_decay: float = Field(ge=0.0)
    weight_decay: float = Field(ge=0.0)
    label_smoothing: float = Field(ge=0.0, lt=1.0)
    ema_decay: float = Field(ge=0.0, le=1.0)
    freeze_batchnorm: bool
    augment: Augment
    schedule: Schedule
    warmup_fraction: float
    div_factor: float
    frozen_steps: int
    frozen_lr: float
    fit_head: bool
    drop_path: float
    mixup: float


@dataclass(frozen=True)
class NetworkFacts:
    """Structure of a network, as far as a plan depends on it.

    Attributes:
        family: ``batchnorm`` for networks with such layers, else ``layernorm`` (ViT, ConvNeXt).
        count_trained: number of backbone stages that train under an ``unfreeze``.
        has_drop_path: whether residual branches can be dropped.
    """

    family: Family
    count_trained: Callable[[str], int]
    has_drop_path: bool


@dataclass(frozen=True)
class TrainingJob:
    """One fine-tuning, resolved as far as the backbone is not needed; ``make_plan`` does the rest.

    Attributes:
        config: options, with the recipe's values where none was given.
        recipe: the recipe's further values.
        task: of the labels.
        images: distinct training images.
        strategy, reason: the strategy, and the rule that chose it.
    """

    config: TrainConfig
    recipe: Recipe
    task: Task
    images: int
    strategy: PlannedStrategy
    reason: str

    @property
    def from_random_weights(self) -> bool:
        """Whether every layer starts from random weights."""
        return self.strategy == "scratch" or not self.config.backbone.pretrained


def choose_strategy(images: int) -> tuple[PlannedStrategy, str]:
    """Strategy for ``images`` distinct training images, and the reason."""
    if images < PROBE_BELOW:
        return "probe", (
            f"{images} training images (fewer than {PROBE_BELOW}): only the head is trained, because fine-tuning the backbone would overfit"
        )
    if images <= PARTIAL_UP_TO:
        return "partial", f"{images:,} training images ({PROBE_BELOW} to {PARTIAL_UP_TO:,}): the upper stages adapt, the general ones stay"
    if images <= FULL_UP_TO:
        return "full", f"{images:,} training images ({PARTIAL_UP_TO + 1:,} to {FULL_UP_TO:,}): enough to adapt every stage"
    return "full", (
        f"{images:,} training images (more than {FULL_UP_TO:,}): every stage adapts; --strategy compare also trains from random weights"
    )


def planned_strategy(given: Strategy, images: int, *, pretrained: bool) -> tuple[PlannedStrategy, str]:
    """Strategy that was given, or ``choose_strategy`` for ``auto`` and ``compare``, and the reason."""
    if given != "auto" and given != "compare":
        return given, "given by --strategy"
    return choose_strategy(images) if pretrained else ("scratch", "random weights: every layer is trained")


def steps_per_epoch(images: int, batch_size: int) -> int:
    """Batches of one pass; a last batch of one image, which BatchNorm cannot take, is dropped."""
    rest = images % batch_size
    return max(1, images // batch_size + (1 if rest > 1 or (rest and images < batch_size) else 0))


def make_plan(job: TrainingJob, facts: NetworkFacts) -> Plan:
    """Figures of ``job`` for a network: what was given, else the recipe's, else the table's.

    Raises:
        ConfigError: BatchNorm cannot learn from so few images at a time, or there is nothing for ``--drop-path``.
    """
    optim, data, recipe, row = job.config.optim, job.config.data, job.recipe, defaults_for(job.images)
    probe, scratch = job.strategy == "probe", job.from_random_weights
    epoch = steps_per_epoch(job.images, optim.batch_size)
    frozen = 0 if scratch or probe else recipe.frozen_epochs * epoch
    steps = 0 if probe else frozen + _steps(job, epoch)
    unfreeze = optim.unfreeze or _unfreeze(job.strategy, row, scratch=scratch)
    rates = _rates(job, row.rates[facts.family], facts.count_trained(unfreeze) if recipe.lr_spread else 0)
    if optim.drop_path and not facts.has_drop_path:
        raise ConfigError("--drop-path: this network has no residual branches that timm's names mark. Remove the option.")
    return Plan(
        strategy=job.strategy,
        reason=job.reason,
        images=job.images,
        family=facts.family,
        unfreeze=unfreeze,
        steps=steps,
        **vars(rates),
        label_smoothing=_label_smoothing(job, row),
        ema_decay=max(0.0, min(_or(recipe.ema_decay, row.ema_decay), 1 - 10 / steps)) if steps else 0.0,
        freeze_batchnorm=_freeze_batchnorm(job, facts, trains=steps > 0),
        augment=row.augment if data.augment == "auto" else data.augment,
        schedule=recipe.schedule,
        warmup_fraction=recipe.warmup_fraction,
        div_factor=recipe.div_factor,
        frozen_steps=frozen,
        frozen_lr=rates.lr * recipe.frozen_factor,
        fit_head=recipe.fit_head,
        drop_path=_or(optim.drop_path, row.drop_path if facts.has_drop_path and facts.family == "layernorm" else 0.0),
        mixup=_or(data.mixup, row.mixup if job.images > MIXUP_ABOVE and not job.config.continual.replay else 0.0),
    )


def _or(given: Given | None, otherwise: Given) -> Given:
    return otherwise if given is None else given


def _steps(job: TrainingJob, epoch: int) -> int:
    row = defaults_for(job.images)
    if job.config.optim.epochs:
        return job.config.optim.epochs * epoch
    return job.recipe.steps or min(max(row.epochs * epoch, row.least_steps), row.most_steps)


def _unfreeze(strategy: PlannedStrategy, row: Defaults, *, scratch: bool) -> str:
    if strategy == "partial":
        return row.unfreeze
    return "1" if scratch and strategy != "progressive" else "stage1"


def _label_smoothing(job: TrainingJob, row: Defaults) -> float:
    if not smooths_labels(job.config.optim, job.task):
        return 0.0
    return _or(job.config.optim.label_smoothing, 0.0 if job.config.distillation.teacher else row.label_smoothing)


def smooths_labels(optim: OptimConfig, task: Task) -> bool:
    """Whether the loss takes smoothed labels; the outputs of a teacher are soft already."""
    return task == "classification" or (task == "multi-label" and optim.multilabel_loss == "bce")


def _freeze_batchnorm(job: TrainingJob, facts: NetworkFacts, *, trains: bool) -> bool:
    """Frozen on few images, because a trained BatchNorm changes the features that the head was fitted on.

    A few hundred steps do not mend that: on 1,444 hand signs the test accuracy was 0.955 with it and 0.997 without (ImageNet MobileNetV2,
    partial, 128 px).
    """
    batch = job.config.optim.batch_size
    few = job.images <= PARTIAL_UP_TO or batch < MIN_BATCH_FOR_BATCHNORM
    frozen = _or(job.recipe.freeze_batchnorm, few) and not job.from_random_weights
    if trains and facts.family == "batchnorm" and not frozen and min(batch, job.images) < 2:
        raise ConfigError(
            f"{job.images} training images in batches of {batch}: BatchNorm needs two images at least. Raise --batch-size, or keep its "
            f"layers frozen: use pretrained weights, and no recipe that trains them."
        )
    return frozen


def _rates(job: TrainingJob, table: Rates, spread_over: int) -> Rates:
    """Learning rates and weight decay; a recipe's ``lr_spread`` covers ``spread_over`` stages of the backbone."""
    optim, recipe, scratch = job.config.optim, job.recipe, job.from_random_weights
    lr = optim.lr or (SCRATCH_LR if scratch else table.lr * math.sqrt(min(optim.batch_size, job.images) / BATCH_OF_RATES))
    backbone_lr, lr_decay = (lr, 1.0) if scratch else (lr * table.backbone_lr / table.lr, table.lr_decay)
    if recipe.lr_spread and spread_over and not scratch:  # one geometric sequence, the head included
        backbone_lr, lr_decay = lr * recipe.lr_spread ** (-1 / spread_over), recipe.lr_spread ** ((1 - spread_over) / spread_over)
    return Rates(lr, optim.backbone_lr or backbone_lr, optim.lr_decay or lr_decay, _or(optim.weight_decay, table.weight_decay))


def describe_plan(plan: Plan) -> str:
    """The plan in two sentences, with the alternative strategies."""
    what = "a head on frozen features"
    if plan.steps:
        what = (
            f"{plan.steps} steps, --unfreeze {plan.unfreeze}, learning rates {plan.lr:.1e} (head) and {plan.backbone_lr:.1e} to "
            f"{plan.backbone_lr * plan.lr_decay:.1e} (backbone), augmentation {plan.augment}"
        )
        if plan.frozen_steps:
            what += f"; the head alone for the first {plan.frozen_steps} steps, at {plan.frozen_lr:.1e}"
    others = " or ".join(name for name in ("probe", "partial", "full") if name != plan.strategy)
    return f"strategy {plan.strategy} ({plan.reason}): {what}. Also possible: --strategy {others}."
