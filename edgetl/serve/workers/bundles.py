"""Bundles of a worker pool: the folders that the paths of the command line lead to, after a trial of each."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path

from edgetl.core.bundle import Bundle, open_bundle
from edgetl.core.store import Start, is_store
from edgetl.core.system.execution import Choice
from edgetl.errors import BundleError, EdgetlError
from edgetl.runtime.gallery.loading import find_gallery, release_gallery
from edgetl.runtime.release import Selection, usable_release, usable_variant
from edgetl.runtime.trial import try_variant


@dataclass(frozen=True)
class ServedBundle:
    """Bundle of a worker pool.

    Attributes:
        path: resolved folder. A replacement worker loads the same bundle, even if a link or a store has changed since.
        name: name of the bundle.
        choice: variant, threads per inference and execution setting.
        start: start of the server with a release of a store; none for a folder.
        signed: true if the bundle has a signature. The server does not check it.
        gallery: path and SHA-256 of its gallery; none without one.
    """

    path: Path
    name: str
    choice: Choice
    start: Start | None = None
    signed: bool = False
    gallery: tuple[str, str] | None = None

    @property
    def key(self) -> str | None:
        """Fingerprint of the key whose signature was checked when the release was installed into a store, or none."""
        return self.start.release.record.key if self.start is not None else None


def find_bundles(paths: Sequence[Path], variant: str | None, *, skip: Set[str] = frozenset()) -> list[ServedBundle]:
    """Resolve links and stores, then load the variant of each bundle and run one image in a separate process with limits.

    Args:
        paths: bundle folders, links to them, and stores. A release of a store that fails is replaced by an earlier one.
        variant: variant of every bundle. None selects the tuned one of a store, or the first with an installed engine.
        skip: ids of releases of stores that failed before.

    Raises:
        StoreError: a store has no release that can be loaded.
        GalleryError: a gallery is damaged.
        EdgetlError: a bundle cannot be served, or failed its trial.
    """
    found: list[ServedBundle] = []
    try:
        for path in paths:
            place = _resolved(path)
            if is_store(place):
                start, bundle, choice = usable_release(place, _try, variant=variant, skip=skip)
            else:
                start, bundle = None, open_bundle(place)
                choice = usable_variant(bundle, _try, variant=variant)
            found.append(ServedBundle(bundle.path, bundle.manifest.name, choice, start, signed=bundle.signature is not None))
            gallery = find_gallery(bundle) if start is None else release_gallery(start.release, bundle)
            if gallery is not None:
                found[-1] = replace(found[-1], gallery=(str(gallery.path), gallery.sha256))
    except EdgetlError:
        end_starts(found)
        raise
    return found


def end_starts(bundles: Sequence[ServedBundle]) -> None:
    """Record the orderly end of a pool with releases of stores."""
    for bundle in bundles:
        if bundle.start is not None:
            bundle.start.close()


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError) as error:
        raise BundleError(f"a bundle path cannot be resolved: {error}.") from error


def _try(bundle: Bundle, selection: Selection) -> Choice:
    """Run a trial of a variant. By default a worker uses one thread per inference, because it computes several requests at once."""
    try_variant(bundle, selection.variant)
    return Choice(variant=selection.variant.name, threads=selection.threads or 1, setting=selection.setting)
