"""Recipes of fine-tuning (``--recipe``): a TOML file whose figures stand in for those of the data budget's table."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Literal, TypeAlias

from pydantic import Field, ValidationError, model_validator

import edgetl
from edgetl.core.config import StrictModel
from edgetl.core.files.plain import read_plain
from edgetl.core.options import flat
from edgetl.errors import ConfigError
from edgetl.train.config.options import Augment, Strategy, TrainConfig

Schedule: TypeAlias = Literal["cosine", "one-cycle"]

MAX_RECIPE_BYTES = 100_000
# Fields of a recipe that are options of the command too, by the option's name; an option that was given wins.
OPTIONS = {
    "strategy": "strategy", "unfreeze": "unfreeze", "epochs": "epochs", "lr": "head_lr", "backbone_lr": "top_lr", "lr_decay": "lr_ratio",
    "weight_decay": "weight_decay", "label_smoothing": "label_smoothing", "augment": "augment", "drop_path": "drop_path", "mixup": "mixup",
}  # fmt: skip


class TuningRecipe(StrictModel):
    """What a recipe may say; what it does not say is the table's.

    Attributes:
        strategy, unfreeze, epochs, weight_decay, label_smoothing, augment, drop_path, mixup: as the options of ``edgetl train``.
        steps: optimizer steps, instead of ``epochs``.
        head_lr, top_lr, lr_ratio: as ``--lr``, ``--backbone-lr`` and ``--lr-decay``; they do not scale with the batch.
        lr_spread: the head's rate over the lowest tuned stage's; all groups lie on one geometric row (instead of the two before).
        average: decay of the moving average of the weights; shorter in a short training, 0 for none.
        freeze_batchnorm: keep every BatchNorm as it is.
        fit_head: start from the closed-form head; false starts from a random one.
        frozen_epochs: passes before the others in which the head learns alone.
        frozen_factor: the head's rate in those, relative to ``head_lr``.
        schedule: of the rates: ``cosine`` (linear warm-up) or ``one-cycle`` (Smith and Topin 2017, arXiv:1708.07120).
        rise: share of the steps in which rates rise.
        div: of a one-cycle: the highest rate over the first.
    """

    schema_version: Literal[1] = 1
    strategy: Strategy | None = None
    unfreeze: str | None = None
    epochs: int | None = Field(default=None, ge=1)
    steps: int | None = Field(default=None, ge=1)
    head_lr: float | None = Field(default=None, gt=0.0)
    top_lr: float | None = Field(default=None, gt=0.0)
    lr_ratio: float | None = Field(default=None, gt=0.0, le=1.0)
    lr_spread: float | None = Field(default=None, ge=1.0)
    weight_decay: float | None = Field(default=None, ge=0.0)
    label_smoothing: float | None = Field(default=None, ge=0.0, lt=1.0)
    average: float | None = Field(default=None, ge=0.0, lt=1.0)
    augment: Augment | None = None
    drop_path: float | None = Field(default=None, ge=0.0, lt=1.0)
    mixup: float | None = Field(default=None, ge=0.0)
    freeze_batchnorm: bool | None = None
    fit_head: bool = True
    frozen_epochs: int = Field(default=0, ge=0)
    frozen_factor: float = Field(default=1.0, gt=0.0)
    schedule: Schedule = "cosine"
    rise: float = Field(default=0.1, gt=0.0, lt=1.0)
    div: float = Field(default=25.0, ge=1.0)

    @model_validator(mode="after")
    def _says_one_thing(self) -> TuningRecipe:
        if self.epochs is not None and self.steps is not None:
            raise ValueError("give either epochs or steps")
        if self.lr_spread is not None and (self.top_lr is not None or self.lr_ratio is not None):
            raise ValueError("lr_spread sets every rate below head_lr; leave top_lr and lr_ratio out")
        return self


def models_folder() -> Path:
    """Where recipes, cards and embedded weights are: inside an installed package, beside it in a checkout."""
    package = Path(edgetl.__file__).parent
    inside = package / "models"
    return inside if inside.is_dir() else package.parent / "models"


def builtin_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in (models_folder() / "recipes").glob("*.toml"))


def read_tuning_recipe(name: str) -> TuningRecipe:
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
    try:
        data = read_plain(path, max_bytes=MAX_RECIPE_BYTES)
        return TuningRecipe.model_validate(tomllib.loads(data.decode("utf-8")), strict=True)
    except OSError as error:
        raise ConfigError(f"--recipe {path} cannot be read: {error.strerror}.") from error
    except ValidationError as error:
        raise ConfigError(f"--recipe {path}: {_mistakes(error)}.") from error
    except ValueError as error:  # not TOML, or not UTF-8
        raise ConfigError(f"--recipe {path} is not TOML: {error}.") from error


def _mistakes(error: ValidationError) -> str:
    told = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"]) or "recipe"
        known = ", ".join(name for name in TuningRecipe.model_fields if name != "schema_version")
        told.append(f"{key} is not known (known: {known})" if item["type"] == "extra_forbidden" else f"{key}: {item['msg']}")
    return "; ".join(told)


def with_recipe(config: TrainConfig) -> tuple[TrainConfig, TuningRecipe]:
    """The configuration with the recipe's values for every option that was not given, and the recipe; an empty one where none is named.

    A recipe's ``unfreeze`` belongs to its strategy, and is passed over where the user asks for another.

    Raises:
        ConfigError: as ``read_tuning_recipe``.
    """
    if config.optim.recipe is None:
        return config, TuningRecipe()
    recipe = read_tuning_recipe(config.optim.recipe)
    given = flat(config, only_given=True)
    filled = {name: value for name, key in OPTIONS.items() if name not in given and (value := getattr(recipe, key)) is not None}
    if given.get("strategy", recipe.strategy) != recipe.strategy:
        filled.pop("unfreeze", None)
    return config.with_options(**filled), recipe
