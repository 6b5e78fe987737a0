"""Changes of a gallery: add images of a known or a new class, remove images, and list them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgetl.core.files.names import label_problem, printable
from edgetl.core.images.decode import content_hash, load_image, read_image_file
from edgetl.core.progress import Progress, silent
from edgetl.device.gallery.place import Place, changing
from edgetl.device.gallery.result import GalleryChange, GalleryLabel, GalleryReport, SkippedImage
from edgetl.device.signature import check_gallery, signature_state
from edgetl.errors import ConfigError, GalleryError, ImageError, UnsignedError
from edgetl.runtime.gallery.file import GalleryImage, OpenedGallery, read_gallery
from edgetl.runtime.predictor import Predictor, load


def list_gallery(place: Place) -> GalleryReport:
    """Return the gallery of a bundle or of the active release of a store.

    Raises:
        GalleryError: the gallery is damaged, or belongs to another bundle.
        SignatureError: its signature is missing or not valid.
    """
    return _report(place, place.read())


def add(place: Place, images: Sequence[Path], label: str, *, variant: str | None = None, progress: Progress = silent) -> GalleryChange:
    """Add images to the gallery of a bundle. They vote like training images with ``label``, which may be new.

    Images that cannot be read and images that the gallery has already are reported and not added.

    Args:
        place: bundle or store.
        images: image files.
        label: their label.
        variant: variant that computes the vectors. None uses the variant that runs.
        progress: called after each image.

    Raises:
        ConfigError: the label is not valid.
        GalleryError: the gallery would be too large or cannot be used, or another process changes it.
        SignatureError: a signature is required and missing, or is not valid.
        ImageError: no image can be read.
        StorageError: the gallery cannot be written. It is unchanged.
    """
    if problem := label_problem(label):
        raise ConfigError(f"--label {printable(label)!r} {problem}. Give the name of a class.")
    with changing(place) as (current, before):
        entries = list(before.gallery.images) if before else []
        new = _Addition(_load(current, variant), label, {image.content: image.label for image in entries})
        for number, path in enumerate(images, start=1):
            new.add(path)
            progress("adding images", number, len(images))
        if len(new.failed) == len(images):
            raise ImageError(f"no image was added: {'; '.join(item.reason for item in new.failed[:3])}")
        after = before
        if new.entries:
            vectors = np.concatenate([*([before.gallery.matrix()] if before else []), *new.vectors])
            after = current.write([*entries, *new.entries], vectors)
        report = _report(current, after)
    return GalleryChange(changed=len(new.entries), duplicates=tuple(new.duplicates), failed=tuple(new.failed), gallery=report)


class _Addition:
    """Images of one label that are added, in progress. ``known`` are the labels of the gallery's images by content hash."""

    def __init__(self, predictor: Predictor, label: str, known: dict[str, str]) -> None:
        self.entries: list[GalleryImage] = []
        self.vectors: list[NDArray[np.float32]] = []
        self.duplicates: list[SkippedImage] = []
        self.failed: list[SkippedImage] = []
        self._predictor, self._label, self._known = predictor, label, known

    def add(self, path: Path) -> None:
        """Compute the features of an image, unless it cannot be read or is known."""
        name = printable(path)
        try:
            data = read_image_file(path)
            content = content_hash(load_image(data))
            if content in self._known:
                reason = f"the gallery has it already, with the label {self._known[content]}"
                self.duplicates.append(SkippedImage(image=name, reason=reason))
                return
            vector = self._predictor.features(self._predictor.prepare(self._predictor.read(data)))
        except ImageError as error:
            self.failed.append(SkippedImage(image=name, reason=str(error)))
            return
        assert self._predictor.variant is not None, "the predictor of a bundle has a variant"
        self._known[content] = self._label
        self.vectors.append(vector)
        added = datetime.now(UTC).isoformat(timespec="seconds")
        self.entries.append(GalleryImage(content=content, label=self._label, added=added, variant=self._predictor.variant.name))


def install(place: Place, file: Path, *, overwrite: bool = False) -> GalleryChange:
    """Install a gallery that was made on another host for the same bundle. It is checked before it is written, and keeps its signature.

    Args:
        place: bundle or store.
        file: gallery file.
        overwrite: replace a gallery with images that ``file`` does not have, or a damaged gallery.

    Raises:
        GalleryError: the file is damaged or belongs to another bundle, the present gallery has other images, or another process changes it.
        SignatureError: a signature is required and missing, or is not valid.
        StorageError: the gallery cannot be written. It is unchanged.
    """
    if place.signature_required and place.trust is None:
        raise UnsignedError(
            f"{place.path} requires signatures, because its release was installed with trusted keys. Give the trusted keys with "
            f"--key KEY.pub or --trust FOLDER."
        )
    given = read_gallery(file)
    check_gallery(given, place.trust)
    given.check_belongs(place.bundle)
    with place.locked() as current:
        if not overwrite and (before := current.read()) is not None:
            _check_replacement(before, given)
        report = _report(current, current.install(given))
    return GalleryChange(changed=len(given.gallery.images), gallery=report)


