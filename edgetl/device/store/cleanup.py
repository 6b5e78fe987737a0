"""Removal of releases that the store no longer uses."""

from __future__ import annotations

import shutil
from pathlib import Path

from edgetl.core.config import StrictModel
from edgetl.core.files.atomic import is_full, storage_error
from edgetl.core.store.releases import current_state
from edgetl.core.store.state import KEPT_RELEASES, RELEASES_NAME, TUNING_NAME, StoreState
from edgetl.core.store.writing import state_lock, update_state
from edgetl.device.store.staging import DOWNLOADS_NAME, install_lock, remove_release
from edgetl.errors import ConfigError, StorageError


class Cleanup(StrictModel):
    """Result of a cleanup.

    Attributes:
        removed: names of the removed release folders.
        freed_bytes: size of the removed releases and downloads, bytes.
        kept: number of kept releases.
    """

    removed: tuple[str, ...]
    freed_bytes: int
    kept: int


def clean(store: Path, *, keep: int = KEPT_RELEASES) -> Cleanup:
    """Remove unused releases, and unfinished downloads. The active release always stays. A full disk needs no free space for it.

    Args:
        store: folder of the store.
        keep: number of releases to keep, the active one included: 1 to 3.

    Raises:
        ConfigError: ``keep`` is not 1 to 3.
        InstallError: another process installs a release.
        StoreError: ``store`` is not a store.
        StorageError: the store cannot be written.
    """
    if not 1 <= keep <= KEPT_RELEASES:
        raise ConfigError(f"--keep {keep} is not valid. Set 1 to {KEPT_RELEASES}.")
    current_state(store)
    with install_lock(store), state_lock(store):
        freed = 0
        try:
            for path in list((store / DOWNLOADS_NAME).iterdir()):
                freed += path.stat().st_size
                path.unlink()
        except OSError as error:
            raise storage_error(store, error) from error
        removed = {}
        try:
            state = update_state(store, lambda state: _shortened(state, keep))
        except StorageError as error:
            if not is_full(error):
                raise
            removed = remove_unused(store, _shortened(current_state(store), keep))
            state = update_state(store, lambda state: _shortened(state, keep))
        removed |= remove_unused(store, state)
    return Cleanup(removed=tuple(removed), freed_bytes=freed + sum(removed.values()), kept=len(state.records()))


def remove_unused(store: Path, state: StoreState) -> dict[str, int]:
    """Remove the releases that ``state`` does not use. Call it within ``install_lock``.

    Returns:
        sizes of the removed folders, bytes, by name.

    Raises:
        StorageError: a folder cannot be removed.
    """
    used = {record.id for record in state.records()}
    removed = {}
    try:
        for folder in sorted((store / RELEASES_NAME).iterdir()):
            if folder.name not in used:
                size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
                remove_release(folder)
                removed[folder.name] = size
        for path in (store / TUNING_NAME).iterdir():
            if path.stem not in used:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    except OSError as error:
        raise storage_error(store, error) from error
    return removed


def _shortened(state: StoreState, keep: int) -> StoreState:
    room = keep - 1 if state.active else keep
    return state.model_copy(update={"earlier": state.earlier[:room]})
