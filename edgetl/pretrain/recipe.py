"""Pretraining recipe (``models/<name>.toml``): architecture, teacher, losses and image sources."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from edgetl.core.config import StrictModel, read_toml
from edgetl.core.preprocess import Side
from edgetl.errors import ConfigError

# Value of ``Recipe.start`` that compresses the teacher into the student.
TEACHER = "teacher"


class ImageSource(StrictModel):
    """Source of training images: image files or generated fractals.

    Attributes:
        source: ``.tar`` file or folder of images inside ``--data``. ``None`` for generated images.
        part: substring that the path of an image must contain, such as ``/train/``.
        formula: ``fractals`` generates images of iterated function systems (Kataoka et al. 2020, arXiv:2101.08515) from the recipe's seed.
        classes: number of fractal systems.
        per_class: images per system.
        side: height and width of the stored images, px. A long image is stored as two squares.
        grid: rows and columns of stored images that are combined into one training image. This adds sharp edges to small images.
        weight: number of images of this source in a batch, relative to the other sources.
    """

    source: str | None = None
    part: str = ""
    formula: Literal["fractals"] | None = None
    classes: int = Field(default=200, ge=2)
    per_class: int = Field(default=20, ge=1)
    side: Side = 32
    grid: int = Field(default=1, ge=1, le=8)
    weight: int = Field(ge=1)

    @property
    def labeled(self) -> bool:
        """True if the images have labels. In a ``.tar`` the folders are the labels, and fractals are labeled by system. Grids have none."""
        return self.grid == 1 and (self.formula is not None or str(self.source).endswith(".tar"))

    @model_validator(mode="after")
    def _has_one_origin(self) -> ImageSource:
        if (self.source is None) == (self.formula is None):
            raise ValueError("give either source or formula")
        return self


class Losses(StrictModel):
    """Weights of the losses. 0 disables a loss.

    Attributes:
        maps: squared error, relative to the variance, of the student's feature maps after each stage, of its last feature maps, and of
            its pooled features. The targets are the teacher's features in the coordinates of the compressed start
            (``start = "teacher"``). The loss has a target at every position of an image.
        features: smooth-L1 error between a linear map of the student's pooled features and the teacher's leading principal components
            (FitNets: Romero et al. 2015, arXiv:1412.6550).
        logits: Kullback-Leibler divergence from the teacher's class probabilities (Hinton et al. 2015, arXiv:1503.02531).
        labels: cross-entropy with the labels of the images, for sources with labels.
    """

    maps: float = Field(default=0.0, ge=0.0)
    features: float = Field(default=0.0, ge=0.0)
    logits: float = Field(default=0.0, ge=0.0)
    labels: float = Field(default=0.0, ge=0.0)


class Recipe(StrictModel):
    """Pretraining recipe. The weights are determined by the recipe, the images and the teacher.

    Attributes:
        name: base name of the written files.
        architecture: timm name of the student.
        teacher: folder in timm's format inside the weights folder. ``None`` if labels are the only targets.
        start: starting weights. ``teacher`` compresses the teacher into a narrower network of its family. Otherwise a ``.safetensors``
            file, relative to the recipe. ``None`` starts with random weights.
        seed: seed of weights, images and augmentation.
        side: height and width of a training image, px.
        use_side: height and width of the input for which the weights are published, px.
        steps: optimizer steps of AdamW.
        batch_size: images per step.
        lr: highest learning rate. It rises linearly over the first 5 % of the steps, then follows a cosine to 0.
        weight_decay: weight decay of AdamW.
        smallest_crop: smallest fraction of an image's area that a random crop keeps.
        ema_decay: decay of the exponential moving average (EMA) of the weights. The averaged weights are published.
        license: license of the weights, SPDX identifier.
        notes: notes about the licenses of images and teacher, printed with the license.
        losses: weights of the losses.
        images: image sources.
    """

    schema_version: Literal[1] = 1
    name: str = Field(pattern=r"^[a-z][a-z0-9_]{1,60}$")
    architecture: str
    teacher: str | None = None
    start: str | None = None
    seed: int = Field(default=0, ge=0, lt=2**31)
    side: Side = 96
    use_side: Side = 128
    steps: int = Field(ge=1)
    batch_size: int = Field(default=128, ge=8, le=4096)
    lr: float = Field(default=3e-3, gt=0.0)
    weight_decay: float = Field(default=0.02, ge=0.0)
    smallest_crop: float = Field(default=0.25, gt=0.0, le=1.0)
    ema_decay: float = Field(default=0.998, ge=0.0, lt=1.0)
    license: str
    notes: str = ""
    losses: Losses
    images: tuple[ImageSource, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _is_consistent(self) -> Recipe:
        distilled = self.losses.maps > 0 or self.losses.features > 0 or self.losses.logits > 0
        if distilled != (self.teacher is not None):
            raise ValueError("the losses maps, features and logits need a teacher, and a teacher needs one of these losses")
        if self.start == TEACHER and self.teacher is None:
            raise ValueError("start = 'teacher' needs a teacher")
        if self.losses.maps > 0 and self.start != TEACHER:
            raise ValueError("the loss maps needs start = 'teacher'")
        if self.losses.labels > 0 and not any(source.labeled for source in self.images):
            raise ValueError("the loss labels needs labeled images: a .tar file or fractals, with grid = 1")
        if not distilled and self.losses.labels == 0:
            raise ValueError("every loss is 0; set at least one weight above 0")
        return self

    def digest(self) -> str:
        """Return the SHA-256 (hex) of the recipe's values. Comments in the file do not change it."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


def read_recipe(path: Path) -> Recipe:
    """Read a pretraining recipe.

    Args:
        path: TOML file.

    Raises:
        ConfigError: the file is missing, is not TOML, or has unknown or invalid values. The message lists every mistake.
    """
    return read_toml(path, Recipe, ConfigError, name=f"the recipe {path}")