def _check_replacement(before: OpenedGallery, given: OpenedGallery) -> None:
    """Check that a gallery has all images of the present one, and its signature.

    Raises:
        GalleryError: images are missing.
        UnsignedError: the present gallery is signed, and the other one is not.
    """
    if before.signature is not None and given.signature is None:
        raise UnsignedError(f"{before.path} is signed, and {given.path} is not. Sign it, or replace the signed gallery with --overwrite.")
    kept = {(image.content, image.label) for image in given.gallery.images}
    if missing := sum((image.content, image.label) not in kept for image in before.gallery.images):
        raise GalleryError(
            f"{given.path} does not have {missing} of the {len(before.gallery.images)} images of {before.path}. Nothing was changed. "
            f"Replace the gallery with --overwrite."
        )


def remove(place: Place, images: Sequence[str] = (), label: str | None = None) -> GalleryChange:
    """Remove images from the gallery of a bundle. Without images its file is deleted.

    Args:
        place: bundle or store.
        images: image files, or the first 8 or more digits of their hashes.
        label: remove all images with this label.

    Raises:
        GalleryError: the gallery has no such image or label, or cannot be used, or another process changes it.
        SignatureError: a signature is required and missing, or is not valid.
        StorageError: the gallery cannot be written. It is unchanged.
    """
    with changing(place) as (current, before):
        if before is None:
            raise _no_gallery(place)
        entries = before.gallery.images
        wanted, missing = _find(entries, images)
        kept = [index for index, entry in enumerate(entries) if entry.content not in wanted and entry.label != label]
        if len(kept) == len(entries):
            known = ", ".join(before.gallery.counts())
            raise GalleryError(f"the gallery of {place.path} has no such image. Nothing was removed. Its labels: {known}.")
        after = current.write([entries[index] for index in kept], before.gallery.matrix()[kept])
        report = _report(current, after)
    return GalleryChange(changed=len(entries) - len(kept), failed=missing, gallery=report)


def remove_all(place: Place) -> GalleryChange:
    """Delete the gallery of a bundle, also if it is damaged or belongs to another bundle.

    Raises:
        GalleryError: there is no gallery, or another process changes it.
        StorageError: the file cannot be deleted.
    """
    with place.locked() as current:
        if current.file is None:
            raise _no_gallery(place)
        count = 0
        with suppress(GalleryError):
            count = len(read_gallery(current.file).gallery.images)
        current.delete()
        return GalleryChange(changed=count, gallery=_report(current, None))


def _no_gallery(place: Place) -> GalleryError:
    return GalleryError(f"{place.path} has no gallery. Nothing was removed.")


def _load(place: Place, variant: str | None) -> Predictor:
    """Load the given variant, or the one that runs: the tuned one, that of the store, or the first with an installed engine."""
    release = place.release
    tuning = release.tuning if release and release.tuning.exists() and variant is None else None
    chosen = variant or (release.record.variant if release and not tuning else None)
    return load(place.bundle, variant=chosen, tuning=tuning, gallery=False)


def _find(entries: Sequence[GalleryImage], images: Sequence[str]) -> tuple[set[str], tuple[SkippedImage, ...]]:
    """Return the content hashes of the images of a gallery that are given as files or hashes, and those that it does not have."""
    found: set[str] = set()
    missing = []
    for text in images:
        given = content_hash(load_image(text)) if Path(text).is_file() else text.lower()
        matching = {entry.content for entry in entries if len(given) >= 8 and entry.content.startswith(given)}
        found |= matching
        if not matching:
            missing.append(SkippedImage(image=printable(text), reason="the gallery does not have it"))
    return found, tuple(missing)


def _report(place: Place, opened: OpenedGallery | None) -> GalleryReport:
    manifest, release = place.bundle.manifest, place.release
    in_use = opened.path if opened else None
    unused = [path for path in release.other_galleries() if path != in_use] if release else []
    plain = GalleryReport(bundle=str(place.path), name=manifest.name, release=manifest.release, unused=tuple(map(str, unused)))
    if opened is None:
        return plain
    key = check_gallery(opened, place.trust)
    labels = [GalleryLabel(label=name, images=count, new=name not in manifest.labels) for name, count in opened.gallery.counts().items()]
    facts = {
        "file": str(opened.path),
        "sha256": opened.sha256,
        "size_bytes": len(opened.data),
        "signature": signature_state(opened.signature, key, name=str(opened.path), kind="gallery"),
        "labels": tuple(labels),
        "images": opened.gallery.images,
    }
    return plain.model_copy(update=facts)
