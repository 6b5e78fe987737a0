"""Byte ranges of tar archives as paths: ``shard.tar/OFFSET+SIZE/NAME`` names the member NAME, whose bytes start at OFFSET.

A member is read without an index and without extraction. GDAL's virtual file system ``/vsisubfile/`` names ranges in the same way. The
part NAME is not used for reading. It gives the member a readable and unique path, with its suffix.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from edgetl.core.files.regular import open_plain

_RANGE = re.compile(r"(\d{1,15})\+(\d{1,12})")
ARCHIVE_SUFFIX = ".tar"


class ByteRange(NamedTuple):
    """Range of bytes in an archive."""

    archive: Path
    offset: int
    size: int


def range_path(part: ByteRange, name: str) -> Path:
    """Return the path of the member ``name``, whose bytes are ``part``."""
    return part.archive / f"{part.offset}+{part.size}" / name


def find_range(path: Path) -> ByteRange | None:
    """Return the range that ``path`` names; none for the path of a file. A folder with such a name is a folder."""
    parts = path.parts
    for index in range(len(parts) - 2, 0, -1):
        if (match := _RANGE.fullmatch(parts[index])) and parts[index - 1].endswith(ARCHIVE_SUFFIX):
            archive = Path(*parts[:index])
            return ByteRange(archive, int(match[1]), int(match[2])) if archive.is_file() else None
    return None


@contextmanager
def open_range(path: Path) -> Iterator[tuple[io.BufferedReader, int]]:
    """Open a file, or the archive of a range, at the first byte. Yield it together with the number of bytes to read.

    Raises:
        OSError: as ``open_plain``.
    """
    part = find_range(path)
    with open_plain(part.archive if part else path) as file:
        if part is None:
            yield file, os.fstat(file.fileno()).st_size
        else:
            file.seek(part.offset)
            yield file, part.size


def size_and_time(path: Path) -> tuple[int, int]:
    """Return the size in bytes and the modification time in nanoseconds of a file, or of a range and its archive.

    Raises:
        OSError: the file is missing or not accessible.
    """
    part = find_range(path)
    status = (part.archive if part else path).stat()
    return part.size if part else status.st_size, status.st_mtime_ns
