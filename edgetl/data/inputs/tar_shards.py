"""Tar shards in the WebDataset layout: images one after another, within limits. No file is extracted.

The reader uses ``tarfile`` of the standard library. That stops without an error at a damaged header (Python 3.11 to 3.13), reads extended
headers of any size, and repeats files without end after a negative size (CVE-2025-8194). All are checked here.
"""

from __future__ import annotations

import io
import os
import posixpath
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from edgetl.core.files.names import printable
from edgetl.core.files.regular import open_plain
from edgetl.core.images.decode import EXTENSIONS, MAX_FILE_BYTES
from edgetl.data.inputs.item import MAX_NAME, Item, Wanted, reading_error

# WebDataset recommends thousands of samples in a shard.
MAX_MEMBERS = 10_000_000
MAX_HEADER_BYTES, MAX_HEADERS = 1_000_000, 16
_EXTENDED = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_PIECE = 1 << 20


class DamageError(Exception):
    """The rest of a tar shard cannot be read."""


def read_tar(path: Path, wanted: Wanted) -> Iterator[Item]:
    """Yield the images of a tar shard in order, the files that are no images, and the problems.

    A truncated or damaged shard yields the images before the damage, and then an error.

    Args:
        path: tar file without compression.
        wanted: selection of images whose content is read.

    Raises:
        StorageError: the file cannot be opened, or the storage does not deliver it.
    """
    number = 0
    try:
        with io.BufferedReader(open_plain(path).detach(), _PIECE) as file:
            size = max(1, file.seek(0, io.SEEK_END))
            file.seek(0)
            for item in _members(file, wanted):
                yield Item(number, item.key, item.content, item.error, item.left_out, item.read / size)
                number += not item.left_out
    except OSError as error:
        raise reading_error(path, error) from error
    except (DamageError, tarfile.TarError, ValueError, RecursionError) as error:
        yield Item(number, error=f"the shard is damaged or truncated: {error}. Its following images are missing. Copy it again.")


def _members(file: BinaryIO, wanted: Wanted) -> Iterator[Item]:
    """Yield an item for each file of the archive. ``read`` is a position in bytes here, and the number of non-images is unused."""
    check_headers(file, 0)
    file.seek(0)
    number = 0
    with tarfile.open(fileobj=file, mode="r:") as archive:
        for _ in range(MAX_MEMBERS):
            member = archive.next()
            archive.members.clear()  # type: ignore[attr-defined]  # otherwise tarfile keeps all members in memory
            if member is None:
                check_end(file, archive.offset)
                return
            item = _item(file, member, archive.offset, wanted=wanted(number))
            if item is not None:
                yield item
                number += not item.left_out
            check_headers(file, archive.offset)
    raise DamageError(f"it has more than {MAX_MEMBERS:,} files")


def _item(file: BinaryIO, member: tarfile.TarInfo, end: float, *, wanted: bool) -> Item | None:
    """Return the item of a member that ends at byte ``end``; none for a folder."""
    name = member.name.removeprefix("./")
    stem, suffix = posixpath.splitext(name)  # several times as fast as PurePosixPath
    if member.isdir():
        return None
    if len(name) > MAX_NAME:
        return Item(0, error=f"its name has {len(name)} characters. The limit is {MAX_NAME}.", read=end)
    if suffix.lower() not in EXTENSIONS:
        return Item(0, left_out=printable(suffix.lower()[:20]) or "without suffix", read=end)
    key = printable(stem)
    problem = ""
    if not member.isreg():
        problem = "it is a link or a special file. Shards may contain regular files only."
    elif name.startswith("/") or ".." in name.split("/"):
        problem = "its name is absolute or contains '..'. Write the shard again with relative names."
    elif member.issparse():
        problem = "it is stored as sparse, which is not supported. Write the shard again without sparse files."
    elif member.size > MAX_FILE_BYTES:
        problem = f"it has {member.size} bytes. The limit is {MAX_FILE_BYTES}."
    elif member.size == 0:
        problem = "it is empty."
    if problem or not wanted:
        return Item(0, key, error=f"{printable(member.name)}: {problem}" if problem else "", read=end)
    file.seek(member.offset_data)
    data = file.read(member.size)
    if len(data) < member.size:
        raise DamageError(f"unexpected end of data in {printable(member.name)}")
    return Item(0, key, data, read=end)


def check_headers(file: BinaryIO, offset: int) -> None:
    """Check the extended headers at ``offset``, which tarfile would read into memory as a whole.

    Args:
        file: archive. Its position is the end of the last read.
        offset: position of the headers, bytes.

    Raises:
        DamageError: they are larger than the limit, too many, or describe a sparse file; or ``offset`` is before the end
            of the last read, or outside the file.
    """
    size = os.fstat(file.fileno()).st_size
    if not file.tell() <= offset <= size:
        raise DamageError(f"the header before byte {file.tell()} states an end at byte {offset}, but the shard has {size} bytes")
    for _ in range(MAX_HEADERS):
        file.seek(offset)
        block = file.read(tarfile.BLOCKSIZE)
        kind = block[156:157]
        if kind == tarfile.GNUTYPE_SPARSE:
            raise DamageError(f"the file at byte {offset} is stored as sparse, which is not supported")
        if kind not in _EXTENDED:
            return
        size = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape").size
        if not 0 <= size <= MAX_HEADER_BYTES:
            raise DamageError(f"the header at byte {offset} has {size} bytes, and the limit is {MAX_HEADER_BYTES}")
        offset += tarfile.BLOCKSIZE * (1 + -(-size // tarfile.BLOCKSIZE))
    raise DamageError(f"the file at byte {offset} has more than {MAX_HEADERS} headers")


def check_end(file: BinaryIO, offset: int) -> None:
    """Check that the archive ends with zeros, as POSIX requires.

    Raises:
        DamageError: the end is missing, or data follows.
    """
    file.seek(offset)
    if not (piece := file.read(_PIECE)):
        raise DamageError(f"it ends at byte {offset} without an end mark")
    while piece:
        if piece.strip(b"\0"):
            raise DamageError(f"there is no valid header at byte {offset}")
        piece = file.read(_PIECE)
