"""List of input files: folders, image files, tar shards, Parquet files, lists of paths, and brace patterns, sorted by name."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from edgetl.core.files.names import printable
from edgetl.core.files.regular import read_plain
from edgetl.data.inputs.item import WRONG_PATH, reading_error
from edgetl.data.listing import find_images
from edgetl.errors import DataError

_log = logging.getLogger(__name__)

Kind: TypeAlias = Literal["image", "tar", "parquet"]
_CONTAINERS: dict[str, Kind] = {".tar": "tar", ".parquet": "parquet"}
MAX_LIST_BYTES = 2_000_000_000
# Files of one pattern.
MAX_EXPANDED = 1_000_000
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_BRACES = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True)
class Source:
    """Input file.

    Attributes:
        name: path as given, printable. The order of the sources is that of their names.
        path: path of the file.
        kind: ``image``, ``tar`` or ``parquet``.
        size_bytes: size of the file; 0 for an image that cannot be read.
    """

    name: str
    path: Path
    kind: Kind
    size_bytes: int


def find_sources(inputs: Sequence[str]) -> tuple[Source, ...]:
    """List the input files, sorted by name. A file that is given several times is listed once.

    Args:
        inputs: image files, folders of images, tar shards (``.tar``), Parquet files (``.parquet``), lists of such paths (``.txt``, one per
            line, relative to the current folder), and patterns such as ``shards/{00000..00063}.tar`` and ``shards/*.tar``.

    Raises:
        DataError: a shard, folder or list cannot be read, there are no files, or two have the same printable name.
        StorageError: the storage does not deliver the size of a file.
    """
    found: dict[str, Source] = {}
    count = 0
    for text in inputs:
        for path in (match for expanded in expand_braces(text) for match in expand_wildcards(expanded)):
            for source in _sources_of(Path(path)):
                if found.setdefault(source.name, source).path != source.path:
                    raise DataError(f"two inputs have the name {source.name} if control characters are escaped. Rename one of them.")
                count += 1
    if not found:
        raise DataError(f"{', '.join(inputs[:3])}: there are no images. Give image files, folders, .tar or .parquet files, or a .txt list.")
    if count > len(found):
        _log.info("%d inputs were given more than once, and are used once", count - len(found))
    return tuple(found[name] for name in sorted(found))


def input_digest(sources: Sequence[Source]) -> str:
    """Return the SHA-256 (hex) of the names and sizes of the input files."""
    digest = hashlib.sha256()
    for source in sources:
        digest.update(f"{source.size_bytes} {source.name}\n".encode())
    return digest.hexdigest()


def expand_braces(text: str) -> list[str]:
    """Expand brace patterns as a shell does: ``{a,b}``, and ``{00000..00063}`` with the width of its first number. Other braces stay.

    Raises:
        DataError: the pattern has more than ``MAX_EXPANDED`` values.
    """
    if _exists(text):
        return [text]
    for found in _BRACES.finditer(text):
        if (values := _values(found[1])) is not None:
            endings = expand_braces(text[found.end() :]) if found.end() < len(text) else [""]
            if len(values) * len(endings) > MAX_EXPANDED:
                raise DataError(f"{text} stands for more than {MAX_EXPANDED:,} files. Give several patterns, or a .txt list.")
            return [f"{text[: found.start()]}{value}{ending}" for value in values for ending in endings]
    return [text]


def expand_wildcards(text: str) -> list[str]:
    """Expand ``*`` and ``?`` in the file name as a shell does, sorted. A path without matches stays, and is reported as missing."""
    path = Path(text)
    if _exists(text) or not {"*", "?"} & set(path.name):
        return [text]
    return sorted(map(str, path.parent.glob(path.name.replace("[", "[[]")))) or [text]


def _exists(text: str) -> bool:
    """Return true if ``text`` is a path. A long pattern is longer than the system allows for a name."""
    try:
        return Path(text).exists()
    except OSError:
        return False


def _values(inner: str) -> list[str] | None:
    """Return the values of braces with the text ``inner``; none if they are part of the name."""
    if numbers := _RANGE.fullmatch(inner):
        low, high = int(numbers[1]), int(numbers[2])
        if abs(high - low) >= MAX_EXPANDED:
            raise DataError(f"{{{inner}}} stands for more than {MAX_EXPANDED:,} files. Give several patterns, or a .txt list.")
        width = max(len(numbers[1]), len(numbers[2])) if "0" in (numbers[1][0], numbers[2][0]) else 0
        step = 1 if low <= high else -1
        return [f"{number:0{width}d}" for number in range(low, high + step, step)]
    return inner.split(",") if "," in inner else None


def _sources_of(path: Path) -> Iterator[Source]:
    if os.path.isdir(path):  # noqa: PTH112  # Path.is_dir raises an error for a name that is too long
        images = find_images(path)
        if not images:
            hint = next(
                (f" Its shards are not read: give them as '{path}/*{suffix}'." for suffix in _CONTAINERS if any(path.glob(f"*{suffix}"))),
                "",
            )
            raise DataError(f"{path} contains no JPEG, PNG, WebP, BMP or TIFF file.{hint}")
        yield from (_source(image) for image in images)
    elif path.suffix.lower() == ".txt":
        yield from _listed(path)
    else:
        yield _source(path)


def _listed(path: Path) -> Iterator[Source]:
    """Yield the sources of a list of paths."""
    try:
        text = read_plain(path, max_bytes=MAX_LIST_BYTES).decode("utf-8-sig", "surrogateescape")
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}. Give a text file with one path in each line.") from error
    if "\0" in text:
        raise DataError(f"{path} has null bytes, as in UTF-16. Save the list as UTF-8.")
    for line in filter(None, map(str.strip, text.split("\n"))):
        if Path(line).suffix.lower() == ".txt":
            raise DataError(f"{path} lists {line}, which is a list, too. Give both lists on the command line.")
        yield from _sources_of(Path(line))


def _source(path: Path) -> Source:
    """Return the source of a file. A missing image is reported as a row of the output, a missing shard at once."""
    kind = _CONTAINERS.get(path.suffix.lower(), "image")
    try:
        size = path.stat().st_size
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno not in WRONG_PATH:
            raise reading_error(path, error) from error
        if kind != "image":
            raise DataError(f"{path}: {getattr(error, 'strerror', None) or error}. Check the path, or the range of the pattern.") from error
        size = 0
    return Source(printable(path), path, kind, size)
