"""Release policy: refuse a release that is older, was rolled back, belongs to another bundle, or has no checked signature.

The store keeps the largest release number that was active (*high water*), outside all bundles. An attacker with an old signed bundle
therefore cannot install it (rollback attack of The Update Framework, section 1.5.2). A single bundle also cannot exhaust the release
numbers (fast-forward attack).
"""

from __future__ import annotations

from pathlib import Path

from edgetl.core.manifest import Manifest
from edgetl.core.store.state import StoreState
from edgetl.errors import DowngradeError, InstallError

# Release numbers may be dates with times, such as 202611260700. Ten years of them are within this step.
MAX_STEP = 10**9


def check_trust(state: StoreState, store: Path, *, trusted: bool, allow_unsigned: bool) -> None:
    """Check that the signature of a new release is checked, if that of an earlier one was.

    Args:
        state: state of the store.
        store: folder of the store, for the message.
        trusted: there are trusted keys for the check.
        allow_unsigned: accept a release without a check of its signature.

    Raises:
        InstallError: the store requires a signature, and there are no trusted keys.
    """
    if state.signature_required and not trusted and not allow_unsigned:
        raise InstallError(
            f"{store} requires a signature, because an earlier release was installed with trusted keys. Give them with --trust FOLDER or "
            f"--key KEY.pub. --allow-unsigned ends the requirement."
        )


def check_release(manifest: Manifest, state: StoreState, *, manifest_sha256: str, allow_downgrade: bool) -> None:
    """Check that a bundle may become the active release of a store.

    Args:
        manifest: manifest of the bundle to install.
        state: state of the store.
        manifest_sha256: SHA-256 of this manifest.
        allow_downgrade: accept an older release, and one that was rolled back.

    Raises:
        InstallError: the bundle has another name, was rolled back on this device, or its release number is far too large.
        DowngradeError: its release number is smaller than an earlier one, or equal with another content.
    """
    name, release = manifest.name, manifest.release
    if name != state.name:
        raise InstallError(f"the store has releases of {state.name!r}, but this bundle is {name!r}. Use another store: --store DIR.")
    if release > state.high_water + MAX_STEP and state.high_water:
        raise InstallError(
            f"release {release} is more than {MAX_STEP:,} above release {state.high_water}, so later releases could be refused. Export the "
            f"bundle with a smaller --release."
        )
    if allow_downgrade:
        return
    if rejection := state.rejection(manifest_sha256):
        raise InstallError(
            f"release {release} was rolled back on this device: {rejection.reason} Install a newer release, or install it again with "
            f"--allow-downgrade."
        )
    if release < state.high_water:
        raise DowngradeError(
            f"release {release} is older than release {state.high_water}, the newest one that was active. Install a newer release, or "
            f"use --allow-downgrade."
        )
    if release == state.high_water:
        raise DowngradeError(
            f"release {release} was active already, with other content. Export the new bundle with a larger --release, or use "
            f"--allow-downgrade."
        )
