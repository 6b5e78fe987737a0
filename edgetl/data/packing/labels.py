"""Label table of shards: the class of each image by its key, in place of the ``.cls`` members."""

from __future__ import annotations

from pathlib import Path

from edgetl.core.files.names import printable
from edgetl.data.shards.members import is_image, split_name
from edgetl.data.table.csv_file import read_csv
from edgetl.errors import DataError

_KEYS = ("file", "key")


def read_labels(path: Path) -> dict[str, str]:
    """Read the class of each key. The table stays in memory, which its size limit bounds.

    The table has a column ``file`` or ``key`` (a key, or the name of an image in its archive), and one column of class names. Rows
    without a class are left out.

    Raises:
        DataError: the table cannot be read, has other columns, or names a key twice.
    """
    table = read_csv(path)
    names = [name.lower() for name in table.header]
    place = next((names.index(name) for name in _KEYS if name in names), None)
    if place is None or len(names) != 2:
        raise DataError(
            f"--labels {printable(path)} has the columns {', '.join(map(printable, table.header))}. For shards, give a table with the "
            f"columns `file` (key of the image, or its name in the archive) and `label`."
        )
    labels: dict[str, str] = {}
    for line, cells in table.rows:
        key, suffix = split_name(cells[place])
        key = key if is_image(suffix) else cells[place]
        if key in labels:
            raise DataError(f"--labels {printable(path)}, line {line}: {printable(key)} is named twice. Remove one of the lines.")
        if cells[1 - place]:
            labels[key] = cells[1 - place]
    return labels
