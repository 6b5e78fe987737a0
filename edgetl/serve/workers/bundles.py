"""Bundles of a worker pool: the folders that the paths of the command line lead to, after a trial of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgetl.core.bundle import open_bundle
from edgetl.core.store import Start, is_store, starts
from edgetl.errors import BundleError, EdgetlError, EngineError, IntegrityError
from edgetl.runtime.engine import choose_variant
from edgetl.runtime.trial import try_variant


@dataclass(frozen=True)
class ServedBundle:
    """Bundle of a worker pool.

    Attributes:
        path: resolved folder. A replacement worker loads the same bundle, even if a link or a store has changed since.
        name: name of the bundle.
        variant: name of the variant.
        start: start of the server with a release of a store; none for a folder.
        signed: true if the bundle has a signature. The server does not check it.
    """

    path: Path
    name: str
    variant: str
    start: Start | None = None
    signed: bool = False

    @property
    def key(self) -> str | None:
        """Fingerprint of the key whose signature was checked when the release was installed into a store, or none."""
        return self.start.release.record.key if self.start is not None else None


def find_bundles(paths: Sequence[Path], variant: str | None) -> list[ServedBundle]:
    """Resolve links and stores, then load the variant of each bundle and run one image in a separate process with limits.

    Args:
        paths: bundle folders, links to them, and stores. A release of a store that fails is replaced by an earlier one.
        variant: variant of every bundle. None selects that of the store, or the first with an installed engine.

    Raises:
        EdgetlError: a bundle cannot be served, or failed its trial.
    """
    found: list[ServedBundle] = []
    try:
        for path in paths:
            place = _resolved(path)
            found.append(_active(place, variant) if is_store(place) else _tried(place, variant))
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


def _tried(path: Path, variant: str | None) -> ServedBundle:
    bundle = open_bundle(path)
    chosen = choose_variant(bundle, variant)
    try_variant(bundle, chosen)
    return ServedBundle(path, bundle.manifest.name, chosen.name, signed=bundle.signature is not None)


def _active(store: Path, variant: str | None) -> ServedBundle:
    for start in starts(store):
        try:
            bundle = start.release.open()
        except BundleError as error:
            start.failed(str(error))
            continue
        try:
            chosen = choose_variant(bundle, variant or start.release.record.variant)
            try_variant(bundle, chosen)
        except (IntegrityError, EngineError) as error:
            start.failed(str(error))
            continue
        except EdgetlError:  # such as an unknown variant, or a missing engine: not a failure of the release
            start.close()
            raise
        return ServedBundle(bundle.path, bundle.manifest.name, chosen.name, start, signed=bundle.signature is not None)
    raise AssertionError("the iteration over starts ends with an error")
