"""Distilled backbone: the folder that ``edgetl distill`` writes, in timm's format, with a record of its origin and its images."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from edgetl.core.bundle import unpack_hashes
from edgetl.core.config import StrictModel, read_bytes, read_json
from edgetl.core.lineage import Parent, Sha256
from edgetl.errors import BackboneError
from edgetl.train.artifacts.seen_images import PERCEPTUAL_NAME, SELECTED_NAME, TRAINED_NAME, SeenImages
from edgetl.train.config.weights_dir import sha256_of

RECORD_NAME = "distillation.json"
# timm prefers this name to other files of tensors in a folder.
WEIGHTS_NAME = "model.safetensors"
# Perceptual hashes of the unlabeled images, and of the images that pretrained the start.
UNLABELED_NAME = "unlabeled-images.bin"


class DistillationRecord(StrictModel):
    """Record of a distillation without labels: ``distillation.json`` beside the weights.

    Attributes:
        name: name of the folder.
        backbone: name of the start.
        teacher: name of the teacher.
        architecture: timm architecture.
        license: the most restrictive license of all parents.
        parents: lineage of the teacher and of the start.
        images: number of different images.
        data_fingerprint: fingerprint of the images.
        steps: optimizer steps.
        explained_before: ratio of the variance of the teacher's features that a linear map of the backbone's features explains on images
            that did not train, before the training.
        explained: the same after the training.
        seconds: duration, s.
        versions: versions of Python and the libraries.
        host: description of the machine.
        files: SHA-256 of the other files, by name.
    """

    schema_version: Literal[1] = 1
    name: str
    backbone: str
    teacher: str
    architecture: str
    license: str | None
    parents: tuple[Parent, ...]
    images: int
    data_fingerprint: Sha256
    steps: int
    explained_before: float
    explained: float
    seconds: float
    versions: dict[str, str]
    host: dict[str, str]
    files: dict[str, Sha256]

    def as_parent(self) -> Parent:
        """Return the lineage entry for a network that starts from these weights."""
        return Parent(
            kind="weights",
            name=self.name,
            architecture=self.architecture,
            sha256=self.files[WEIGHTS_NAME],
            license=self.license,
            data_fingerprint=self.data_fingerprint,
        )


def is_distilled(folder: Path) -> bool:
    """Return True if ``edgetl distill`` wrote ``folder``."""
    return (folder / RECORD_NAME).is_file()


def read_distilled(folder: Path) -> DistillationRecord | None:
    """Return the record of a distilled backbone, or ``None`` for another folder.

    Raises:
        BackboneError: the record or a file of the folder is damaged.
    """
    if not is_distilled(folder):
        return None
    record = read_json(folder / RECORD_NAME, DistillationRecord, BackboneError)
    if WEIGHTS_NAME not in record.files:
        raise BackboneError(f"{folder / RECORD_NAME} does not list {WEIGHTS_NAME}. Run edgetl distill again.")
    for name, digest in record.files.items():
        if not (folder / name).is_file() or sha256_of(folder / name) != digest:
            raise BackboneError(f"{folder / name} is missing or differs from its hash in {RECORD_NAME}. Run edgetl distill again.")
    return record


def labeled_images(folder: Path) -> SeenImages:
    """Return the images that trained or selected a run from which the teacher or the start of a distilled backbone come.

    Raises:
        BackboneError: a file cannot be read.
    """
    trained, selected, perceptual = (_hashes(folder / name) for name in (TRAINED_NAME, SELECTED_NAME, PERCEPTUAL_NAME))
    return SeenImages(trained, selected, perceptual)


def unlabeled_images(folder: Path) -> SeenImages:
    """Return the perceptual hashes of the unlabeled images that trained a distilled backbone.

    Raises:
        BackboneError: the file cannot be read.
    """
    return SeenImages(perceptual=_hashes(folder / UNLABELED_NAME))


def _hashes(path: Path) -> frozenset[int]:
    return frozenset(unpack_hashes(read_bytes(path, BackboneError)).tolist())
