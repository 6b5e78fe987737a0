"""Continued pretraining: the folder that ``edgetl distill`` or ``edgetl pretrain --ssl`` writes, in timm's format, with a record."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeAlias

from edgetl.core.bundle import unpack_hashes
from edgetl.core.config import StrictModel, read_bytes, read_json
from edgetl.core.lineage import Parent, Sha256
from edgetl.errors import BackboneError
from edgetl.train.artifacts.seen_images import PERCEPTUAL_NAME, SELECTED_NAME, TRAINED_NAME, SeenImages
from edgetl.train.config.weights_dir import sha256_of

Method: TypeAlias = Literal["distillation", "vicreg"]
RECORD_NAMES: dict[Method, str] = {"distillation": "distillation.json", "vicreg": "self-supervised.json"}
_COMMANDS: dict[Method, str] = {"distillation": "edgetl distill", "vicreg": "edgetl pretrain --ssl"}
# timm prefers this name to other files of tensors in a folder.
WEIGHTS_NAME = "model.safetensors"
# Perceptual hashes of the unlabeled images, and of the images that pretrained the start.
UNLABELED_NAME = "unlabeled-images.bin"


class ContinuedRecord(StrictModel):
    """Record of a continued pretraining on unlabeled images: the file ``RECORD_NAMES[method]`` beside the weights.

    Attributes:
        method: ``distillation`` of a larger network, or ``vicreg``, which is self-supervised.
        name: name of the folder.
        backbone: name of the start.
        teacher: name of the teacher of a distillation.
        architecture: timm architecture.
        license: the most restrictive license of all parents.
        parents: lineage of the teacher and of the start.
        images: number of different images.
        data_fingerprint: fingerprint of the images.
        steps: optimizer steps.
        explained_before: for a distillation, the ratio of the variance of the teacher's features that a linear map of the backbone's
            features explains on images that did not train, before the training.
        explained: the same after the training.
        matched_before: for ``vicreg``, the ratio of random views of images that did not train whose nearest neighbor, by the cosine of the
            features, is another view of the same image, before the training.
        matched: the same after the training.
        seconds: duration, s.
        versions: versions of Python and the libraries.
        host: description of the machine.
        files: SHA-256 of the other files, by name.
    """

    schema_version: Literal[1] = 1
    # The first records had no method, because there was no other one.
    method: Method = "distillation"
    name: str
    backbone: str
    teacher: str | None = None
    architecture: str
    license: str | None
    parents: tuple[Parent, ...]
    images: int
    data_fingerprint: Sha256
    steps: int
    explained_before: float | None = None
    explained: float | None = None
    matched_before: float | None = None
    matched: float | None = None
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


def _record_of(folder: Path) -> Path | None:
    """Return the record of a continued pretraining in ``folder``, or ``None``."""
    return next((folder / name for name in RECORD_NAMES.values() if (folder / name).is_file()), None)


def is_continued(folder: Path) -> bool:
    """Return True if a continued pretraining wrote ``folder``."""
    return _record_of(folder) is not None


def read_continued(folder: Path) -> ContinuedRecord | None:
    """Return the record of a continued pretraining, or ``None`` for another folder.

    Raises:
        BackboneError: the record or a file of the folder is damaged.
    """
    if (path := _record_of(folder)) is None:
        return None
    record = read_json(path, ContinuedRecord, BackboneError)
    again = f"Run {_COMMANDS[record.method]} again."
    if WEIGHTS_NAME not in record.files:
        raise BackboneError(f"{path} does not list {WEIGHTS_NAME}. {again}")
    for name, digest in record.files.items():
        if not (folder / name).is_file() or sha256_of(folder / name) != digest:
            raise BackboneError(f"{folder / name} is missing or differs from its hash in {path.name}. {again}")
    return record


def labeled_images(folder: Path) -> SeenImages:
    """Return the images that trained or selected a run from which a continued pretraining started, or its teacher comes.

    Raises:
        BackboneError: a file cannot be read.
    """
    trained, selected, perceptual = (_hashes(folder / name) for name in (TRAINED_NAME, SELECTED_NAME, PERCEPTUAL_NAME))
    return SeenImages(trained, selected, perceptual)


def unlabeled_images(folder: Path) -> SeenImages:
    """Return the perceptual hashes of the unlabeled images of a continued pretraining.

    Raises:
        BackboneError: the file cannot be read.
    """
    return SeenImages(perceptual=_hashes(folder / UNLABELED_NAME))


def _hashes(path: Path) -> frozenset[int]:
    return frozenset(unpack_hashes(read_bytes(path, BackboneError)).tolist())
