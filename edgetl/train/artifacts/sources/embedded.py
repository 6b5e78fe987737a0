"""Backbones that come with the package: ``<name>.safetensors`` in half precision and ``<name>.json``, which says what they are."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from edgetl.core.config import StrictModel, read_json
from edgetl.core.preprocess import PreprocessSpec
from edgetl.errors import BackboneError
from edgetl.train.config.recipe import models_folder


class Teacher(StrictModel):
    """The network that a pretraining learned from."""

    name: str
    architecture: str
    license: str | None
    weights_sha256: str


class Source(StrictModel):
    """One kind of pictures of a pretraining; ``sha256`` is of their pixels as they were used."""

    name: str
    images: int
    sha256: str


class Pretrained(StrictModel):
    """``<name>.json``: what ``edgetl pretrain`` made.

    Attributes:
        params_m: parameters without a head, 10^6.
        license: the most restrictive of the recipe's and the teacher's.
        start_sha256: of the weights that it started from, unless those were random or the teacher's.
        mmacs: multiply-accumulates of one image at the size of ``preprocess``, 10^6.
    """

    schema_version: Literal[1] = 1
    name: str
    architecture: str
    params_m: float
    mmacs: float
    preprocess: PreprocessSpec
    license: str | None
    notes: str
    weights_sha256: str
    recipe_sha256: str
    start_sha256: str | None = None
    teacher: Teacher | None
    pictures: tuple[Source, ...]
    pictures_sha256: str
    steps: int
    seconds: float
    versions: dict[str, str]
    host: dict[str, str]


def embedded_names() -> list[str]:
    """Names of the embedded backbones."""
    return sorted(path.stem for path in models_folder().glob("*.safetensors") if path.with_suffix(".json").is_file())


def read_embedded(name: str) -> tuple[Path, Pretrained]:
    """The weights file of an embedded backbone, and what it is.

    Raises:
        BackboneError: the package does not hold it.
    """
    path = models_folder() / f"{name}.safetensors"
    if not path.is_file():
        raise BackboneError(f"{name} is not embedded in this installation; it holds {', '.join(embedded_names()) or 'none'}.")
    return path, read_json(path.with_suffix(".json"), Pretrained, BackboneError)
