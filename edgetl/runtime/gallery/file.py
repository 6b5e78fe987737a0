"""Gallery file: images that were added to a k-NN bundle on a device, as one JSON file with an optional signature.

Its place is beside the bundle folder (``bundle.gallery.json``), or the folder ``gallery`` of a store. It belongs to exactly one
bundle, whose features it contains.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field, model_validator

from edgetl.core.bundle import MAX_SIGNATURE_BYTES, Bundle
from edgetl.core.config import StrictModel, parse_json, read_bytes
from edgetl.core.files.names import label_problem
from edgetl.core.lineage import Sha256
from edgetl.core.manifest import Manifest
from edgetl.core.tasks import KnnHead
from edgetl.errors import GalleryError
from edgetl.runtime.gallery.votes import new_class_weight

SUFFIX = ".gallery.json"
MAX_IMAGES = 4096
# Numbers of all vectors together: 32 MB.
MAX_VALUES = 2**23
MAX_FILE_BYTES = 64_000_000
_LENGTH_TOLERANCE = 1e-3


def _valid_label(label: str) -> str:
    if problem := label_problem(label):
        raise ValueError(f"the label {label!r} {problem}")
    return label


Label = Annotated[str, Field(max_length=255), AfterValidator(_valid_label)]


class GalleryImage(StrictModel):
    """Image of a gallery.

    Attributes:
        content: SHA-256 of the decoded pixels (``edgetl.core.images.decode.content_hash``).
        label: label of the image: one of the bundle, or a new one.
        added: time, ISO 8601, UTC, by the clock of the device.
        variant: variant that computed the vector.
    """

    content: Sha256
    label: Label
    added: str
    variant: str


class Gallery(StrictModel):
    """Content of a gallery.

    Attributes:
        schema_version: version of this format.
        manifest_sha256: SHA-256 of the manifest of the bundle. Vectors of another bundle are not comparable.
        name: name of the bundle.
        release: release number of the bundle.
        width: number of features of a vector.
        images: images, in the order in which they were added.
        vectors: base64 of float32 ``[images, width]``, little-endian: features, centered and of length 1.
    """

    schema_version: Literal[1] = 1
    manifest_sha256: Sha256
    name: str
    release: int = Field(ge=1, lt=2**53)
    width: int = Field(ge=1, le=65_536)
    images: tuple[GalleryImage, ...] = Field(min_length=1, max_length=MAX_IMAGES)
    vectors: str

    @model_validator(mode="after")
    def _is_consistent(self) -> Gallery:
        if len({image.content for image in self.images}) != len(self.images):
            raise ValueError("an image is listed twice")
        if len(self.images) * self.width > MAX_VALUES:
            raise ValueError(f"the vectors have more than {MAX_VALUES} numbers")
        try:
            data = base64.b64decode(self.vectors, validate=True)
        except (binascii.Error, ValueError) as error:
            raise ValueError("the vectors are not base64") from error
        if len(data) != 4 * len(self.images) * self.width:
            raise ValueError(f"the vectors have {len(data)} bytes, expected {4 * len(self.images) * self.width}")
        lengths = np.linalg.norm(self.matrix().astype(np.float64), axis=1)
        if not (np.abs(lengths - 1) <= _LENGTH_TOLERANCE).all():  # also false for NaN
            raise ValueError("a vector is not finite, or its length is not 1")
        return self

    def matrix(self) -> NDArray[np.float32]:
        """Return the vectors, float32 ``[images, width]``."""
        return np.frombuffer(base64.b64decode(self.vectors), "<f4").reshape(len(self.images), self.width).astype(np.float32)

    def labels(self, manifest: Manifest) -> tuple[str, ...]:
        """Return the labels of the bundle, followed by the new labels in the order in which they were added."""
        return tuple(dict.fromkeys((*manifest.labels, *(image.label for image in self.images))))

    def votes(self, manifest: Manifest, head: KnnHead) -> NDArray[np.float32]:
        """Return the votes of the images, float32 ``[images, labels]``: the weight of the class in its column.

        The weight of a class of the bundle is that of its training images. That of a new class is ``new_class_weight``.
        """
        columns, counts = {label: index for index, label in enumerate(self.labels(manifest))}, self.counts()
        trained = manifest.lineage.train_images / len(manifest.labels)
        found = np.zeros((len(self.images), len(columns)), np.float32)
        for row, image in enumerate(self.images):
            column = columns[image.label]
            known = column < len(head.weights)
            found[row, column] = head.weights[column] if known else new_class_weight(trained, counts[image.label])
        return found

    def counts(self) -> dict[str, int]:
        """Return the number of images by label."""
        return dict(Counter(image.label for image in self.images))


class _Envelope(StrictModel):
    """Content of a gallery file: the exact text of the gallery, which the signature covers, and the signature.

    Attributes:
        schema_version: version of this format.
        gallery: JSON text of ``Gallery``.
        signature: text of the signature, as in ``manifest.sig``; none if unsigned.
    """

    schema_version: Literal[1] = 1
    gallery: str
    signature: str | None = Field(default=None, max_length=MAX_SIGNATURE_BYTES)


@dataclass(frozen=True)
class OpenedGallery:
    """Gallery file that was read.

    Attributes:
        path: the file.
        gallery: its content.
        data: bytes of the file.
        text: exact bytes of the gallery, which the signature covers.
        signature: bytes of the signature, not checked; none if unsigned.
    """

    path: Path
    gallery: Gallery
    data: bytes = field(repr=False)
    text: bytes = field(repr=False)
    signature: bytes | None

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the file, 64 hex digits. It identifies the gallery in results."""
        return hashlib.sha256(self.data).hexdigest()

    def check_belongs(self, bundle: Bundle) -> None:
        """Check that the gallery belongs to ``bundle``.

        Raises:
            GalleryError: it belongs to another bundle, or its vectors have another width.
        """
        head, gallery = knn_head(bundle), self.gallery
        if gallery.manifest_sha256 != bundle.manifest_sha256:
            raise GalleryError(
                f"{self.path} belongs to release {gallery.release} of {gallery.name}, not to {bundle.path}, release "
                f"{bundle.manifest.release} of {bundle.manifest.name}. Its vectors are not comparable. Move the file away, and add the "
                f"images again."
            )
        if gallery.width != head.width:
            raise GalleryError(f"{self.path} has vectors of {gallery.width} values, but {bundle.path} has {head.width} features. {_AGAIN}")


