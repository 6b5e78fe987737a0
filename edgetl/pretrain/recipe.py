"""Pretraining recipe (``models/<name>.toml``): architecture, teacher, losses and image sources."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from edgetl.core.config import StrictModel, read_toml
from edgetl.core.preprocess import Side
from edgetl.errors import ConfigError

# As ``Recipe.start``: the teacher itself, compressed into the student.
TEACHER = "teacher"


class ImageSource(StrictModel):
    """Source of training images: files, or a formula.

    Attributes:
        source: a ``.tar`` or a folder of images below ``--data``; none for a formula.
        part: only images whose path holds this, such as ``/train/``.
        formula: ``fractals``: iterated function systems (Kataoka et al. 2020, arXiv:2101.08515), drawn by the recipe's seed.
        classes: fractal systems.
        per_class: images of each system.
        side: images are kept at this height and width, px; a longer image gives two squares.
        grid: an image is ``grid`` x ``grid`` of these side by side: small images then also show sharp edges.
        weight: images of this source in a batch, relative to the other sources.
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
        """True if the images have labels: those of a ``.tar`` (its folders) and fractals, unless several images make a grid."""
        return self.grid == 1 and (self.formula is not None or str(self.source).endswith(".tar"))

    @model_validator(mode="after")
    def _has_one_origin(self) -> ImageSource:
        if (self.source is None) == (self.formula is None):
            raise ValueError("give either a source or a formula")
        return self


class Losses(StrictModel):
    """Weights of the losses; 0 leaves one out.

    Attributes:
        maps: squared error of the student's maps after each stage and at its end against the teacher's, in the coordinates of its start
            (``start = "teacher"``), and of the pooled features, each relative to its variance: a target at every position of an image.
        features: smooth-L1 between a linear map of the student's pooled features and the teacher's leading principal components
            (FitNets: Romero et al. 2015, arXiv:1412.6550).
        logits: Kullback-Leibler divergence from the teacher's classes (Hinton et al. 2015, arXiv:1503.02531).
        labels: cross-entropy with the images' own labels, for the sources that have them.
    """

    maps: float = Field(default=0.0, ge=0.0)
    features: float = Field(default=0.0, ge=0.0)
    logits: float = Field(default=0.0, ge=0.0)
    labels: float = Field(default=0.0, ge=0.0)


class Recipe(StrictModel):
    """Pretraining; the weights follow from the recipe, the images and the teacher.

    Attributes:
        name: of the files that it writes.
        architecture: a timm name.
        teacher: a folder in timm's form below the weights folder; none if the only targets are labels.
        start: ``teacher`` compresses the teacher into a narrower network of its family; else weights (``.safetensors``, relative to the
            recipe); none starts at random.
        side: height and width of a training image, px.
        use_side: input height and width that the published weights are meant for, px.
        steps, batch_size, lr, weight_decay: AdamW with a linear warm-up over 5 % of the steps and a cosine to 0.
        smallest_crop: least share of an image's area that a random crop keeps.
        ema_decay: of the exponential moving average (EMA) of the weights, which is published.
        license: of the weights, SPDX.
        notes: on the licenses of images and teacher; shown with the license.
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
            raise ValueError("losses of maps, features or logits need a teacher, and a teacher needs one of them")
        if self.start == TEACHER and self.teacher is None:
            raise ValueError("start = 'teacher' needs a teacher")
        if self.losses.maps > 0 and self.start != TEACHER:
            raise ValueError("a loss of maps needs start = 'teacher'")
        if self.losses.labels > 0 and not any(source.labeled for source in self.images):
            raise ValueError("a loss of labels needs images that have some: a .tar or fractals, with grid = 1")
        if not distilled and self.losses.labels == 0:
            raise ValueError("every loss is 0")
        return self

    def digest(self) -> str:
        """SHA-256 (hex) of the recipe without comments."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


def read_recipe(path: Path) -> Recipe:
    """Read a recipe.

    Raises:
        ConfigError: the file is missing, not TOML, or holds unknown or invalid values; every mistake is named.
    """
    return read_toml(path, Recipe, ConfigError, name=f"the recipe {path}")
