"""Files that appear whole or not at all; ``core.output`` does the same for folders.

A sibling with a temporary name is written, flushed to the disk, and renamed over the target; then the parent folder is flushed,
because a rename alone does not survive a power cut (POSIX promises atomicity, not durability).
"""

from __future__ import annotations

import errno
import os
import secrets
from contextlib import suppress
from pathlib import Path

from edgetl.core.files.platforms import flush_folder
from edgetl.errors import StorageError

STAGING_MARK = ".edgetl-partial-"
_ELSEWHERE = "choose another place"
_REMEDIES = {
    errno.ENOSPC: "free some space or choose another place",
    errno.EDQUOT: "free some space (a quota is used up) or choose another place",
    errno.EACCES: "change the permissions of its folder or choose another place",
    errno.EPERM: "change the permissions of its folder or choose another place",
    errno.EROFS: "choose a place on a file system that is not read-only",
    errno.ENAMETOOLONG: "choose a shorter name",
}


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` whole or not at all.

    Raises:
        StorageError: the disk is full, or the folder cannot be written.
    """
    staging = path.with_name(f"{STAGING_MARK}{secrets.token_hex(4)}-{path.name}")
    try:
        with open(staging, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(staging, path)
        flush_folder(path.parent)
    except OSError as error:
        raise storage_error(path, error) from error
    finally:
        with suppress(OSError):
            staging.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8 to ``path`` whole or not at all."""
    write_bytes(path, text.encode("utf-8"))


def storage_error(path: Path, error: OSError) -> StorageError:
    """Return a ``StorageError`` for ``path`` with the reason and the remedy."""
    reason = error.strerror or str(error)
    return StorageError(f"cannot write {path}: {reason}. Nothing was kept of it; {_REMEDIES.get(error.errno or 0, _ELSEWHERE)}.")
