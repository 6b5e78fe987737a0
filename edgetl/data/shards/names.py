"""Names of shards: patterns such as ``shards/{00000..00999}.tar`` and ``shards/*.tar``, single archives, and folders with an index."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgetl.core.files.byte_ranges import ARCHIVE_SUFFIX
from edgetl.core.files.names import printable
from edgetl.core.output.ownership import SHARD_INDEX_NAME
from edgetl.data.inputs.sources import expand_braces, expand_wildcards
from edgetl.data.shards.index import ShardIndex, read_index
from edgetl.errors import DataError

_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_SHOWN = 3


def is_shards(data: Path) -> bool:
    """Return true if ``data`` names shards: a pattern or file that ends in .tar, or a folder with the index that `edgetl pack` writes."""
    name = str(data)
    return (name.endswith((ARCHIVE_SUFFIX, *_COMPRESSED)) and not data.is_dir()) or (data / SHARD_INDEX_NAME).is_file()


def refuse_shards(data: Path) -> None:
    """Raise a ``DataError`` if ``data`` names shards, for a command that reads folders only."""
    if is_shards(data):
        raise DataError(f"{printable(data)} are shards, which only edgetl train and edgetl predict read. Give the folder of their images.")


def find_shards(data: Path) -> tuple[Path, ...]:
    """Return the shards that ``data`` names, in the order of the range or sorted by name. Their paths are absolute.

    Raises:
        DataError: shards are missing or compressed, the range is too long, or the shards in a folder are not those of its index.
    """
    name = str(data.absolute())
    if name.endswith(_COMPRESSED):
        raise DataError(f"{printable(data)}: the archives are compressed, which prevents reading at a position. Give .tar files.")
    if (index := read_index(Path(name))) is not None:
        return _indexed(Path(name), index)
    found = tuple(Path(match) for expanded in expand_braces(name) for match in expand_wildcards(expanded))
    if missing := [path.name for path in found if not path.is_file()]:
        raise DataError(
            f"{printable(data)}: {len(missing)} of {len(found)} shards do not exist ({_listed(missing)}). Copy them, or change the range, "
            f"such as {{00000..00099}}."
        )
    if len(set(found)) < len(found):
        raise DataError(f"{printable(data)} names a shard twice. Change its ranges.")
    return found


def _indexed(folder: Path, index: ShardIndex) -> tuple[Path, ...]:
    """Return the shards that the index of ``folder`` lists.

    Raises:
        DataError: the folder has not exactly these shards.
    """
    listed = {shard.name for shard in index.shards}
    present = {path.name for path in folder.iterdir() if path.suffix == ARCHIVE_SUFFIX}
    if missing := sorted(listed - present):
        raise DataError(
            f"{printable(folder)}: {len(missing)} of {len(listed)} shards of {SHARD_INDEX_NAME} do not exist ({_listed(missing)}). Copy "
            f"them, or give a pattern of the shards to use, such as '{printable(folder)}/*.tar'."
        )
    if foreign := sorted(present - listed):
        raise DataError(
            f"{printable(folder)} has {len(foreign)} shards that {SHARD_INDEX_NAME} does not list ({_listed(foreign)}). Move them away, or "
            f"give a pattern of the shards to use, such as '{printable(folder)}/*.tar'."
        )
    if not listed:
        raise DataError(f"{printable(folder)}: {SHARD_INDEX_NAME} lists no shards. Pack the images again.")
    return tuple(folder / name for name in sorted(listed))


def _listed(names: Sequence[str]) -> str:
    """Return the first of the names as text."""
    return f"{', '.join(map(printable, names[:_SHOWN]))}{', …' if len(names) > _SHOWN else ''}"
