"""State of a store (``state.json``): active release, earlier releases and probation.

The file is replaced atomically, and it is the only pointer to the active release. A release in *probation* is active but not yet confirmed
as healthy. Functions such as ``confirmed`` return a changed copy of a state; they write nothing.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import Field

from edgetl.core.config import StrictModel, read_json
from edgetl.core.lineage import Sha256
from edgetl.errors import StoreError

STATE_NAME = "state.json"
RELEASES_NAME = "releases"
TUNING_NAME = "tuning"
GALLERY_NAME = "gallery"
# The active release and two earlier ones.
KEPT_RELEASES = 3
_KEPT_REJECTIONS = 20
_KEPT_EVENTS = 30

Action = Literal["install", "confirm", "rollback", "downgrade", "allow-unsigned", "recover"]


class ReleaseRecord(StrictModel):
    """Installed release.

    Attributes:
        release: release number of the manifest.
        manifest_sha256: SHA-256 of the manifest. The manifest lists the SHA-256 of all other files.
        installed: time of the installation, ISO 8601, UTC. The clock of a device may be wrong: no decision uses it.
        key: fingerprint of the key that signed the manifest; none if no signature was required.
        variant: first variant that passed the self-test on this host; none after a recovery of the state.
        gallery: SHA-256 of the gallery file of the release; none without a gallery.
    """

    release: int = Field(ge=1, lt=2**53)
    manifest_sha256: Sha256
    installed: str
    key: str | None = None
    variant: str | None = None
    gallery: Sha256 | None = None

    @property
    def id(self) -> str:
        """Name of the release's folder: release number and the first 12 digits of the manifest's SHA-256."""
        return f"{self.release}-{self.manifest_sha256[:12]}"


class Probation(StrictModel):
    """Probation of the active release: rules, and observations of the processes that loaded it.

    Attributes:
        tries: number of processes that may end without an orderly shutdown, such as by a crash. The next start rolls back.
        healthy_s: the release is confirmed when a process predicts this long after it loaded the release, seconds.
        healthy_predictions: the release is also confirmed after this number of predictions by processes with an orderly end.
        max_latency_ms: limit on the median latency of the network for one image, ms; none without a limit.
        crashes: processes that ended without an orderly shutdown.
        predictions: predictions of processes with an orderly end.
    """

    tries: int = Field(default=3, ge=1, le=100)
    healthy_s: float = Field(default=60.0, ge=0.0)
    healthy_predictions: int = Field(default=20, ge=1)
    max_latency_ms: float | None = Field(default=None, gt=0.0)
    crashes: int = Field(default=0, ge=0)
    predictions: int = Field(default=0, ge=0)


class Rejection(StrictModel):
    """Release that was rolled back on this device. It is not installed again without ``--allow-downgrade``.

    Attributes:
        record: the release.
        reason: reason of the rollback.
    """

    record: ReleaseRecord
    reason: str


class Event(StrictModel):
    """Entry in the history of a store.

    Attributes:
        time: ISO 8601, UTC, by the clock of the device.
        action: change of the store.
        release: number of the release that the action is about.
        detail: reason, or the previous release.
    """

    time: str
    action: Action
    release: int
    detail: str = ""


class StoreState(StrictModel):
    """Content of ``state.json``.

    Attributes:
        schema_version: version of this format.
        name: name of the bundles. A store holds the releases of one bundle.
        high_water: largest release number that was active since the last allowed downgrade. Older releases are refused.
        signature_required: an installation without trusted keys is refused. True after an installation with trusted keys.
        active: active release; none before the first installation, and if no healthy release is left.
        earlier: confirmed earlier releases, the newest first. A rollback activates the first.
        probation: probation of the active release; none if it is confirmed.
        rejected: releases that were rolled back, the newest last.
        history: last changes, the newest last.
    """

    schema_version: Literal[1] = 1
    name: str
    high_water: int = Field(default=0, ge=0, lt=2**53)
    signature_required: bool = False
    active: ReleaseRecord | None = None
    earlier: tuple[ReleaseRecord, ...] = Field(default=(), max_length=KEPT_RELEASES - 1)
    probation: Probation | None = None
    rejected: tuple[Rejection, ...] = ()
    history: tuple[Event, ...] = ()

    def records(self) -> tuple[ReleaseRecord, ...]:
        """Return the active and the earlier releases, in the order of their use."""
        return (*((self.active,) if self.active else ()), *self.earlier)

    def rejection(self, manifest_sha256: str) -> Rejection | None:
        """Return the rollback of the release with this manifest, or none."""
        return next((item for item in reversed(self.rejected) if item.record.manifest_sha256 == manifest_sha256), None)


def read_state(store: Path) -> StoreState:
    """Read the state of a store.

    Raises:
        StoreError: ``state.json`` is missing, damaged, or of a newer version of edgetl.
    """
    return read_json(store / STATE_NAME, StoreState, StoreError)


def utc_now() -> str:
    """Return the time of the device's clock, ISO 8601, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def logged(state: StoreState, action: Action, release: int, detail: str = "") -> StoreState:
    """Return ``state`` with a new event in its history."""
    event = Event(time=utc_now(), action=action, release=release, detail=detail)
    return state.model_copy(update={"history": (*state.history, event)[-_KEPT_EVENTS:]})


