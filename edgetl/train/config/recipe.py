"""Training recipes (``--recipe``): TOML files whose values replace data-dependent defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypeAlias

from pydantic import Field, model_validator

import edgetl
from edgetl.core.config import StrictModel, read_toml
from edgetl.core.options import options
from edgetl.errors import ConfigError
from edgetl.train.config.options import Augment, Strategy, TrainConfig

Schedule: TypeAlias = Literal["cosine", "one-cycle"]


class Recipe(StrictModel):
    """Values of a recipe. A value that is left out takes its data-dependent default.

    Attributes:
        strategy, unfreeze, epochs, lr, backbone_lr, lr_decay, weight_decay, label_smoothing, augment, drop_path, mixup: Same as the options
            of ``edgetl train``, which override them. Learning rates of a recipe do not scale with the batch size.
        steps: Optimizer steps. Replaces ``epochs``.
        lr_spread: Ratio of the head's learning rate to that of the first trained stage. The rates between form a geometric sequence.
            Replaces ``backbone_lr`` and ``lr_decay``.
        ema_decay: Decay of the exponential moving average (EMA) of the weights. It is reduced in a short training; 0 is off.
        freeze_batchnorm: Freeze the statistics and parameters of every BatchNorm.
        fit_head: Start from the closed-form head. False starts from a random head.
        frozen_epochs: Epochs at the start that train the head alone. They are added to ``epochs``.
        frozen_factor: Learning rate of the head in ``frozen_epochs``, relative to ``lr``.
        schedule: Learning-rate schedule: ``cosine`` (with linear warm-up) or ``one-cycle`` (Smith and Topin 2017, arXiv:1708.07120).
        warmup_fraction: Fraction of the steps with rising learning rates.
        div_factor: Ratio of the highest to the first learning rate of ``one-cycle``.
    """

    schema_version: Literal[1] = 1
    strategy: Strategy | None = None
    unfreeze: str | None = None
    epochs: int | None = Field(default=None, ge=1)
    steps: int | None = Field(default=None, ge=1)
    lr: float | None = Field(default=None, gt=0.0)
    backbone_lr: float | None = Field(default=None, gt=0.0)
    lr_decay: float | None = Field(default=None, gt=0.0, le=1.0)
    lr_spread: float | None = Field(default=None, ge=1.0)
    weight_decay: float | None = Field(default=None, ge=0.0)
    label_smoothing: float | None = Field(default=None, ge=0.0, lt=1.0)
    ema_decay: float | None = Field(default=None, ge=0.0, lt=1.0)
    augment: Augment | None = None
    drop_path: float | None = Field(default=None, ge=0.0, lt=1.0)
    mixup: float | None = Field(default=None, ge=0.0)
    freeze_batchnorm: bool | None = None
    fit_head: bool = True
    frozen_epochs: int = Field(default=0, ge=0)
    frozen_factor: float = Field(default=1.0, gt=0.0)
    schedule: Schedule = "cosine"
    warmup_fraction: float = Field(default=0.1, gt=0.0, lt=1.0)
    div_factor: float = Field(default=25.0, ge=1.0)

    @model_validator(mode="after")
    def _is_consistent(self) -> Recipe:
        if self.epochs is not None and self.steps is not None:
            raise ValueError("epochs and steps exclude each other. Remove one of them")
        if self.lr_spread is not None and (self.backbone_lr is not None or self.lr_decay is not None):
            raise ValueError("lr_spread sets the learning rate of every stage. Remove backbone_lr and lr_decay")
        return self

    def options(self) -> dict[str, Any]:
        """Return the values that are also options of ``edgetl train``, by the name of the option."""
        known = options(TrainConfig)
        return {name: value for name, value in self if name in known and value is not None}


def models_folder() -> Path:
    """Return the folder of recipes, model cards and embedded weights: inside an installed package, or beside it in a checkout."""
    package = Path(edgetl.__file__).parent
    inside = package / "models"
    return inside if inside.is_dir() else package.parent / "models"


def builtin_recipes() -> list[str]:
    """Return the names of the recipes in the package."""
    return sorted(path.stem for path in (models_folder() / "recipes").glob("*.toml"))


def read_recipe(name: str) -> Recipe:
    """Read the built-in recipe ``name``, or the recipe file ``name`` if it ends in ``.toml``.

    Raises:
        ConfigError: If there is no such recipe, it is not TOML, or a value is invalid. The message lists all mistakes.
    """
    if name in builtin_recipes():
        path = models_folder() / "recipes" / f"{name}.toml"
    elif name.endswith(".toml"):
        path = Path(name)
    else:
        raise ConfigError(
            f"--recipe {name}: there is no such recipe. Built-in recipes: {', '.join(builtin_recipes())}. Or give a file NAME.toml."
        )
    return read_toml(path, Recipe, ConfigError, name=f"--recipe {path}")


def with_recipe(config: TrainConfig) -> tuple[TrainConfig, Recipe]:
    """Apply the recipe of ``config`` to every option that was not given.

    The recipe's ``unfreeze`` belongs to its strategy. It is ignored if another strategy was given.

    Returns:
        The new configuration, and the recipe. Without ``--recipe``, the recipe is empty.

    Raises:
        ConfigError: As for ``read_recipe``.
    """
    if config.optim.recipe is None:
        return config, Recipe()
    recipe = read_recipe(config.optim.recipe)
    given = config.given()
    filled = {name: value for name, value in recipe.options().items() if name not in given}
    if recipe.strategy is not None and given.get("strategy", recipe.strategy) != recipe.strategy:
        filled.pop("unfreeze", None)
    return config.with_options(**filled), recipe
