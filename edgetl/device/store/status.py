"""Status of a store, and its changes by an operator: confirm and roll back."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from edgetl.core.config import StrictModel
from edgetl.core.store.releases import current_state, release_of
from edgetl.core.store.state import Event, Probation, Rejection, ReleaseRecord, StoreState, confirmed, rolled_back
from edgetl.core.store.writing import update_state
from edgetl.core.system.execution import Choice
from edgetl.device.store.staging import damage
from edgetl.errors import StoreError
from edgetl.runtime.release import read_tuning


class StoreStatus(StrictModel):
    """Status of a store.

    Attributes:
        store: folder of the store.
        name: name of the bundles.
        state: ``confirmed``: the active release is healthy. ``probation``: its health is observed. ``not ready``: there is no release.
        active: active release.
        earlier: earlier releases, to which a rollback returns, the newest first.
        probation: rules and observations of the probation.
        tuned: choice of the tuning of the active release; none if it is not tuned.
        tuning_problem: reason why the tuning is not used on this host, such as another CPU; empty if it is used.
        damaged: files of the active or an earlier release that differ from their manifest, one message for each release.
        high_water: largest release number that was active.
        signature_required: an installation without trusted keys is refused.
        rejected: releases that were rolled back.
        history: last changes, the newest last.
        size_bytes: size of all files in the store, bytes.
    """

    store: str
    name: str
    state: Literal["confirmed", "probation", "not ready"]
    active: ReleaseRecord | None
    earlier: tuple[ReleaseRecord, ...]
    probation: Probation | None
    tuned: Choice | None
    tuning_problem: str
    damaged: tuple[str, ...]
    high_water: int
    signature_required: bool
    rejected: tuple[Rejection, ...]
    history: tuple[Event, ...]
    size_bytes: int


def read_status(store: Path) -> StoreStatus:
    """Return the status of a store. The files of its releases are verified. Nothing is written.

    Raises:
        StoreError: ``store`` is not a store, or no release is complete.
    """
    state = current_state(store)
    tuning, problem = read_tuning(release_of(store, state.active)) if state.active else (None, "")
    return StoreStatus(
        store=str(store),
        name=state.name,
        state="not ready" if state.active is None else "confirmed" if state.probation is None else "probation",
        active=state.active,
        earlier=state.earlier,
        probation=state.probation,
        tuned=tuning.chosen if tuning else None,
        tuning_problem=problem,
        damaged=tuple(found for record in state.records() if (found := damage(store, record))),
        high_water=state.high_water,
        signature_required=state.signature_required,
        rejected=state.rejected,
        history=state.history,
        size_bytes=sum(path.stat().st_size for path in store.rglob("*") if path.is_file()),
    )


def confirm(store: Path) -> StoreStatus:
    """Confirm the active release as healthy, by the decision of an operator.

    Raises:
        StoreError: there is no active release.
        StorageError: the store cannot be written.
    """
    state = update_state(store, lambda state: confirmed(state, "by the operator"))
    if state.active is None:
        raise StoreError(f"{store} has no active release to confirm. Install one: edgetl install BUNDLE --store {store}")
    return read_status(store)


def roll_back(store: Path) -> StoreStatus:
    """Return to the newest complete earlier release, by the decision of an operator.

    Raises:
        StoreError: there is no earlier release, or all are damaged. The active release stays.
        StorageError: the store cannot be written.
    """

    def change(state: StoreState) -> StoreState:
        complete = tuple(record for record in state.earlier if not damage(store, record))
        if not complete:
            raise StoreError(f"{store} has no complete earlier release. The active release stays. Install another release.")
        return rolled_back(state.model_copy(update={"earlier": complete}), "rolled back by the operator.")

    update_state(store, change)
    return read_status(store)
