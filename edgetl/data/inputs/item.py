"""Images of an input file, one after another."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from edgetl.core.files.names import printable
from edgetl.errors import StorageError

# Function from the number of an image in its file to true, if its content is needed. The content of other images is not read.
Wanted: TypeAlias = Callable[[int], bool]
# Characters of the name of an image in its file. File systems allow as much for a path.
MAX_NAME = 4096
# Errors of a path, which another attempt would repeat. Errors of decoders have no number.
WRONG_PATH = (None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG)


@dataclass(frozen=True)
class Item:
    """Image of an input file, or the reason why there is none.

    Attributes:
        number: number of the image in its file, from 0. A problem of the file has the number of the next image.
        key: name of the image in its file without the suffix; none without a name.
        content: path of the image, or its encoded bytes; none for an image that is not wanted, or with an error.
        error: reason why the image cannot be read; empty without an error.
        left_out: suffix of a file in a tar shard that is no image, such as ``.cls``; empty for images. It has the number of the next image.
        read: ratio of the file that is read after this item, 0..1.
    """

    number: int
    key: str | None = None
    content: Path | bytes | None = None
    error: str = ""
    left_out: str = ""
    read: float = 1.0


def reading_error(path: Path, error: OSError) -> StorageError:
    """Return the error of a file that the storage does not deliver. It is no damage: a later attempt can succeed."""
    return StorageError(
        f"cannot read {printable(path)}: {error.strerror or error}. Repeat the command when the storage works again: it continues. If the "
        f"error remains, copy the file again."
    )
