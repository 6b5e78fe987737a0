"""Installation of a release: stage, verify, self-test, publish and activate it.

A power failure at any moment leaves the old or the new release active, and complete. The only pointer is ``state.json``, which is replaced
after the new release is durable on the disk.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgetl.core.bundle import Bundle
from edgetl.core.config import StrictModel
from edgetl.core.files.regular import open_plain
from edgetl.core.manifest import Manifest
from edgetl.core.progress import Progress, silent
from edgetl.core.store.releases import Release, current_state, has_signature, largest_release, release_of
from edgetl.core.store.state import Probation, ReleaseRecord, StoreState, activated, logged, utc_now
from edgetl.core.store.writing import update_state
from edgetl.core.system.execution import Tuning
from edgetl.device.keys import PublicKey
from edgetl.device.signature import Trust, verified_bundle
from edgetl.device.store.cleanup import remove_unused
from edgetl.device.store.config import InstallConfig
from edgetl.device.store.download import download, is_url
from edgetl.device.store.policy import check_release, check_trust
from edgetl.device.store.selftest import SelfTest, SelfTestLimits, self_test
from edgetl.device.store.staging import (
    DOWNLOADS_NAME,
    check_space,
    copy_bundle,
    damage,
    flush,
    install_lock,
    publish,
    read_from_disk,
    staging_folder,
)
from edgetl.device.transport import read_head, unpack
from edgetl.errors import EdgetlError

_log = logging.getLogger(__name__)


class Installation(StrictModel):
    """Result of an installation.

    Attributes:
        store: folder of the store.
        name: name of the bundle.
        release: active release.
        replaced: number of the release that was active before; none if there was none.
        unchanged: true if the release was active and complete already. It was not installed again.
        self_test: result of the self-test; none if ``unchanged``.
        tuning: result of the tuning; none without one.
        tuning_error: reason why the release could not be tuned; empty without an error. The tested variant is used.
        failures: variants that failed the self-test, with the reasons. They are not used.
        confirmed: true if the release is confirmed. Otherwise its health is observed.
        removed: folders of releases that were removed afterwards.
    """

    store: str
    name: str
    release: ReleaseRecord
    replaced: int | None
    unchanged: bool = False
    self_test: SelfTest | None = None
    tuning: Tuning | None = None
    tuning_error: str = ""
    failures: tuple[str, ...] = ()
    confirmed: bool = False
    removed: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Offer:
    """Bundle that is offered for installation: its manifest, whose signature is verified, and its size."""

    manifest: Manifest
    manifest_sha256: str
    size_bytes: int


def install(
    source: str,
    store: Path,
    config: InstallConfig | None = None,
    *,
    trust: Trust | None = None,
    tune: Callable[[Release], Tuning] | None = None,
    progress: Progress = silent,
) -> Installation:
    """Install a release into a store and activate it. It is in probation until it is confirmed (``edgetl.core.store.probation``).

    Args:
        source: folder of a bundle, transport file (``.edgetl``), or https URL of a transport file.
        store: folder of the store. It is created if it is missing.
        config: limits and rules.
        trust: trusted keys. None checks no signature, unless an earlier release was installed with trusted keys.
        tune: tunes the release before its activation, and writes ``Release.tuning``. Its failure does not stop the installation.
        progress: called during the download.

    Raises:
        BundleError: the source is not a bundle, is damaged (IntegrityError), or has no valid signature (SignatureError).
        InstallError: the release was refused, such as for a missing signature, failed its self-test, or could not be downloaded.
        StorageError: the store cannot be written, or the disk is full.
        MissingExtraError: no engine for the bundle is installed.
    """
    config = config or InstallConfig()
    with install_lock(store):
        check_trust(current_state(store, default=_empty(store, "")), store, trusted=trust is not None, allow_unsigned=config.allow_unsigned)
        with _local(source, store, config, trust=trust, progress=progress) as path:
            offer = _read_offer(path, trust)
            state = current_state(store, default=_empty(store, offer.manifest.name))
            if state.active is not None and _is_active(store, state, offer.manifest_sha256):
                return _unchanged(store, state.active, trust)
            if state.active is None or state.active.manifest_sha256 != offer.manifest_sha256:
                check_release(offer.manifest, state, manifest_sha256=offer.manifest_sha256, allow_downgrade=config.allow_downgrade)
            check_space(store, offer.size_bytes)
            with staging_folder(store) as folder:
                bundle, key = _stage(path, folder, trust)
                return _activate(bundle, key, store, config, tune=tune)


def _activate(
    bundle: Bundle, key: PublicKey | None, store: Path, config: InstallConfig, *, tune: Callable[[Release], Tuning] | None
) -> Installation:
    """Test a staged bundle, give it its final name, and make it the active release."""
    limits = _limits(bundle.manifest, config)
    result, failures = self_test(bundle, limits)
    record = ReleaseRecord(
        release=bundle.manifest.release,
        manifest_sha256=bundle.manifest_sha256,
        installed=utc_now(),
        key=key.fingerprint if key else None,
        variant=result.variant,
    )
    # A store without a state would be recovered from its folders: the release would be active before its activation.
    update_state(store, lambda state: state, default=_empty(store, bundle.manifest.name))
    publish(bundle.path, store, record)
    tuning, tuning_error = _try_tuning(tune, release_of(store, record))
    replaced, state = _make_active(store, record, config.probation(limits.max_latency_ms))
    removed = remove_unused(store, state)
    return Installation(
        store=str(store),
        name=state.name,
        release=record,
        replaced=replaced.release if replaced else None,
        self_test=result,
        tuning=tuning,
        tuning_error=tuning_error,
        failures=failures,
        confirmed=state.probation is None,
        removed=tuple(removed),
    )


def _make_active(store: Path, record: ReleaseRecord, probation: Probation) -> tuple[ReleaseRecord | None, StoreState]:
    """Make an installed release the active one. Return the release that was active before, and the new state."""
    replaced: list[ReleaseRecord] = []

    def change(state: StoreState) -> StoreState:
        replaced.extend([state.active] if state.active else [])
        if state.signature_required and record.key is None:
            state = logged(state, "allow-unsigned", record.release, "a signature is no longer required, as allowed by the operator")
        repaired = state.active is not None and state.active.id == record.id
        after = activated(state, record, state.probation if repaired else probation)
        if record.release >= state.high_water:
            return after
        return logged(after, "downgrade", record.release, f"allowed by the operator; the newest release was {state.high_water}")

    state = update_state(store, change)
    return (replaced[0] if replaced else None), state


def _try_tuning(tune: Callable[[Release], Tuning] | None, release: Release) -> tuple[Tuning | None, str]:
    """Return the tuning of a release, or the reason of its failure."""
    try:
        return tune(release) if tune else None, ""
    except EdgetlError as error:
        _log.warning("release %d is not tuned and uses %s: %s", release.record.release, release.record.variant, error)
        return None, str(error)


@contextmanager
def _local(source: str, store: Path, config: InstallConfig, *, trust: Trust | None, progress: Progress) -> Iterator[Path]:
    """Yield the folder or file of a source. A downloaded file is removed afterwards. It ends after its signed head if it is active."""
    if not is_url(source):
        yield Path(source)
        return
    part = store / DOWNLOADS_NAME / f"{hashlib.sha256(source.encode()).hexdigest()[:16]}.edgetl"

    def signed_size(path: Path) -> int | None:
        offer = _read_offer(path, trust, name=source)
        if _is_active(store, current_state(store, default=_empty(store, "")), offer.manifest_sha256):
            return None
        check_space(store, 2 * offer.size_bytes - path.stat().st_size)
        return offer.size_bytes

    download(source, part, signed_size=signed_size, allow_http=config.allow_http, progress=progress)
    try:
        yield part
    finally:
        part.unlink(missing_ok=True)
        part.with_suffix(".etag").unlink(missing_ok=True)


def _is_active(store: Path, state: StoreState, manifest_sha256: str) -> bool:
    """Return True if the release with this manifest is active and complete."""
    return state.active is not None and state.active.manifest_sha256 == manifest_sha256 and not damage(store, state.active)


def _read_offer(path: Path, trust: Trust | None, *, name: str = "") -> _Offer:
    """Read the manifest of a bundle folder, or of the first bytes of a transport file. Errors show ``name`` instead of a file's path."""
    if path.is_file():
        with open_plain(path) as stream:
            head = read_head(stream, name or str(path), trust=trust)
        return _Offer(head.manifest, hashlib.sha256(head.manifest_data).hexdigest(), head.size_bytes)
    bundle, _ = verified_bundle(path, trust)
    return _Offer(bundle.manifest, bundle.manifest_sha256, sum(file.size_bytes for file in bundle.manifest.all_files()))


