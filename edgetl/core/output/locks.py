"""Locks of output folders: one thread of one process writes a folder at a time."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from edgetl.core.files.platforms import WINDOWS, try_lock
from edgetl.core.output.ownership import LOCK_MARK

# Locks of this process, with their threads. A lock of the system belongs to a process, not to a thread.
_held: dict[str, int] = {}
_guard = threading.Lock()


@contextmanager
def locked(target: Path) -> Iterator[bool]:
    """Hold the lock of ``target`` during the block: a lock on an empty file next to it, which is removed at the end.

    The system releases the lock of a killed process. Its lock file is reused. A thread may lock the same target again inside the block.

    Yields:
        True if the lock is held; false if another process or thread holds it.

    Raises:
        OSError: the lock file cannot be created.
    """
    key, thread = os.path.normcase(target), threading.get_ident()
    if _held.get(key) == thread:
        yield True
        return
    with _guard:
        descriptor = None if key in _held else _acquire(_lock_file(target))
        if descriptor is not None:
            _held[key] = thread
    if descriptor is None:
        yield False
        return
    try:
        yield True
    finally:
        with _guard:
            _release(descriptor, _lock_file(target))
            del _held[key]


def is_locked(target: Path) -> bool:
    """Return true if another process or thread holds the lock of ``target``.

    Raises:
        OSError: the lock file cannot be opened.
    """
    owner = _held.get(os.path.normcase(target))
    if owner is not None or not _lock_file(target).is_file():
        return owner not in (None, threading.get_ident())
    with locked(target) as holds:
        return not holds


def _lock_file(target: Path) -> Path:
    return target.with_name(f"{LOCK_MARK}{target.name}")


def _acquire(path: Path) -> int | None:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        if not try_lock(descriptor):
            os.close(descriptor)
            return None
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        os.close(descriptor)  # its holder removed the file between the two calls


def _release(descriptor: int, path: Path) -> None:
    removable = os.fstat(descriptor).st_size == 0
    if WINDOWS:  # Windows cannot remove an open file
        os.close(descriptor)
    if removable:
        with suppress(OSError):
            path.unlink()
    if not WINDOWS:
        os.close(descriptor)
