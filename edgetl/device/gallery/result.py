"""Results of ``edgetl gallery``: the gallery of a bundle, and a change of it."""

from __future__ import annotations

from edgetl.core.config import StrictModel
from edgetl.device.signature import SignatureState
from edgetl.runtime.gallery.file import GalleryImage


class GalleryLabel(StrictModel):
    """Label of a gallery.

    Attributes:
        label: the label.
        images: number of images in the gallery.
        new: true if the bundle does not have the label.
    """

    label: str
    images: int
    new: bool


class GalleryReport(StrictModel):
    """Gallery of a bundle or of a release.

    Attributes:
        bundle: bundle folder, or store.
        name: name of the bundle.
        release: release number of the bundle.
        file: gallery file; none without a gallery.
        sha256: SHA-256 of the file; none without a gallery. Results have it, too.
        size_bytes: size of the file, bytes.
        signature: state of its signature.
        labels: labels of its images.
        images: its images.
        unused: gallery files of other releases, which are kept and not used.
    """

    bundle: str
    name: str
    release: int
    file: str | None = None
    sha256: str | None = None
    size_bytes: int = 0
    signature: SignatureState = SignatureState(state="unsigned")
    labels: tuple[GalleryLabel, ...] = ()
    images: tuple[GalleryImage, ...] = ()
    unused: tuple[str, ...] = ()


class SkippedImage(StrictModel):
    """Image that was not added or not removed.

    Attributes:
        image: file, or the hash that was given.
        reason: reason.
    """

    image: str
    reason: str


class GalleryChange(StrictModel):
    """Result of ``add``, ``remove`` and ``install``.

    Attributes:
        changed: number of images that were added, removed or installed.
        duplicates: images that the gallery had already.
        failed: images that cannot be read, or that the gallery does not have.
        gallery: the gallery afterwards.
    """

    changed: int
    duplicates: tuple[SkippedImage, ...] = ()
    failed: tuple[SkippedImage, ...] = ()
    gallery: GalleryReport
