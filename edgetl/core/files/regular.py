"""Safe opening of regular files: refuse directories, FIFOs, devices and links."""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path


def open_plain(path: Path, *, follow_links: bool = True) -> io.BufferedReader:
    """Open a regular file for reading; never waits for a writer of a FIFO, and does not open a device.

    Raises:
        OSError: missing, no permission, not a regular file, or a link although ``follow_links`` is false.
    """
    # Before opening, because opening a device can act on it; O_NOFOLLOW is not on every system.
    _check_regular(path.stat(follow_symlinks=follow_links), path)
    # O_NONBLOCK: another file may stand there by now, and opening a FIFO must not wait for its other end.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | (0 if follow_links else getattr(os, "O_NOFOLLOW", 0))
    descriptor = os.open(path, flags)
    try:
        _check_regular(os.fstat(descriptor), path)
    except OSError:
        os.close(descriptor)
        raise
    return open(descriptor, "rb")


def read_up_to(file: io.BufferedReader, max_bytes: int) -> bytes:
    """The bytes of an opened file, and one more than ``max_bytes`` where it has more. A read allocates the size that it is given."""
    return file.read(min(os.fstat(file.fileno()).st_size, max_bytes) + 1)


def read_plain(path: Path, *, max_bytes: int | None = None) -> bytes:
    """The bytes of a regular file.

    Raises:
        OSError: as ``open_plain``, or it has more than ``max_bytes``.
    """
    with open_plain(path) as file:
        data = file.read() if max_bytes is None else read_up_to(file, max_bytes)
    if max_bytes is not None and len(data) > max_bytes:
        raise OSError(None, f"larger than {max_bytes:,} bytes", str(path))
    return data


def file_id(path: Path, *, follow_links: bool = True) -> tuple[int, int] | None:
    """Device and inode number of a file or folder; none where it cannot be read."""
    try:
        status = path.stat(follow_symlinks=follow_links)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _check_regular(status: os.stat_result, path: Path) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise OSError(None, "not a regular file", str(path))
