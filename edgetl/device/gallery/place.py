"""Place of a gallery: a bundle folder or the active release of a store, with its lock, and atomic writing of the gallery file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgetl.core.bundle import Bundle, open_bundle
from edgetl.core.files.atomic import storage_error, write_bytes
from edgetl.core.files.platforms import flush_folder
from edgetl.core.output.locks import locked
from edgetl.core.store import Release, StoreState, active_release, is_store
from edgetl.core.store.state import read_state, with_gallery
from edgetl.core.store.writing import update_state
from edgetl.device.keys import PrivateKey
from edgetl.device.signature import Trust, check_gallery, sign, verified_bundle
from edgetl.errors import GalleryError, UnsignedError
from edgetl.runtime.gallery.file import (
    MAX_IMAGES,
    MAX_VALUES,
    Gallery,
    GalleryImage,
    OpenedGallery,
    encode_file,
    encode_gallery,
    encode_vectors,
    gallery_path,
    knn_head,
    read_gallery,
)
from edgetl.runtime.gallery.loading import release_gallery


@dataclass(frozen=True)
class Place:
    """Bundle folder, or active release of a store, whose gallery is listed or changed.

    Attributes:
        path: folder of the bundle, or of the store.
        bundle: the opened bundle.
        release: the active release; none for a bundle folder.
        trust: trusted keys. None checks no signature.
        sign_key: private key that signs a changed gallery, or none.
    """

    path: Path
    bundle: Bundle
    release: Release | None
    trust: Trust | None
    sign_key: PrivateKey | None

    @property
    def file(self) -> Path | None:
        """Gallery file in use; none without a gallery."""
        if self.release:
            return self.release.gallery
        path = gallery_path(self.bundle.path)
        return path if path.exists() else None

    @property
    def signature_required(self) -> bool:
        """True for a store whose release was installed with trusted keys."""
        return self.release is not None and read_state(self.path).signature_required

    def read(self) -> OpenedGallery | None:
        """Read the gallery in use, and check its signature with the trusted keys; None without a gallery.

        Raises:
            GalleryError: it is damaged, or belongs to another bundle.
            SignatureError: its signature is missing or not valid.
        """
        if self.release:
            opened = release_gallery(self.release, self.bundle)
        else:
            opened = read_gallery(self.file) if self.file else None
        if opened is not None:
            check_gallery(opened, self.trust)
            opened.check_belongs(self.bundle)
        return opened

    @contextmanager
    def locked(self) -> Iterator[Place]:
        """Hold the lock of the gallery during the block, and yield the place with the present state of its store.

        Raises:
            GalleryError: another process holds the lock, or the active release has changed.
            StorageError: the folder cannot be written.
        """
        target = self.release.galleries / self.release.id if self.release else gallery_path(self.bundle.path)
        try:
            target.parent.mkdir(exist_ok=True)
            with locked(target) as holds:
                if not holds:
                    raise GalleryError(f"another process changes the gallery of {self.path}. Wait until it ends, and try again.")
                yield self._current()
        except OSError as error:
            raise storage_error(target, error) from error

    def _current(self) -> Place:
        if self.release is None:
            return self
        now = active_release(self.path)
        if now.id != self.release.id:
            raise GalleryError(f"the active release of {self.path} has changed in the meantime. Its gallery is unchanged. Try again.")
        return replace(self, release=now)

    def write(self, entries: Sequence[GalleryImage], vectors: NDArray[np.float32]) -> OpenedGallery | None:
        """Write a gallery with these images and their vectors, float32 ``[n, width]``, or delete it without images. Call it while locked.

        In a store, the state points to the file. Until it is replaced, processes use the previous gallery.

        Returns:
            the written gallery; none without images.

        Raises:
            GalleryError: there are too many images.
            SignatureError: the private key is not trusted.
            StorageError: the file cannot be written. The previous gallery stays.
        """
        if not entries:
            self.delete()
            return None
        written = self._made(entries, vectors)
        self._put(written)
        return written

    def install(self, given: OpenedGallery) -> OpenedGallery:
        """Copy a gallery that was checked, with its signature, into this place. Call it while locked.

        Returns:
            the written gallery.

        Raises:
            StorageError: the file cannot be written. The previous gallery stays.
        """
        written = replace(given, path=self._target(given.sha256))
        self._put(written)
        return written

    def _put(self, written: OpenedGallery) -> None:
        before = self.file
        write_bytes(written.path, written.data)
        if self.release:
            _point(self.path, self.release, written.sha256)
            if before is not None and before != written.path:
                before.unlink(missing_ok=True)

    def _target(self, digest: str) -> Path:
        return self.release.gallery_file(digest) if self.release else gallery_path(self.bundle.path)

    def _made(self, entries: Sequence[GalleryImage], vectors: NDArray[np.float32]) -> OpenedGallery:
        manifest, width = self.bundle.manifest, vectors.shape[1]
        if len(entries) > (limit := min(MAX_IMAGES, MAX_VALUES // width)):
            raise GalleryError(
                f"a gallery has at most {limit} images with {width} features, and this one would have {len(entries)}. It is unchanged. "
                f"Remove images, or train again with these images."
            )
        gallery = Gallery(
            manifest_sha256=self.bundle.manifest_sha256,
            name=manifest.name,
            release=manifest.release,
            width=width,
            images=tuple(entries),
            vectors=encode_vectors(vectors),
        )
        text = encode_gallery(gallery)
        signature = sign(text, self.sign_key, f"gallery of edgetl, release {manifest.release}") if self.sign_key else None
        data = encode_file(text, signature)
        made = OpenedGallery(self._target(sha256(data).hexdigest()), gallery, data, text, signature)
        check_gallery(made, self.trust)
        return made

    def delete(self) -> None:
        """Delete the gallery. Call it while locked.

        Raises:
            StorageError: the store cannot be written.
        """
        file = self.file
        if file is None:
            return
        if self.release:
            _point(self.path, self.release, None)
        file.unlink(missing_ok=True)
        flush_folder(file.parent)


def open_place(path: Path, trust: Trust | None = None, sign_key: PrivateKey | None = None) -> Place:
    """Open a bundle folder or a store. The signature of a folder is checked with ``trust``; a store checked it at the installation.

    Raises:
        GalleryError: the bundle cannot have a gallery.
        EdgetlError: the bundle or the store cannot be opened, or the signature is not valid.
    """
    release = active_release(path) if is_store(path) else None
    bundle = release.open() if release else verified_bundle(path, trust)[0] if trust else open_bundle(path)
    knn_head(bundle)
    return Place(path, bundle, release, trust, sign_key)


@contextmanager
def changing(place: Place) -> Iterator[tuple[Place, OpenedGallery | None]]:
    """Lock and read the gallery for a change, after a check that the changed gallery may be written.

    Raises:
        GalleryError: as ``Place.locked`` and ``Place.read``.
        UnsignedError: the changed gallery needs a signature, and there is no key.
    """
    if place.signature_required and not (place.trust and place.sign_key):
        raise UnsignedError(
            f"{place.path} requires signatures, because its release was installed with trusted keys. Give --sign-key KEY, and the trusted "
            f"keys with --key KEY.pub or --trust FOLDER."
        )
    with place.locked() as current:
        before = current.read()
        if before is not None and before.signature is not None and place.sign_key is None:
            raise UnsignedError(f"{before.path} is signed, and the change would remove its signature. Sign it again with --sign-key KEY.")
        yield current, before


def _point(store: Path, release: Release, digest: str | None) -> None:
    """Set the gallery of a release in the state of its store."""

    def change(state: StoreState) -> StoreState:
        if release.id not in {record.id for record in state.records()}:
            raise GalleryError(f"release {release.record.release} was removed from {store} in the meantime. Its gallery is unchanged.")
        return with_gallery(state, release.id, digest)

    update_state(store, change)
