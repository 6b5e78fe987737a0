"""Opening files that may not be what they seem: a directory, a pipe that never ends, a link."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO


def open_plain(path: Path, *, follow_links: bool = True) -> BinaryIO:
    """Open a regular file for reading; never waits for a writer of a FIFO.

    Raises:
        OSError: missing, no permission, not a regular file, or a link although ``follow_links`` is false.
    """
    # O_NONBLOCK: opening a FIFO must not wait for its other end.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | (0 if follow_links else getattr(os, "O_NOFOLLOW", 0))
    descriptor = os.open(path, flags)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(None, "not a regular file", str(path))
    return open(descriptor, "rb")
