"""Columns of a label table: file, split, group and labels, and the task of the labels."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from edgetl.core.files.names import label_problem, printable
from edgetl.core.tasks import Task
from edgetl.data.table.csv_file import CsvFile
from edgetl.errors import ConfigError, DataError

# Accepted names of the file column, in order of precedence.
FILE_COLUMNS = tuple(
    (
        "file filename file_name filepath file_path image_path path image image_name image_file image_id img img_path img_name img_id id"
    ).split()
)
SPLIT_COLUMN, GROUP_COLUMN = "split", "group"
WORDS = {"true": 1.0, "yes": 1.0, "false": 0.0, "no": 0.0}
_BINARY = {"0": 0, "0.0": 0, "1": 1, "1.0": 1, **{word: int(value) for word, value in WORDS.items()}}
REMEDY = (
    "Choose with --task: classification (each value is a class), ordinal (whole levels), regression (a number), or multi-label "
    "(above 0: the label is present)"
)
_NUMBER = re.compile(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)([eE][+-]?\d+)?")
_LIST = re.compile(r"\s*[|;,]\s*")


@dataclass(frozen=True)
class Columns:
    """Indices of the columns of a table.

    Attributes:
        file: column of the image file.
        labels: columns of the labels or the number, in order.
        split: column of train, val or test; none without such a column.
        group: column of the groups; none without such a column.
    """

    file: int
    labels: tuple[int, ...]
    split: int | None = None
    group: int | None = None


def find_columns(csv: CsvFile, chosen: Sequence[str], group: str | None) -> Columns:
    """Find the file, label, split and group columns of a table.

    Args:
        csv: table.
        chosen: names of the label columns; empty for all columns that have no other use.
        group: name of the group column. A name that the table does not have is ignored.

    Raises:
        ConfigError: a chosen column does not exist.
        DataError: the file column or the label columns are missing, or two columns have the same name.
    """
    # pandas writes its row index as a column without a name.
    unnamed = 0 if csv.header and not csv.header[0] and csv.column(0) == [str(index) for index in range(len(csv.rows))] else None
    names = {index: name for index, name in enumerate(csv.header) if index != unnamed}
    if repeated := [name for name, count in Counter(names.values()).items() if count > 1 or not name]:
        raise DataError(f"{csv.path}: the column {repeated[0]!r} occurs twice or has no name. Rename or remove it.")
    keys = {re.sub(r"[\s-]+", "_", name.casefold()): index for index, name in names.items()}
    file = next((keys[key] for key in FILE_COLUMNS if key in keys), None)
    if file is None:
        raise DataError(
            f"{csv.path} has no column `file` (first line: {', '.join(csv.header[:8]) or 'empty'}). Add a column `file` with image paths "
            f"(or {', '.join(FILE_COLUMNS[1:6])} …), and write its name in the first line."
        )
    others = {name: index for index, name in names.items() if index != file}
    if unknown := [name for name in chosen if name not in others]:
        raise ConfigError(f"{csv.path} has no column {unknown[0]!r}. Its columns: {', '.join(list(others)[:10])}.")
    special = {name: keys.get(name) for name in (SPLIT_COLUMN, GROUP_COLUMN)}
    if group in others:
        special[GROUP_COLUMN] = others[group]
    wanted = {others[name] for name in chosen}
    split, grouped = (None if place in wanted or place == file else place for place in special.values())
    left = tuple(index for index in others.values() if index not in (split, grouped, keys.get(GROUP_COLUMN)))
    if not chosen and not left:
        raise DataError(
            f"{csv.path} has no label column, only `{csv.header[file]}`. Add a column for each label, or a column of classes or numbers."
        )
    return Columns(file, tuple(others[name] for name in chosen) or left, split, grouped)


def is_number(text: str) -> bool:
    """Return true if a cell is a number, with a decimal point or a decimal comma."""
    return _NUMBER.fullmatch(text) is not None


def one_hot(csv: CsvFile, places: Sequence[int]) -> list[int] | None:
    """Return the index of the column with the 1 (or true) for each row.

    None if a row does not have exactly one 1, or has values other than 0 and 1.
    """
    hot = []
    for _, cells in csv.rows:
        values = [_BINARY.get(cells[place].lower(), 2) for place in places]
        if len(places) < 2 or values.count(1) != 1 or values.count(0) != len(places) - 1:
            return None
        hot.append(values.index(1))
    return hot


def choose_task(csv: CsvFile, places: Sequence[int]) -> tuple[Task, str]:
    """Derive the task from the values of the label columns.

    Returns:
        The task, and a sentence about the assumption (empty if there is none).

    Raises:
        ConfigError: several tasks are possible, or several columns have words.
        DataError: most cells of a column are numbers, and some are not.
    """
    names = [csv.header[place] for place in places]
    if len(places) == 1:
        return _task_of_one(csv, places[0])
    words = [name for name, place in zip(names, places, strict=True) if not all(_is_value(cell) or not cell for cell in csv.column(place))]
    if words:
        raise ConfigError(
            f"{csv.path}: {len(names)} columns may be the labels ({', '.join(names[:10])}), and {words[0]!r} has words. "
            f"Choose a column of class names with --columns {words[0]}, or columns of numbers with --columns NAME,NAME."
        )
    if one_hot(csv, places) is not None:
        return "classification", (
            f"each row has exactly one 1, so the {len(names)} columns are read as classes, one for each image. "
            f"Use --task multi-label for labels that may occur together."
        )
    return "multi-label", ""


def class_names(csv: CsvFile, place: int) -> list[str]:
    """Return the class of each row of a column. ``2.0`` is class ``2``.

    Raises:
        DataError: a cell is empty, is not printable, or lists several classes.
    """
    names = [cell.partition(".")[0] if re.fullmatch(r"-?\d+\.0+", cell) else cell for cell in csv.column(place)]
    for (line, _), name in zip(csv.rows, names, strict=True):
        if problem := label_problem(name):
            raise DataError(
                f"{csv.path}, line {line}: '{printable(name)}' in the column {csv.header[place]!r} {problem}. "
                f"Write a class name, or remove the line."
            )
    found = set(names)
    for (line, _), name in zip(csv.rows, names, strict=True):
        parts = set(_LIST.split(name)) - {""}
        if len(parts) > 1 and parts & found:
            raise DataError(
                f"{csv.path}, line {line}: {name!r} lists several classes. Write one column for each label (1: present, 0: absent) "
                f"and use --task multi-label."
            )
    return names


def class_order(names: set[str]) -> tuple[str, ...]:
    """Sort class names: whole numbers by value, others as text."""
    if all(re.fullmatch(r"-?\d+", name) for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def _task_of_one(csv: CsvFile, place: int) -> tuple[Task, str]:
    cells, name = csv.column(place), csv.header[place]
    values = {cell.lower() for cell in cells}
    if values <= _BINARY.keys():
        return "multi-label", (
            f"the column {name!r} has only 0 and 1 (or yes and no), so it is read as one label, present or absent. "
            f"Use --task classification for two classes."
        )
    numbers = [_is_value(cell) for cell in cells]
    if all(numbers):
        shown = ", ".join(sorted(values, key=lambda text: (len(text), text))[:5])
        raise ConfigError(
            f"{csv.path}: the column {name!r} has {len(values)} different numbers ({shown}{' …' if len(values) > 5 else ''}). {REMEDY}."
        )
    if sum(numbers) > len(numbers) / 2:
        line, odd = next((line, cell) for (line, _), cell, number in zip(csv.rows, cells, numbers, strict=True) if not number)
        raise DataError(
            f"{csv.path}, line {line}: {odd!r} in the column {name!r} is not a number, but most others are. Correct the line, or use "
            f"--task classification (each value is a class)."
        )
    return "classification", ""


def _is_value(text: str) -> bool:
    return text.lower() in WORDS or is_number(text)
