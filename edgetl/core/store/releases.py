"""Releases of a store: reading the active release, and recovery from a damaged state. Nothing is written."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from edgetl.core.bundle import Bundle, parse_bundle, read_manifest
from edgetl.core.config import read_bytes
from edgetl.core.manifest import MANIFEST_NAME, SIGNATURE_NAME
from edgetl.core.store.state import (
    GALLERY_NAME,
    KEPT_RELEASES,
    RELEASES_NAME,
    STATE_NAME,
    TUNING_NAME,
    Probation,
    ReleaseRecord,
    StoreState,
    logged,
    read_state,
)
from edgetl.errors import BundleError, IntegrityError, StoreError

_log = logging.getLogger(__name__)

_RELEASE_NAME = re.compile(r"([1-9]\d{0,15})-([0-9a-f]{12})")


@dataclass(frozen=True)
class Release:
    """Installed release of a store.

    Attributes:
        path: folder of the bundle.
        record: release number, SHA-256 of the manifest, and the variant for this host.
        tuning: file with the result of a tuning on this host. It exists only after a tuning.
        galleries: folder with the galleries of all releases. It exists only after ``edgetl gallery add``.
    """

    path: Path
    record: ReleaseRecord
    tuning: Path
    galleries: Path

    @property
    def id(self) -> str:
        """Identity of the release: its number and content. It changes exactly when the active release changes."""
        return self.record.id

    def gallery_file(self, sha256: str) -> Path:
        """Return the path of a gallery of the release with this SHA-256."""
        return self.galleries / f"{self.id}-{sha256[:12]}.json"

    @property
    def gallery(self) -> Path | None:
        """File of the gallery in use, or none."""
        return self.gallery_file(self.record.gallery) if self.record.gallery else None

    def other_galleries(self) -> list[Path]:
        """Return the files of galleries that are not in use: those of other releases."""
        return [path for path in sorted(self.galleries.glob("*.json")) if path != self.gallery]

    @property
    def identity(self) -> tuple[object, ...]:
        """Identity of the installed release, its gallery and its tuning. A process that watches the store loads them after a change."""
        try:
            status = self.tuning.stat()
        except OSError:
            return (self.record,)
        return self.record, status.st_ino, status.st_size, status.st_mtime_ns

    def open(self) -> Bundle:
        """Open the bundle, and check its manifest against the SHA-256 in the state of the store.

        Raises:
            BundleError: the folder is not a bundle.
            IntegrityError: the manifest was changed, or files are missing or unlisted.
        """
        data, signature = read_manifest(self.path)
        if hashlib.sha256(data).hexdigest() != self.record.manifest_sha256:
            raise IntegrityError(f"{self.path / MANIFEST_NAME} was changed since its installation (SHA-256). Install the release again.")
        return parse_bundle(self.path, data, signature)


def is_store(path: str | os.PathLike[str]) -> bool:
    """Return true if ``path`` is a store: it has a folder ``releases`` or a ``state.json``, and is not a bundle."""
    folder = Path(path)
    return ((folder / RELEASES_NAME).is_dir() or (folder / STATE_NAME).is_file()) and not (folder / MANIFEST_NAME).exists()


def active_release(store: str | os.PathLike[str]) -> Release:
    """Return the active release of a store. Nothing is written.

    Use it to show the active release, and to detect a change (``Release.identity``). A process that loads the release for predictions calls
    ``edgetl.load(store)`` or ``starts`` instead, which also observe its health.

    Raises:
        StoreError: ``store`` is not a store, or it has no healthy release.
    """
    state = current_state(Path(store))
    if state.active is None:
        raise no_release(Path(store), state)
    return release_of(Path(store), state.active)


def release_of(store: Path, record: ReleaseRecord) -> Release:
    """Return the installed release of ``record``."""
    return Release(store / RELEASES_NAME / record.id, record, store / TUNING_NAME / f"{record.id}.json", store / GALLERY_NAME)


def current_state(store: Path, *, default: StoreState | None = None) -> StoreState:
    """Read the state of a store. If ``state.json`` is missing or damaged, recover it from the release folders.

    Args:
        store: folder of the store.
        default: state if no release is complete. None makes this an error.

    Raises:
        StoreError: ``store`` is not a store, or no release is complete and there is no default.
    """
    if not is_store(store):
        problem = "is not a store" if store.exists() else "does not exist"
        raise StoreError(f"{store} {problem}. Create a store by installing a bundle: edgetl install BUNDLE --store {store}")
    try:
        return read_state(store)
    except StoreError as error:
        recovered = _recover(store)
        if recovered is None and default is not None:
            return default
        if recovered is None:
            raise StoreError(f"{error} No complete release is left in {store}. Install a release again.") from error
        _log.warning("%s Release %d is used: the newest complete release.", error, recovered.history[-1].release)
        return recovered


def no_release(store: Path, state: StoreState) -> StoreError:
    """Return the error of a store without an active release. The message has the reason of the last rollback."""
    if not state.rejected:
        return StoreError(f"{store} is not ready: no release is installed. Install one: edgetl install BUNDLE --store {store}")
    last = state.rejected[-1]
    return StoreError(
        f"{store} is not ready: release {last.record.release} was rolled back, and no earlier release is left. Reason: {last.reason} "
        f"Install another release: edgetl install BUNDLE --store {store}"
    )


def _recover(store: Path) -> StoreState | None:
    """Return a state whose active release is the newest complete release; none without one. Earlier releases are checked at their use."""
    found = list(_installed(store))
    for place, record in enumerate(found):
        try:
            bundle = release_of(store, record).open()
            for file in bundle.manifest.all_files():
                bundle.read(file)
        except BundleError as error:
            _log.warning("%s", error)
            continue
        earlier = tuple(found[place + 1 :][: KEPT_RELEASES - 1])
        state = StoreState(
            name=bundle.manifest.name,
            high_water=largest_release(store),
            signature_required=has_signature(store),
            active=record,
            earlier=earlier,
            probation=Probation() if earlier else None,
        )
        return logged(state, "recover", record.release, f"{STATE_NAME} was missing or damaged")
    return None


def largest_release(store: Path) -> int:
    """Return the largest release number of the folders of a store, complete or not; 0 without a release."""
    return max((int(match[1]) for match in _release_names(store)), default=0)


def has_signature(store: Path) -> bool:
    """Return true if a release of a store has a signature. After the loss of the state, later installations then need trusted keys."""
    return any((store / RELEASES_NAME / match[0] / SIGNATURE_NAME).exists() for match in _release_names(store))


def _release_names(store: Path) -> list[re.Match[str]]:
    names: list[str] = []
    with suppress(OSError):
        names = os.listdir(store / RELEASES_NAME)
    return [match for name in names if (match := _RELEASE_NAME.fullmatch(name))]


def _installed(store: Path) -> Iterator[ReleaseRecord]:
    """Yield the releases with a folder and a manifest of the right SHA-256, the newest first."""
    for match in sorted(_release_names(store), key=lambda item: int(item[1]), reverse=True):
        with suppress(BundleError):
            digest = _manifest_sha256(store / RELEASES_NAME / match[0])
            if digest.startswith(match[2]):
                yield ReleaseRecord(release=int(match[1]), manifest_sha256=digest, installed="")


def _manifest_sha256(bundle: Path) -> str:
    return hashlib.sha256(read_bytes(bundle / MANIFEST_NAME, BundleError)).hexdigest()
