"""Model of a runner: the loaded predictor of a bundle or a store, which is replaced between two frames."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from edgetl.core.bundle import Bundle, open_bundle
from edgetl.core.manifest import MANIFEST_NAME, Manifest
from edgetl.core.store import active_release, is_store
from edgetl.device.runner.waiting import Backoff, Stop
from edgetl.errors import EngineError, StoreError
from edgetl.runtime.gallery.file import OpenedGallery, gallery_path
from edgetl.runtime.gallery.loading import find_gallery
from edgetl.runtime.predictor import Predictor, load

logger = logging.getLogger("edgetl.run")

# Longest time between two attempts to load a release of a store that is not ready, seconds. systemd expects a sign of life in each.
_RETRY_S = 15.0
# Time between two looks at the path of the bundle, seconds.
_WATCH_S = 1.0


def wait_for_model(load_model: Callable[[], Model], stop: Stop, report: Callable[[str], None]) -> Model | None:
    """Load a model. While its store has no healthy release, wait with back-off.

    Args:
        load_model: loads the model.
        stop: stop request.
        report: called with the reason before each wait.

    Returns:
        the model; none after a stop request.

    Raises:
        EdgetlError: another error than a store without a healthy release.
    """
    backoff = Backoff(longest_s=_RETRY_S)
    while not stop.requested:
        try:
            return load_model()
        except StoreError as error:
            report(str(error))
            stop.wait(backoff.next())
    return None


class Check(NamedTuple):
    """Check of signatures with trusted keys: functions that open a bundle folder, and that check a gallery."""

    bundle: Callable[[Path], Bundle]
    gallery: Callable[[OpenedGallery], object]


class Model:
    """Loaded variant of a bundle, or of the active release of a store.

    ``load`` observes the health of an unconfirmed release: it is confirmed after predictions without a failure, or rolled back.

    Args:
        path: bundle folder, a link to one, or a store.
        variant: name of the variant, or none for the default.
        threads: threads per inference, or none for the default.
        tuning: file that ``edgetl tune`` wrote, or none. A store has its own tuning.
        check: trusted keys' check of a bundle folder and of its gallery. A store checked the signatures before. None checks none.

    Attributes:
        predictor: loaded network.
        manifest: manifest of the bundle.

    Raises:
        EdgetlError: the bundle cannot be loaded, as in ``edgetl.load``.
    """

    predictor: Predictor
    manifest: Manifest

    def __init__(
        self,
        path: Path,
        *,
        variant: str | None,
        threads: int | None,
        tuning: Path | None = None,
        check: Check | None = None,
    ) -> None:
        self._path, self._wanted, self._threads, self._tuning, self._check = path, variant, threads, tuning, check
        self._looked = time.monotonic()
        self._load()

    @property
    def name(self) -> str:
        """Name and release number of the bundle, for messages."""
        return f"{self.manifest.name} {self.manifest.release}"

    @property
    def variant(self) -> str:
        """Name of the variant."""
        return self.predictor.variant.name if self.predictor.variant else ""

    @property
    def gallery(self) -> str | None:
        """SHA-256 of the gallery of a k-NN model; none without one."""
        return self.predictor.gallery.sha256 if self.predictor.gallery else None

    def refresh(self, *, now: bool = False) -> bool:
        """Load the bundle again if its path contains a new one or another gallery, or if the store has another active release or tuning.

        Return true if it was loaded.

        Args:
            now: look at the path even if the last look was a moment ago.

        Raises:
            EdgetlError: the new bundle cannot be loaded. The loaded one stays until the path changes again.
        """
        last, self._looked = self._looked, time.monotonic()
        if not now and self._looked - last < _WATCH_S:
            self._looked = last
            return False
        if self._identity() in (self._seen, None):
            return False
        self._load()
        logger.info("loaded %s (%s)", self.name, self.variant)
        return True

    def _load(self) -> None:
        self._seen = self._identity()
        bundle, gallery = self._open()
        predictor = load(bundle, variant=self._wanted, threads=self._threads, tuning=self._tuning, gallery=gallery)
        if predictor.manifest is None:
            raise EngineError(f"{self._path} has no manifest.")
        self.predictor, self.manifest = predictor, predictor.manifest
        if is_store(self._path):
            self._seen = self._identity()  # a release that cannot be loaded was rolled back

    def _open(self) -> tuple[Path | Bundle, bool | OpenedGallery]:
        """Return the store, or the bundle and its gallery after a check of their signatures."""
        if is_store(self._path):
            return self._path, True
        if self._check is None:
            return open_bundle(self._path), True
        bundle = self._check.bundle(self._path)
        gallery = find_gallery(bundle)
        if gallery is None:
            return bundle, False
        self._check.gallery(gallery)
        return bundle, gallery

    @property
    def is_rolled_back(self) -> bool:
        """True if the loaded release of a store was rolled back, such as for its latency."""
        return self.predictor.is_rolled_back

    def _identity(self) -> object:
        """Return the identity of the active release or of the manifest; none if the path has none at present."""
        try:
            if is_store(self._path):
                return active_release(self._path).identity
            manifest = _file_identity(self._path / MANIFEST_NAME)
        except (OSError, StoreError):
            return None
        try:
            return manifest, _file_identity(gallery_path(self._path))
        except OSError:
            return manifest, None


def _file_identity(path: Path) -> tuple[int, ...]:
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
