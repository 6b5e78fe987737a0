"""Probation of a new release: observe the processes that load it, then confirm it or roll back.

A process creates and locks a *start file* in the folder ``starts`` before it loads an unconfirmed release, and removes the file at an
orderly end. The system releases the lock of a process that crashes or is killed, and all locks at a power failure. The next start therefore
counts unlocked start files as crashes, and not the processes that still run. After ``Probation.tries`` crashes it rolls back.

The release is confirmed when a process still predicts ``healthy_s`` seconds after its start, or when processes with an orderly end have
made ``healthy_predictions`` predictions. An exception of the engine rolls back at once, and so does a median latency above
``max_latency_ms``.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Set
from contextlib import suppress
from pathlib import Path

from edgetl.core.files.atomic import storage_error
from edgetl.core.files.platforms import flush_folder, try_lock
from edgetl.core.store.releases import Release, current_state, no_release, release_of
from edgetl.core.store.state import Probation, StoreState, confirmed, rolled_back
from edgetl.core.store.writing import state_lock, update_state
from edgetl.errors import StorageError, StoreError

_log = logging.getLogger(__name__)

STARTS_NAME = "starts"
# Number of predictions for the median latency. The first ones are slower.
LATENCY_SAMPLES = 20

# Start files of this process. A POSIX lock does not exclude the process that holds it.
_own_files: set[Path] = set()


class Start:
    """Start of a process with a release of a store. Methods may be called from several threads, and do nothing in a forked child.

    Attributes:
        release: release to load.
        rolled_back: true after a rollback by this process. The process should then load the active release.
    """

    def __init__(
        self, store: Path, release: Release, *, observed: Probation | None, file: _StartFile | None, clock: Callable[[], float]
    ) -> None:
        self.release = release
        self.rolled_back = False
        self._store, self._probation, self._file, self._clock = store, observed, file, clock
        self._process, self._begun = os.getpid(), clock()
        self._predictions, self._latencies_ms = 0, list[float]()
        self._guard = threading.RLock()

    @property
    def observed(self) -> bool:
        """True as long as the release is in probation and this process reports its health."""
        return self._probation is not None

    def succeeded(self, images: int, seconds: float | None = None) -> None:
        """Count successful predictions. Confirm the release when it is healthy, or roll back if it is too slow.

        Args:
            images: number of predicted images.
            seconds: duration of the inference of all images, seconds; none if it was not measured.
        """
        if self._probation is None or os.getpid() != self._process:
            return
        with self._guard:
            rules = self._probation
            if rules is None:
                return
            self._predictions += images
            if seconds is not None and rules.max_latency_ms is not None and len(self._latencies_ms) < LATENCY_SAMPLES:
                self._latencies_ms.append(1000 * seconds / images)
                median = sorted(self._latencies_ms)[len(self._latencies_ms) // 2]
                if len(self._latencies_ms) == LATENCY_SAMPLES and median > rules.max_latency_ms:
                    self.failed(f"its median latency is {median:.1f} ms, and the limit is {rules.max_latency_ms:g} ms.")
                    return
            if self._clock() - self._begun >= rules.healthy_s:
                self._end(lambda state: confirmed(state, f"{rules.healthy_s:g} s without a failure"))

    def failed(self, reason: str) -> None:
        """Roll back to the previous release, unless the release was confirmed. ``reason`` is one or more sentences."""
        if os.getpid() != self._process:
            return
        with self._guard:
            if self._probation is None:
                _log.error("release %d failed: %s", self.release.record.release, reason)
                return
            _log.error("release %d failed and is rolled back: %s", self.release.record.release, reason)
            self.rolled_back = True
            self._end(lambda state: rolled_back(state, reason))

    def crashed(self, reason: str) -> None:
        """Count the crash of a child process that uses the release. Roll back after ``Probation.tries`` crashes."""
        if os.getpid() != self._process:
            return
        with self._guard:
            if self._probation is None:
                return
            count = self._probation.crashes + 1
            if count >= self._probation.tries:
                self.failed(f"{count} processes crashed during its probation, the last one because {reason}")
                return
            self._probation = self._probation.model_copy(update={"crashes": count})
            self._change(_with_crash)

    def close(self) -> None:
        """Record the orderly end of the process. It does not count as a crash."""
        if os.getpid() != self._process:
            return
        with self._guard:
            if self._probation is not None:
                self._end(self._add_predictions)

    def _add_predictions(self, state: StoreState) -> StoreState:
        rules = state.probation
        if rules is None:
            return state
        count = rules.predictions + self._predictions
        if count >= rules.healthy_predictions:
            return confirmed(state, f"{count} predictions without a failure")
        return state.model_copy(update={"probation": rules.model_copy(update={"predictions": count})})

    def _end(self, change: Callable[[StoreState], StoreState]) -> None:
        """Change the state if the release is still in probation, and end the observation."""
        self._probation = None
        self._change(change)
        if self._file is not None:
            self._file.remove()

    def _change(self, change: Callable[[StoreState], StoreState]) -> None:
        def change_own(state: StoreState) -> StoreState:
            same = state.active is not None and state.active.id == self.release.id and state.probation is not None
            return change(state) if same else state

        try:
            update_state(self._store, change_own)
        except (StorageError, StoreError) as error:
            _log.warning("the health of release %d was not recorded: %s", self.release.record.release, error)


def starts(store: str | os.PathLike[str], *, clock: Callable[[], float] = time.monotonic, skip: Set[str] = frozenset()) -> Iterator[Start]:
    """Yield the releases to load, in order: the active release, then the earlier ones.

    Take the first one, and end the iteration. If it cannot be loaded, call ``Start.failed`` and take the next one::

        for start in starts(store):
            try:
                predictor = load(start.release)
                break
            except EngineError as error:
                start.failed(str(error))

    Before an unconfirmed release is yielded, the start is recorded durably. If that is impossible, such as on a read-only file system, an
    unconfirmed release could not be rolled back: then the first confirmed release is yielded, or the unconfirmed one if it is the only one.

    Args:
        store: folder of the store.
        clock: monotonic clock, seconds.
        skip: ids of releases that failed before.

    Raises:
        StoreError: ``store`` is not a store, or all releases failed. The message has the reason.
    """
    folder, tried = Path(store), set(skip)
    while True:
        start = _begin(folder, tried, clock)
        tried.add(start.release.id)
        yield start


def _begin(store: Path, tried: Set[str], clock: Callable[[], float]) -> Start:
    state, file = current_state(store), None
    records = state.records()
    if state.probation is not None:
        try:
            state, file = _record_start(store)
            records = state.records()
        except StorageError as error:
            _log.warning("%s A confirmed release is preferred, because an unconfirmed one could not be rolled back.", error)
            records = (*state.earlier, *records[:1])
    for record in records:
        if record.id not in tried:
            observed = state.probation if file else None
            return Start(store, release_of(store, record), observed=observed, file=file, clock=clock)
    raise _not_ready(store, state)


def _not_ready(store: Path, state: StoreState) -> StoreError:
    if state.active is None:
        return no_release(store, state)
    return StoreError(
        f"{store} is not ready: none of its releases can be loaded ({', '.join(record.id for record in state.records())}). "
        f"The reasons are above. Install a release again: edgetl install BUNDLE --store {store}"
    )


def _with_crash(state: StoreState) -> StoreState:
    if state.probation is None:
        return state
    return state.model_copy(update={"probation": state.probation.model_copy(update={"crashes": state.probation.crashes + 1})})


class _StartFile:
    """Locked start file of this process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(exist_ok=True)
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        _own_files.add(path)
        try:
            try_lock(self._descriptor)
            flush_folder(path.parent)
        except OSError:
            self.remove()
            raise

    def remove(self) -> None:
        _own_files.discard(self._path)
        with suppress(OSError):
            self._path.unlink()
        with suppress(OSError):
            os.close(self._descriptor)