_AGAIN = "Restore the file from a copy, or remove it and add the images again."


def knn_head(bundle: Bundle) -> KnnHead:
    """Return the k-NN head of a bundle.

    Raises:
        GalleryError: the bundle has none.
    """
    if bundle.manifest.knn is None:
        raise GalleryError(
            f"{bundle.path} cannot have a gallery: it has no k-NN head with feature outputs. If its run has a k-NN head, export "
            f"the run again with this version of edgetl: edgetl export RUN --out BUNDLE. Otherwise train one: edgetl train DATA --strategy "
            f"probe --head knn"
        )
    return bundle.manifest.knn


def gallery_path(bundle: str | os.PathLike[str]) -> Path:
    """Return the gallery file of a bundle folder: its sibling ``<bundle>.gallery.json``. A link to the folder is followed."""
    folder = Path(os.path.realpath(bundle))
    return folder.with_name(f"{folder.name}{SUFFIX}")


def read_gallery(path: Path) -> OpenedGallery:
    """Read a gallery file. Its signature is not checked.

    Raises:
        GalleryError: the file is missing, too large or damaged.
    """
    data = read_bytes(path, GalleryError, max_bytes=MAX_FILE_BYTES)
    try:
        envelope = parse_json(data, _Envelope, GalleryError, name=str(path))
        text = envelope.gallery.encode()
        gallery = parse_json(text, Gallery, GalleryError, name=str(path))
    except (GalleryError, UnicodeEncodeError) as error:
        raise GalleryError(f"{error} The gallery is damaged and was not used. {_AGAIN}") from error
    signature = envelope.signature.encode() if envelope.signature is not None else None
    return OpenedGallery(path, gallery, data, text, signature)


def encode_gallery(gallery: Gallery) -> bytes:
    """Return the exact bytes of a gallery, which a signature covers."""
    return gallery.model_dump_json().encode()


def encode_file(text: bytes, signature: bytes | None) -> bytes:
    """Return the bytes of a gallery file."""
    envelope = _Envelope(gallery=text.decode(), signature=signature.decode() if signature is not None else None)
    return f"{envelope.model_dump_json()}\n".encode()


def encode_vectors(vectors: NDArray[np.float32]) -> str:
    """Return the base64 of vectors ``[n, width]``."""
    return base64.b64encode(np.ascontiguousarray(vectors, "<f4").tobytes()).decode()
