"""Safe opening of regular files: directories, FIFOs, devices and (optionally) links are errors."""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path


def open_plain(path: Path, *, follow_links: bool = True) -> io.BufferedReader:
    """Open a regular file for reading. The call never waits for a FIFO, and does not open devices.

    Raises:
        OSError: the file is missing, not accessible or not regular, or it is a link and ``follow_links`` is false.
    """
    # Check before opening: opening a device can have effects, and not every system has O_NOFOLLOW.
    _check_regular(path.stat(follow_symlinks=follow_links), path)
    # O_NONBLOCK: the file may have been replaced by a FIFO, and opening it must not wait for its other end.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | (0 if follow_links else getattr(os, "O_NOFOLLOW", 0))
    descriptor = os.open(path, flags)
    try:
        _check_regular(os.fstat(descriptor), path)
    except OSError:
        os.close(descriptor)
        raise
    return open(descriptor, "rb")


def read_up_to(file: io.BufferedReader, max_bytes: int) -> bytes:
    """Read an opened file, but at most ``max_bytes`` + 1 bytes. The size of the file limits the allocation."""
    return file.read(min(os.fstat(file.fileno()).st_size, max_bytes) + 1)


def read_plain(path: Path, *, max_bytes: int | None = None) -> bytes:
    """Read a regular file.

    Raises:
        OSError: as ``open_plain``, or the file has more than ``max_bytes`` bytes.
    """
    with open_plain(path) as file:
        data = file.read() if max_bytes is None else read_up_to(file, max_bytes)
    if max_bytes is not None and len(data) > max_bytes:
        raise OSError(None, f"more than {max_bytes:,} bytes", str(path))
    return data


def file_id(path: Path, *, follow_links: bool = True) -> tuple[int, int] | None:
    """Return the device and inode number of a file or folder; none if it is not accessible."""
    try:
        status = path.stat(follow_symlinks=follow_links)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _check_regular(status: os.stat_result, path: Path) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise OSError(None, "not a regular file", str(path))
