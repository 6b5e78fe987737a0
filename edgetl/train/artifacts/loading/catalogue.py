"""Model catalogue: the embedded backbones, and a curated list of edge networks. Imports no torch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import huggingface_hub
from pydantic import Field

from edgetl.core.config import StrictModel, read_json, read_toml
from edgetl.core.licenses import Policy, freedom
from edgetl.core.preprocess import PreprocessSpec
from edgetl.errors import BackboneError
from edgetl.train.config.recipe import models_folder
from edgetl.train.config.weights_dir import find_weights

CATALOGUE_NAME = "zoo.toml"
TORCHVISION = "torchvision:"
Quantizes = Literal["well", "with care", "badly"]


class Teacher(StrictModel):
    """Teacher of a pretraining."""

    name: str
    architecture: str
    license: str | None
    weights_sha256: str


class UsedImages(StrictModel):
    """Image source of a pretraining; ``sha256`` is of the pixels as they were used."""

    name: str
    count: int
    sha256: str


class Pretrained(StrictModel):
    """``<name>.json``: record of the weights that ``edgetl pretrain`` wrote.

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
    images: tuple[UsedImages, ...]
    images_sha256: str
    steps: int
    seconds: float
    versions: dict[str, str]
    host: dict[str, str]


class CatalogueEntry(StrictModel):
    """Curated backbone; ``models/zoo.toml`` names the source of each figure.

    Attributes:
        params_m: parameters with the ImageNet classifier, 10^6.
        mmacs: multiply-accumulates of one image at ``input``, 10^6.
        input: height and width, px.
        top1: ImageNet-1k accuracy, percent; none for embedded backbones, which never saw it.
        license: of the weights.
        quantizes: how int8 is expected to go, by the network's operations.
    """

    name: str
    tag: str
    params_m: float = Field(gt=0)
    mmacs: float = Field(gt=0)
    input: int = Field(gt=0)
    top1: float | None = None
    license: str
    quantizes: Quantizes
    note: str


class _Catalogue(StrictModel):
    backbone: tuple[CatalogueEntry, ...]


class Listed(StrictModel):
    """An entry, and where its weights are on this machine.

    Attributes:
        source: ``embedded``, ``timm`` or ``torchvision``.
        offline: whether it can be used without a network.
        path: the weights' file or folder, where they are on this machine.
    """

    entry: CatalogueEntry
    source: Literal["embedded", "timm", "torchvision"]
    offline: bool
    path: str | None


class Catalogue(StrictModel):
    """A list of backbones, as ``edgetl models --json`` prints it."""

    schema_version: Literal[1] = 1
    backbones: tuple[Listed, ...]


def embedded_names() -> list[str]:
    """Names of the embedded backbones."""
    return sorted(path.stem for path in models_folder().glob("*.safetensors") if path.with_suffix(".json").is_file())


def read_embedded(name: str) -> tuple[Path, Pretrained]:
    """The weights file of an embedded backbone, and its record.

    Raises:
        BackboneError: the package does not hold it.
    """
    path = models_folder() / f"{name}.safetensors"
    if not path.is_file():
        raise BackboneError(f"{name} is not embedded in this installation; it holds {', '.join(embedded_names()) or 'none'}.")
    return path, read_json(path.with_suffix(".json"), Pretrained, BackboneError)


def catalogue() -> tuple[CatalogueEntry, ...]:
    """The curated list, in the file's order.

    Raises:
        BackboneError: the installation's list is damaged.
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
    """The embedded backbones and the curated list, as far as they fit.

    Args:
        weights_dir: a local folder of weights, see ``find_weights``.
        max_params_m: millions of parameters.
        max_mmacs: millions of multiply-accumulates.
        policy: ``commercial`` keeps what is known to allow commercial use.
        license: keeps licenses whose name starts like this.
        offline: keeps what needs no network.
    """
    listed = [*_embedded(), *(_listed(entry, weights_dir) for entry in catalogue())]
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
    """Entry of a backbone; a curated one may be named without its tag, though timm's default tag can be another.

    Raises:
        BackboneError: it is not on the list.
    """
    everything = list_backbones(weights_dir=weights_dir).backbones
    for item in everything:
        if name in (item.entry.name, item.entry.name.split(".")[0]):
            return item
    raise BackboneError(
        f"{name} is not on edgetl's list of {len(everything)} (see `edgetl models`). Any timm or torchvision name still works in "
        f"`edgetl train --backbone`."
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
            license=record.license or "not stated",
            quantizes="well",
            note=f"{record.architecture}, comes with edgetl",
        )
        found.append(Listed(entry=entry, source="embedded", offline=True, path=str(path)))
    return found


def _listed(entry: CatalogueEntry, weights_dir: Path | None) -> Listed:
    found = (find_weights(entry.name, weights_dir) if weights_dir else None) or _cached(entry)
    source: Literal["timm", "torchvision"] = "torchvision" if entry.name.startswith(TORCHVISION) else "timm"
    return Listed(entry=entry, source=source, offline=found is not None, path=str(found) if found else None)


def _cached(entry: CatalogueEntry) -> Path | None:
    """The file in the library's own cache."""
    if entry.name.startswith(TORCHVISION):
        home = Path(os.environ.get("TORCH_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "torch")
        files = sorted((home / "hub/checkpoints").glob(f"{entry.name.removeprefix(TORCHVISION)}-*.pth"))
        return files[0] if files else None
    for file in ("model.safetensors", "pytorch_model.bin"):
        found = huggingface_hub.try_to_load_from_cache(f"timm/{entry.name}", file)
        if isinstance(found, str):
            return Path(found)
    return None
