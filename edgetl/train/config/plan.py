"""Which strategy fits how many images, and with which figures: the data budget.

The cuts of ``auto`` follow the usual advice by size of the data set; what stands behind the rows: a probe beats fine-tuning on very few
images and loses to it as they grow (Kumar et al. 2022, arXiv:2202.10054); lengths in steps with floors, not in epochs (BiT: Kolesnikov et
al. 2020, arXiv:1912.11370); learning rates that fall towards the stem (Howard and Ruder 2018, arXiv:1801.06146); the moving average's
decay fits short runs; mixup only with many images (BiT), and stochastic depth where such networks are usually trained with it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias, TypeVar

from pydantic import Field
from torch import nn

from edgetl.core.config import StrictModel
from edgetl.errors import ConfigError
from edgetl.train.config.options import Augment, TrainConfig
from edgetl.train.config.recipe import Schedule, TuningRecipe, with_recipe
from edgetl.train.inputs.dataset import steps_an_epoch
from edgetl.train.networks.backbone import find_head
from edgetl.train.networks.stages import choose_stages, find_stages
from edgetl.train.networks.stochastic_depth import drop_path_layers

Family: TypeAlias = Literal["batchnorm", "layernorm"]
Tuned: TypeAlias = Literal["probe", "partial", "full", "progressive", "scratch"]
Given = TypeVar("Given", bool, float)

# Learning rates of the table are for this batch size; others scale with the square root.
BATCH_OF_RATES = 64
MIN_BATCH_FOR_BATCHNORM = 16
SCRATCH_LR = 3e-3
MIXUP_ABOVE = 20_000
PROBE_BELOW, PARTIAL_UP_TO, FULL_UP_TO = 100, 10_000, 100_000


@dataclass(frozen=True)
class Rates:
    """Learning rates and regularisation that depend on the family of networks; ``ratio`` is the lowest trained stage's to the top's."""

    head: float
    top: float
    ratio: float
    weight_decay: float


@dataclass(frozen=True)
class Row:
    """One row of the table: up to ``images`` training images; ``drop_path`` is for networks without BatchNorm."""

    images: float
    unfreeze: str
    epochs: int
    least_steps: int
    most_steps: int
    rates: dict[Family, Rates]
    augment: Augment
    label_smoothing: float
    average: float
    drop_path: float = 0.0
    mixup: float = 0.0


def _rates(batchnorm: tuple[float, float, float, float], layernorm: tuple[float, float, float, float]) -> dict[Family, Rates]:
    names = ("head", "top", "ratio", "weight_decay")
    return {
        "batchnorm": Rates(**dict(zip(names, batchnorm, strict=True))),
        "layernorm": Rates(**dict(zip(names, layernorm, strict=True))),
    }


TABLE = (
    Row(images=1_000, unfreeze="0.33", epochs=20, least_steps=300, most_steps=500, augment="light", label_smoothing=0.05, average=0.999,
        rates=_rates((1e-3, 2e-4, 0.3, 0.01), (1e-3, 5e-5, 0.3, 0.05))),
    Row(images=10_000, unfreeze="0.5", epochs=15, least_steps=1_000, most_steps=2_500, augment="medium", label_smoothing=0.1, average=0.999,
        rates=_rates((1e-3, 5e-4, 0.1, 0.02), (5e-4, 1e-4, 0.05, 0.05)), drop_path=0.1),
    Row(images=100_000, unfreeze="stage1", epochs=7, least_steps=3_000, most_steps=22_000, augment="strong", label_smoothing=0.1,
        average=0.9998, rates=_rates((1e-3, 1e-3, 0.1, 0.05), (1e-3, 2e-4, 0.03, 0.05)), drop_path=0.1, mixup=0.1),
    Row(images=math.inf, unfreeze="stage1", epochs=7, least_steps=10_000, most_steps=20_000, augment="strong", label_smoothing=0.1,
        average=0.9998, rates=_rates((1e-3, 1e-3, 0.1, 0.05), (1e-3, 2e-4, 0.03, 0.05)), drop_path=0.1, mixup=0.2),
)  # fmt: skip


class Plan(StrictModel):
    """What one fine-tuning will do.

    Attributes:
        strategy: what ``auto`` came to, or what was asked for.
        reason: the rule that chose it, as a sentence.
        images: distinct training images.
        unfreeze: see ``edgetl.train.networks.stages.choose_stages``.
        steps: optimizer steps; 0 for a probe.
        head_lr, top_lr: learning rates of the head and of the trunk's last stage.
        lr_ratio: the lowest trained stage's rate relative to ``top_lr``; those between lie on a geometric row.
        freeze_batchnorm: keep every BatchNorm as it is, statistics too.
        average: decay of the moving average of the weights; 0 for none.
        schedule, rise, div: of the learning rates; see ``TuningRecipe``.
        frozen_steps: of ``steps``, the first ones, in which the head learns alone, at ``frozen_lr``.
        fit_head: start from the closed-form head.
        drop_path: chance that a step leaves out the last block's residual branch; those before it less, in proportion.
        mixup: of pairs of images, in shares from Beta(mixup, mixup); 0 for none.
        lr_found: ``head_lr``, where a range test found it (``--lr auto``).
    """

    strategy: Tuned
    reason: str
    images: int = Field(ge=0)
    family: Family
    unfreeze: str
    steps: int = Field(ge=0, le=10**9)
    head_lr: float = Field(ge=0.0)
    top_lr: float = Field(ge=0.0)
    lr_ratio: float = Field(ge=0.0)
    weight_decay: float = Field(ge=0.0)
    label_smoothing: float = Field(ge=0.0, lt=1.0)
    average: float = Field(ge=0.0, le=1.0)
    freeze_batchnorm: bool
    augment: Augment
    schedule: Schedule = "cosine"
    rise: float = 0.1
    div: float = 25.0
    frozen_steps: int = 0
    frozen_lr: float = 0.0
    fit_head: bool = True
    lr_found: float | None = None
    drop_path: float = 0.0
    mixup: float = 0.0


def family_of(model: nn.Module) -> Family:
    """``batchnorm`` for networks that have such layers, else ``layernorm`` (ViT, ConvNeXt)."""
    return "batchnorm" if any(isinstance(module, nn.BatchNorm2d) for module in model.modules()) else "layernorm"


def choose_strategy(images: int) -> tuple[Tuned, str]:
    """The strategy for ``images`` distinct training images, and why."""
    if images < PROBE_BELOW:
        return "probe", f"{images} training images, fewer than {PROBE_BELOW}: more than a head would overfit"
    if images <= PARTIAL_UP_TO:
        return "partial", f"{images:,} training images, {PROBE_BELOW} to {PARTIAL_UP_TO:,}: the upper stages adapt, the general ones stay"
    if images <= FULL_UP_TO:
        return "full", f"{images:,} training images, {PARTIAL_UP_TO + 1:,} to {FULL_UP_TO:,}: enough to adapt every stage"
    return (
        "full",
        f"{images:,} training images, more than {FULL_UP_TO:,}: every stage adapts; a pilot may choose scratch instead",
    )


def make_plan(config: TrainConfig, images: int, model: nn.Module) -> Plan:
    """Resolve ``config`` for ``images`` distinct training images: the recipe's figures wherever the user gave none, then the table's.

    Raises:
        ConfigError: BatchNorm cannot learn from so few images at a time, or the recipe cannot be used.
    """
    config, recipe = with_recipe(config)
    strategy, reason = _resolve(config, images)
    row = next(item for item in TABLE if images <= item.images)
    family = family_of(model)
    scratch = strategy == "scratch" or not config.backbone.pretrained
    epoch = steps_an_epoch(images, config.optim.batch_size)
    frozen = 0 if scratch or strategy == "probe" else recipe.frozen_epochs * epoch
    steps = (
        frozen + (config.optim.epochs * epoch if config.optim.epochs else recipe.steps or _table_steps(row, epoch))
        if strategy != "probe"
        else 0
    )
    # BatchNorm that starts to learn gives the fitted head other features than it was fitted on. A few hundred steps do not make that good:
    # on 1,444 hand signs the test accuracy was 0.955 with it and 0.997 without (ImageNet MobileNetV2, partial, 128 px).
    few = images <= PARTIAL_UP_TO or config.optim.batch_size < MIN_BATCH_FOR_BATCHNORM
    still = _or(recipe.freeze_batchnorm, few) and not scratch
    if steps and family == "batchnorm" and not still:
        _check_batch(config, images)
    unfreeze = config.optim.unfreeze or _unfreeze(strategy, row, scratch=scratch)
    tuned = len(choose_stages(find_stages(model, find_head(model)), unfreeze)) - 1 if recipe.lr_spread else 0
    rates = _plan_rates(config, recipe, row.rates[family], images=images, scratch=scratch, tuned=tuned)
    return Plan(
        strategy=strategy,
        reason=reason,
        images=images,
        family=family,
        unfreeze=unfreeze,
        steps=steps,
        head_lr=rates.head,
        top_lr=rates.top,
        lr_ratio=rates.ratio,
        weight_decay=rates.weight_decay,
        label_smoothing=_smoothing(config, row),
        average=max(0.0, min(_or(recipe.average, row.average), 1 - 10 / steps)) if steps else 0.0,
        freeze_batchnorm=still,
        augment=row.augment if config.data.augment == "auto" else config.data.augment,
        schedule=recipe.schedule,
        rise=recipe.rise,
        div=recipe.div,
        frozen_steps=frozen,
        frozen_lr=rates.head * recipe.frozen_factor,
        fit_head=recipe.fit_head,
        drop_path=_drop_path(config, row, model),
        mixup=_or(config.data.mixup, row.mixup if images > MIXUP_ABOVE else 0.0),
    )


def _smoothing(config: TrainConfig, row: Row) -> float:
    if config.optim.label_smoothing is not None:
        return config.optim.label_smoothing
    return 0.0 if config.distillation.teacher else row.label_smoothing  # a teacher's answers are soft already


def _check_batch(config: TrainConfig, images: int) -> None:
    if min(config.optim.batch_size, images) < 2:
        raise ConfigError(
            f"{images} training images in batches of {config.optim.batch_size}: BatchNorm learns from two images at least. Raise "
            f"--batch-size, or leave its layers as they are: pretrained weights, and no recipe that says otherwise."
        )


def _drop_path(config: TrainConfig, row: Row, model: nn.Module) -> float:
    places = drop_path_layers(model)
    if config.optim.drop_path and not places:
        raise ConfigError("--drop-path: this network has no residual branches that could be left out by timm's names. Leave it out.")
    return _or(config.optim.drop_path, row.drop_path if places and family_of(model) == "layernorm" else 0.0)


def _or(given: Given | None, otherwise: Given) -> Given:
    return otherwise if given is None else given


def _plan_rates(config: TrainConfig, recipe: TuningRecipe, table: Rates, *, images: int, scratch: bool, tuned: int) -> Rates:
    """The plan's learning rates and weight decay; ``tuned`` counts the trunk's stages over which a recipe spreads them."""
    scale = math.sqrt(min(config.optim.batch_size, images) / BATCH_OF_RATES)
    given = recipe.head_lr if config.optim.lr == "auto" else config.optim.lr
    head = given or (SCRATCH_LR if scratch else table.head * scale)
    top, ratio = (head, 1.0) if scratch else (head * table.top / table.head, table.ratio)
    if recipe.lr_spread and tuned and not scratch:  # one geometric row, the head included
        top, ratio = head * recipe.lr_spread ** (-1 / tuned), recipe.lr_spread ** ((1 - tuned) / tuned)
    return Rates(head, config.optim.backbone_lr or top, config.optim.lr_decay or ratio, _or(config.optim.weight_decay, table.weight_decay))


def _resolve(config: TrainConfig, images: int) -> tuple[Tuned, str]:
    if config.optim.strategy != "auto" and config.optim.strategy != "compare":
        return config.optim.strategy, "as asked"
    return choose_strategy(images) if config.backbone.pretrained else ("scratch", "random weights: every layer has to learn")


def _unfreeze(strategy: Tuned, row: Row, *, scratch: bool) -> str:
    if strategy == "partial":
        return row.unfreeze
    return "1" if scratch and strategy != "progressive" else "stage1"


def _table_steps(row: Row, epoch: int) -> int:
    return min(max(row.epochs * epoch, row.least_steps), row.most_steps)


def describe_plan(plan: Plan) -> str:
    """The plan in two sentences, with the alternatives."""
    what = "a head on the frozen trunk's features"
    if plan.steps:
        what = (
            f"{plan.steps} steps, --unfreeze {plan.unfreeze}, learning rates {plan.head_lr:.1e} (head) and {plan.top_lr:.1e} to "
            f"{plan.top_lr * plan.lr_ratio:.1e} (trunk), augmentation {plan.augment}"
        )
        if plan.frozen_steps:
            what += f"; the head alone for the first {plan.frozen_steps} steps, at {plan.frozen_lr:.1e}"
    others = " or ".join(name for name in ("probe", "partial", "full") if name != plan.strategy)
    return f"strategy {plan.strategy} ({plan.reason}): {what}. Also possible: --strategy {others}."