def _stage(path: Path, folder: Path, trust: Trust | None) -> tuple[Bundle, PublicKey | None]:
    """Copy or unpack a bundle into ``folder``, flush it and verify it there. Its source does not matter afterwards."""
    if path.is_file():
        unpack(path, folder, trust=trust)
    else:
        copy_bundle(path, folder)
    flush(folder)
    bundle, key = verified_bundle(folder, trust)
    read_from_disk(bundle)
    return bundle, key


def _empty(store: Path, name: str) -> StoreState:
    """Return the state of a store without a complete release. Damaged releases count for the high water and for required signatures."""
    return StoreState(name=name, high_water=largest_release(store), signature_required=has_signature(store))


def _unchanged(store: Path, active: ReleaseRecord, trust: Trust | None) -> Installation:
    """Return the result for a release that is active and complete already. A checked signature is required from now on."""
    state = update_state(
        store, lambda state: state.model_copy(update={"signature_required": state.signature_required or trust is not None})
    )
    remove_unused(store, state)  # of an earlier installation that was interrupted after the activation
    return Installation(
        store=str(store), name=state.name, release=active, replaced=active.release, unchanged=True, confirmed=state.probation is None
    )


def _limits(manifest: Manifest, config: InstallConfig) -> SelfTestLimits:
    contract = manifest.contract.contract.max_latency_ms if manifest.contract else None
    memory = None if config.memory_mb is None else int(config.memory_mb * 1e6)
    return SelfTestLimits(contract if config.max_latency_ms is None else config.max_latency_ms, memory)
