"""Recipes of fine-tuning (``--recipe``): a TOML file that replaces data-dependent defaults."""

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
    """Values of a recipe; for those that are left out the table of defaults applies.

    Attributes:
        strategy, unfreeze, epochs, lr, backbone_lr, lr_decay, weight_decay, label_smoothing, augment, drop_path, mixup: as the options of
            ``edgetl train``, which override them; the rates do not scale with the batch.
        steps: optimizer steps, instead of ``epochs``.
        lr_spread: rate of the head over that of the lowest trained stage, in one geometric sequence, instead of ``backbone_lr`` and
            ``lr_decay``.
        ema_decay: decay of the exponential moving average of the weights; lower in a short training, 0 for none.
        freeze_batchnorm: keep every BatchNorm as it is.
        fit_head: start from the closed-form head; false starts from a random one.
        frozen_epochs: epochs before the others that train the head alone.
        frozen_factor: rate of the head in those, relative to ``lr``.
        schedule: of the learning rates: ``cosine`` (linear warm-up) or ``one-cycle`` (Smith and Topin 2017, arXiv:1708.07120).
        warmup_fraction: fraction of the steps with rising rates.
        div_factor: of a one-cycle: the highest rate over the first.
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
            raise ValueError("give either epochs or steps")
        if self.lr_spread is not None and (self.backbone_lr is not None or self.lr_decay is not None):
            raise ValueError("lr_spread sets every rate below lr; leave backbone_lr and lr_decay out")
        return self

    def options(self) -> dict[str, Any]:
        """Values that are options of ``edgetl train`` too, by the option's name."""
        known = options(TrainConfig)
        return {name: value for name, value in self if name in known and value is not None}


def models_folder() -> Path:
    """Where recipes, cards and embedded weights are: inside an installed package, beside it in a checkout."""
    package = Path(edgetl.__file__).parent
    inside = package / "models"
    return inside if inside.is_dir() else package.parent / "models"


def builtin_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in (models_folder() / "recipes").glob("*.toml"))


def read_recipe(name: str) -> Recipe:
    """The built-in recipe ``name``, or that of a file whose name ends in ``.toml``.

    Raises:
        ConfigError: there is none, it is not TOML, or it says something that no recipe may say; every mistake is named.
    """
    if name in builtin_recipes():
        path = models_folder() / "recipes" / f"{name}.toml"
    elif name.endswith(".toml"):
        path = Path(name)
    else:
        raise ConfigError(f"--recipe {name}: there is no such recipe. Built in: {', '.join(builtin_recipes())}; or give a file NAME.toml.")
    return read_toml(path, Recipe, ConfigError, name=f"--recipe {path}")


def with_recipe(config: TrainConfig) -> tuple[TrainConfig, Recipe]:
    """The configuration with the recipe's values for every option that was not given, and the recipe; an empty one where none is named.

    The recipe's ``unfreeze`` belongs to its strategy; it is dropped where another strategy was given.

    Raises:
        ConfigError: as ``read_recipe``.
    """
    if config.optim.recipe is None:
        return config, Recipe()
    recipe = read_recipe(config.optim.recipe)
    given = config.given()
    filled = {name: value for name, value in recipe.options().items() if name not in given}
    if recipe.strategy is not None and given.get("strategy", recipe.strategy) != recipe.strategy:
        filled.pop("unfreeze", None)
    return config.with_options(**filled), recipe
