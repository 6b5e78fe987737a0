"""Attributes: columns of a table that define groups of images for metrics and sampling, such as age or camera."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgetl.core.files.names import printable
from edgetl.data.folder import Sample
from edgetl.data.table.columns import find_columns
from edgetl.data.table.csv_file import CsvFile, read_csv
from edgetl.data.table.files import TableFiles
from edgetl.errors import ConfigError, DataError

# A column with more values does not define groups: it has names or measurements.
MAX_GROUPS = 100


def read_attributes(table: Path, by: str, root: Path, samples: Sequence[Sample], *, option: str = "--groups") -> dict[str, tuple[str, ...]]:
    """Read the values of images in columns of a table. File names are matched as in a label table. Rows of other images are ignored.

    Args:
        table: CSV file with a column ``file``.
        by: columns, separated by commas: ``age,gender``. ``age:gender`` is the combination of two columns.
        root: folder of the images.
        samples: images.
        option: option that gave the table, for error messages.

    Returns:
        for each part of ``by``: the value of each image ``[n]``, empty for an image without a value.

    Raises:
        ConfigError: a column does not exist, is empty, or has more than ``MAX_GROUPS`` values.
        DataError: the table cannot be read, has two rows for one image, or has none of the images.
    """
    csv = read_csv(table, option=option)
    parts = {part: _columns_of(part, csv) for part in map(str.strip, by.split(",")) if part}
    if not parts:
        raise ConfigError(f"--by {by!r} names no column. Give one or more columns of {table}, separated by commas.")
    names = list(dict.fromkeys(name for columns in parts.values() for name in columns))
    columns = find_columns(csv, names, None)
    places, rows = dict(zip(names, columns.labels, strict=True)), _rows(csv, columns.file, root)
    found = [rows.get(sample.path) for sample in samples]
    if not any(found):
        raise DataError(
            f"{option} {table} has none of the {len(samples)} images, such as {printable(samples[0].path.relative_to(root))}. Write paths "
            f"relative to {root} into the column {csv.header[columns.file]!r}."
        )
    values = {part: tuple(_value(cells, [places[name] for name in own]) for cells in found) for part, own in parts.items()}
    for part, cells in values.items():
        if not any(cells):
            raise ConfigError(f"--by {part}: none of the {len(samples)} images has a value in {table}. Fill in the column.")
        if (count := len(set(cells))) > MAX_GROUPS:
            raise ConfigError(
                f"--by {part}: {count} different values. At most {MAX_GROUPS} groups are possible. Write ranges, such as 20-29, into a "
                f"column of {table}."
            )
    return values


def _columns_of(part: str, csv: CsvFile) -> tuple[str, ...]:
    """Return the columns of a part of ``--by``. The colons in the name of a column do not divide it."""
    return (part,) if part in csv.header else tuple(map(str.strip, part.split(":")))


def _rows(csv: CsvFile, file: int, root: Path) -> dict[Path, tuple[str, ...]]:
    """Return the cells of each image below ``root``."""
    files, found = TableFiles(root, csv.path, larger=True), dict[Path, tuple[str, ...]]()
    for line, cells in csv.rows:
        try:
            path = files.find(cells[file])
        except DataError as error:
            raise DataError(f"{csv.path}, line {line}: {error}") from error
        if path is not None and found.setdefault(path, cells) != cells:
            raise DataError(f"{csv.path}, line {line}: {cells[file]} has two different rows. Keep one row for each image.")
    return found


def _value(cells: tuple[str, ...] | None, places: Sequence[int]) -> str:
    """Return the value of an image: its cells joined by a comma; empty if a cell is empty or the table does not have the image."""
    chosen = [cells[place] for place in places] if cells else [""]
    return printable(", ".join(chosen)) if all(chosen) else ""