def _record_start(store: Path) -> tuple[StoreState, _StartFile | None]:
    """Count the crashes of earlier processes, roll back if there are too many, and create a start file.

    Returns:
        the state, and the start file if the active release is in probation.
    """
    with state_lock(store):
        try:
            state = _count_crashes(store)
            if state.active is None or state.probation is None:
                return state, None
            return state, _StartFile(store / STARTS_NAME / f"{state.active.id}.{secrets.token_hex(8)}")
        except OSError as error:
            raise storage_error(store / STARTS_NAME, error) from error


def _count_crashes(store: Path) -> StoreState:
    left = _unlocked(store / STARTS_NAME)

    def count(state: StoreState) -> StoreState:
        rules = state.probation
        if state.active is None or rules is None:
            return state
        crashes = rules.crashes + sum(path.name.startswith(f"{state.active.id}.") for path in left)
        if crashes >= rules.tries:
            return rolled_back(state, f"{crashes} processes crashed or were killed during its probation.")
        return state.model_copy(update={"probation": rules.model_copy(update={"crashes": crashes})})

    state = update_state(store, count)
    for path in left:
        path.unlink(missing_ok=True)
    return state


def _unlocked(folder: Path) -> list[Path]:
    """Return the start files of ended processes."""
    found = []
    for path in sorted(folder.glob("*.*")):
        if path in _own_files:
            continue
        with suppress(FileNotFoundError):
            descriptor = os.open(path, os.O_RDWR)
            try:
                if try_lock(descriptor):
                    found.append(path)
            finally:
                os.close(descriptor)
    return found
