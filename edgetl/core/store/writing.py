"""Writing the state of a store: one process at a time, atomically and durably."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from edgetl.core.files.atomic import storage_error, write_text
from edgetl.core.output.locks import locked
from edgetl.core.store.releases import current_state
from edgetl.core.store.state import STATE_NAME, StoreState, read_state
from edgetl.errors import StoreError

DAMAGED_NAME = "state-damaged.json"
_WAIT_S, _STEP_S = 10.0, 0.02


def write_state(store: Path, state: StoreState) -> None:
    """Replace ``state.json``. Call it within ``state_lock``.

    Raises:
        StorageError: the store cannot be written.
    """
    write_text(store / STATE_NAME, state.model_dump_json(indent=2) + "\n")


def update_state(store: Path, change: Callable[[StoreState], StoreState], *, default: StoreState | None = None) -> StoreState:
    """Replace the state of a store with ``change(state)``. A recovered state is also written; the damaged file is renamed.

    Args:
        store: folder of the store.
        change: function that returns the changed state.
        default: state of a store that has no state and no complete release. None makes this an error.

    Raises:
        StoreError: there is no state, no complete release and no default, or another process holds the lock.
        StorageError: the store cannot be written.
    """
    with state_lock(store):
        before: StoreState | None = None
        with suppress(StoreError):
            before = read_state(store)
        changed = change(before or current_state(store, default=default))
        if changed != before:
            if before is None:
                _keep_damaged(store)
            write_state(store, changed)
        return changed


@contextmanager
def state_lock(store: Path) -> Iterator[None]:
    """Hold the lock of ``state.json``. Processes hold it for some milliseconds.

    Raises:
        StoreError: another process holds it for 10 s.
        StorageError: the store cannot be written.
    """
    deadline = time.monotonic() + _WAIT_S
    while True:
        try:
            holder = locked(store / STATE_NAME)
            holds = holder.__enter__()
        except OSError as error:
            raise storage_error(store, error) from error
        try:
            if holds:
                yield
                return
        finally:
            holder.__exit__(None, None, None)
        if time.monotonic() > deadline:
            raise StoreError(f"another process has locked the state of {store} for {_WAIT_S:g} s. End it, and try again.")
        time.sleep(_STEP_S)


def _keep_damaged(store: Path) -> None:
    try:
        os.replace(store / STATE_NAME, store / DAMAGED_NAME)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise storage_error(store, error) from error