def activated(state: StoreState, record: ReleaseRecord, probation: Probation | None) -> StoreState:
    """Return ``state`` with ``record`` as the active release. A confirmed active release becomes the first of the earlier ones.

    A record with a key makes a signature required. ``check_trust`` of the installation decides whether a record may have none.

    Args:
        state: state before.
        record: installed release.
        probation: probation of the release; none if it is confirmed at once.
    """
    confirmed_before = state.earlier if state.active is None or state.probation else (state.active, *state.earlier)
    earlier = tuple(item for item in confirmed_before if item.id != record.id)[: KEPT_RELEASES - 1]
    before = f"after release {state.active.release}" if state.active else ""
    rejected = tuple(item for item in state.rejected if item.record.manifest_sha256 != record.manifest_sha256)
    changed = {
        "active": record,
        "earlier": earlier,
        "probation": probation,
        "rejected": rejected,
        "high_water": record.release,
        "signature_required": record.key is not None,
    }
    return logged(state.model_copy(update=changed), "install", record.release, before)


def with_gallery(state: StoreState, release_id: str, gallery: str | None) -> StoreState:
    """Return ``state`` with another gallery of a release: the SHA-256 of its file, or none. Other releases are unchanged."""

    def changed(record: ReleaseRecord) -> ReleaseRecord:
        return record.model_copy(update={"gallery": gallery}) if record.id == release_id else record

    active = changed(state.active) if state.active else None
    return state.model_copy(update={"active": active, "earlier": tuple(map(changed, state.earlier))})


def confirmed(state: StoreState, reason: str) -> StoreState:
    """Return ``state`` with the active release confirmed as healthy. A state without probation is returned unchanged."""
    if state.active is None or state.probation is None:
        return state
    return logged(state.model_copy(update={"probation": None}), "confirm", state.active.release, reason)


def rolled_back(state: StoreState, reason: str) -> StoreState:
    """Return ``state`` with the first of the earlier releases active, or none if there is no earlier release. It is confirmed already."""
    if state.active is None:
        return state
    rejection = Rejection(record=state.active, reason=reason)
    following = state.earlier[0] if state.earlier else None
    changed = {
        "active": following,
        "earlier": state.earlier[1:],
        "probation": None,
        "rejected": (*state.rejected, rejection)[-_KEPT_REJECTIONS:],
    }
    to = f"to release {following.release}" if following else "no earlier release"
    return logged(state.model_copy(update=changed), "rollback", state.active.release, f"{to}: {reason}")
