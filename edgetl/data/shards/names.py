"""Names of shards: brace ranges such as ``shards/{0000..0999}.tar``, single archives, and folders of archives."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from edgetl.core.files.byte_ranges import ARCHIVE_SUFFIX
from edgetl.core.files.names import printable
from edgetl.core.output.ownership import SHARD_INDEX_NAME
from edgetl.errors import DataError

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
MOST_SHARDS = 1_000_000
_SHOWN = 3


def is_shards(data: Path) -> bool:
    """Return true if ``data`` names shards: a pattern or file that ends in .tar, or a folder with the index that `edgetl pack` writes."""
    name = str(data)
    return (name.endswith((ARCHIVE_SUFFIX, *_COMPRESSED)) and not data.is_dir()) or (data / SHARD_INDEX_NAME).is_file()


def find_shards(data: Path) -> tuple[Path, ...]:
    """Return the shards that ``data`` names, in the order of the range or sorted by name. Their paths are absolute.

    Raises:
        DataError: shards are missing or compressed, or the range is not valid.
    """
    name = str(data.absolute())
    if name.endswith(_COMPRESSED):
        raise DataError(f"{printable(data)}: the archives are compressed, which prevents reading at a position. Give .tar files.")
    if (data / SHARD_INDEX_NAME).is_file():
        found = tuple(sorted(path for path in Path(name).iterdir() if path.suffix == ARCHIVE_SUFFIX))
        if not found:
            raise DataError(f"{printable(data)} has an index ({SHARD_INDEX_NAME}), but no .tar file. Copy its shards again.")
        return found
    found = tuple(map(Path, _expand(name)))
    if missing := [path for path in found if not path.is_file()]:
        names = ", ".join(printable(path.name) for path in missing[:_SHOWN])
        raise DataError(
            f"{printable(data)}: {len(missing)} of {len(found)} shards do not exist ({names}{', …' if len(missing) > _SHOWN else ''}). "
            f"Copy them, or change the range, such as {{0000..0099}}."
        )
    if len(set(found)) < len(found):
        raise DataError(f"{printable(data)} names a shard twice. Change its ranges.")
    return found


def _expand(name: str) -> Iterator[str]:
    """Expand the ranges in braces, as a shell does. Leading zeros are kept."""
    match = _RANGE.search(name)
    if match is None:
        yield name
        return
    first, last = int(match[1]), int(match[2])
    if last < first or last - first >= MOST_SHARDS:
        raise DataError(
            f"{match[0]} is not a range of up to {MOST_SHARDS:,} shards, the first number before the last. Example: {{0000..0099}}."
        )
    width = len(match[1]) if match[1].startswith("0") or len(match[1]) == len(match[2]) else 0
    for number in range(first, last + 1):
        for rest in _expand(name[match.end() :]):
            yield f"{name[: match.start()]}{number:0{width}d}{rest}"
