"""Names of shards: brace ranges such as ``shards/{0000..0999}.tar``, single archives, and folders of archives."""

from __future__ import annotations

from pathlib import Path

from edgetl.core.files.byte_ranges import ARCHIVE_SUFFIX
from edgetl.core.files.names import printable
from edgetl.core.output.ownership import SHARD_INDEX_NAME
from edgetl.data.inputs.sources import expand_braces
from edgetl.errors import DataError

_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_SHOWN = 3


def is_shards(data: Path) -> bool:
    """Return true if ``data`` names shards: a pattern or file that ends in .tar, or a folder with the index that `edgetl pack` writes."""
    name = str(data)
    return (name.endswith((ARCHIVE_SUFFIX, *_COMPRESSED)) and not data.is_dir()) or (data / SHARD_INDEX_NAME).is_file()


def find_shards(data: Path) -> tuple[Path, ...]:
    """Return the shards that ``data`` names, in the order of the range or sorted by name. Their paths are absolute.

    Raises:
        DataError: shards are missing or compressed, or the range is too long.
    """
    name = str(data.absolute())
    if name.endswith(_COMPRESSED):
        raise DataError(f"{printable(data)}: the archives are compressed, which prevents reading at a position. Give .tar files.")
    if (data / SHARD_INDEX_NAME).is_file():
        found = tuple(sorted(path for path in Path(name).iterdir() if path.suffix == ARCHIVE_SUFFIX))
        if not found:
            raise DataError(f"{printable(data)} has an index ({SHARD_INDEX_NAME}), but no .tar file. Copy its shards again.")
        return found
    found = tuple(map(Path, expand_braces(name)))
    if missing := [path for path in found if not path.is_file()]:
        names = ", ".join(printable(path.name) for path in missing[:_SHOWN])
        raise DataError(
            f"{printable(data)}: {len(missing)} of {len(found)} shards do not exist ({names}{', …' if len(missing) > _SHOWN else ''}). "
            f"Copy them, or change the range, such as {{0000..0099}}."
        )
    if len(set(found)) < len(found):
        raise DataError(f"{printable(data)} names a shard twice. Change its ranges.")
    return found
