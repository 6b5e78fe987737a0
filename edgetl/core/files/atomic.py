"""Atomic writing of files. ``core.output`` does the same for folders.

A temporary sibling is written, flushed to the disk, and renamed to the target. Then the parent folder is flushed, because a rename alone
may be lost in a power failure (POSIX guarantees atomicity, not durability).
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path

from edgetl.core.files.platforms import flush_folder
from edgetl.errors import StorageError

STAGING_MARK = ".edgetl-partial-"
_ELSEWHERE = "Choose another path"
_REMEDIES = {
    errno.ENOSPC: "Free some space, or choose another path",
    errno.EDQUOT: "The disk quota is exhausted: free some space, or choose another path",
    errno.EACCES: "Change the permissions of its folder, or choose another path",
    errno.EPERM: "Change the permissions of its folder, or choose another path",
    errno.EROFS: "Choose a path on a file system that is not read-only",
    errno.ENAMETOOLONG: "Choose a shorter name",
}


def write_bytes(path: Path, data: bytes, *, mode: int = 0o666) -> None:
    """Write ``data`` to ``path`` atomically, with the permissions ``mode`` without those that the umask removes.

    Raises:
        StorageError: the disk is full, or the folder cannot be written.
    """
    write_chunks(path, (data,), mode=mode)


def write_chunks(path: Path, chunks: Iterable[bytes], *, mode: int = 0o666) -> None:
    """Write ``chunks`` to ``path`` atomically, one after the other. ``mode`` as in ``write_bytes``.

    Raises:
        StorageError: the disk is full, or the folder cannot be written.
    """
    staging = path.with_name(f"{STAGING_MARK}{secrets.token_hex(4)}-{path.name}")
    try:
        with open(staging, "xb", opener=partial(os.open, mode=mode)) as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        os.replace(staging, path)
        flush_folder(path.parent)
    except OSError as error:
        raise storage_error(path, error) from error
    finally:
        with suppress(OSError):
            staging.unlink()


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8 to ``path`` atomically."""
    write_bytes(path, text.encode("utf-8"))


def storage_error(path: Path, error: OSError) -> StorageError:
    """Make a ``StorageError`` for ``path`` with the reason and the remedy."""
    reason = error.strerror or str(error)
    return StorageError(f"cannot write {path}: {reason}. Nothing was written. {_REMEDIES.get(error.errno or 0, _ELSEWHERE)}.")


def is_full(error: StorageError) -> bool:
    """Return true if a full disk or an exhausted quota caused ``error``."""
    return isinstance(error.__cause__, OSError) and error.__cause__.errno in (errno.ENOSPC, errno.EDQUOT)
