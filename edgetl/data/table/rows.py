"""Rows of a label table: file, class or targets, split and group. No image is decoded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from edgetl.core.files.names import label_problem, printable
from edgetl.core.tasks import Task
from edgetl.data.layout import Part, part_of
from edgetl.data.scan_notes import EXAMPLES, ScanNote
from edgetl.data.selection import NO_SELECTION, Selection
from edgetl.data.table.columns import WORDS, Columns, choose_task, class_names, class_order, find_columns, one_hot
from edgetl.data.table.csv_file import CsvFile, read_csv
from edgetl.data.table.files import TableFiles
from edgetl.errors import ConfigError, DataError


@dataclass(frozen=True)
class Table:
    """Label table and the options for reading it.

    Attributes:
        path: CSV file. The column ``file`` (or ``filename``, ``image_id`` …) has image paths, relative to the image folder or to the
            folder of the table. The columns ``split`` (train, val, test) and ``group`` are not labels, unless listed in ``columns``.
        task: task of the label columns; none to derive it from their values.
        columns: label columns to read; empty for all.
        classes: labels of a trained classifier, for its evaluation. Their order is kept; other classes are an error.
        group: column or path pattern of the groups. All images of a group stay in one split. None for the column ``group``, if it exists.
        selection: patterns of files to leave out, although the table has them.
    """

    path: Path
    task: Task | None = None
    columns: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    group: str | None = None
    selection: Selection = NO_SELECTION


@dataclass(frozen=True)
class Row:
    """Row of the table: image, class index or targets, split, and group."""

    path: Path
    label: int
    targets: tuple[float, ...]
    part: Part | None
    group: str


@dataclass(frozen=True)
class TableRows:
    """Content of a table.

    Attributes:
        task: given task, or the task derived from the values.
        labels: class names, or the names of the label columns.
        rows: one row for each image. Rows without a label are left out.
        group: name of the group column; empty without one.
        has_splits: true if a column defines the splits.
        assumptions: assumptions about the form of the table, as sentences.
        left_out: notes on files that the rows do not use.
    """

    task: Task
    labels: tuple[str, ...]
    rows: tuple[Row, ...]
    group: str
    has_splits: bool
    assumptions: tuple[str, ...]
    left_out: tuple[ScanNote, ...]


def read_rows(folder: Path, table: Table) -> TableRows:
    """Read the table, and find the file of each row below ``folder``.

    Raises:
        ConfigError: a column does not exist, several columns are possible, or the task is ambiguous.
        DataError: the table cannot be read, a row is invalid, or exported files cannot represent a label.
    """
    csv = read_csv(table.path)
    columns = _columns(csv, table)
    if not csv.rows:
        raise DataError(f"{table.path} has a header and no rows. Add one row for each image.")
    files = TableFiles(folder, table.path, selection=table.selection)
    csv, unlabeled = _labeled(csv, columns)
    task, assumed = (table.task, "") if table.task else choose_task(csv, columns.labels)
    csv, paths = _without_excluded(csv, _find_all(files, csv, columns), folder, table)
    labels, rows = _rows(csv, columns, task, table.classes, paths)
    if problems := [f"'{printable(label)}' {problem}" for label in labels if (problem := label_problem(label))]:
        raise DataError(f"{table.path}: the label {problems[0]}. Exported files cannot represent it. Rename it.")
    # The table lists the images. Files of other kinds, such as the table itself, need no note.
    left_out = [note for note in files.left_out.result() if note.reason != "other"]
    if unlabeled:
        examples = tuple(map(printable, unlabeled[:EXAMPLES]))
        left_out.append(ScanNote(reason="no-label", used=False, count=len(unlabeled), examples=examples))
    if unnamed := sorted(set(files.images) - {row.path for row in rows} - _found(files, unlabeled)):
        examples = tuple(printable(path.relative_to(folder)) for path in unnamed[:EXAMPLES])
        left_out.append(ScanNote(reason="not-in-table", used=False, count=len(unnamed), examples=examples))
    return TableRows(
        task=task,
        labels=labels,
        rows=tuple(rows),
        group="" if columns.group is None else csv.header[columns.group],
        has_splits=columns.split is not None,
        assumptions=(*_assumptions(csv, columns, assumed), *files.notes()),
        left_out=tuple(left_out),
    )


def _labeled(csv: CsvFile, columns: Columns) -> tuple[CsvFile, list[str]]:
    """Remove the rows whose label cells are all empty, and return also their file names. A person may label a part of the images first.

    Raises:
        DataError: no row remains.
    """
    filled = [any(cells[place] for place in columns.labels) for _, cells in csv.rows]
    if not any(filled):
        names = ", ".join(repr(csv.header[place]) for place in columns.labels[:5])
        raise DataError(f"{csv.path}: no row has a label in {names}. Fill in the labels, or choose other columns with --columns.")
    rows = tuple(row for row, has_label in zip(csv.rows, filled, strict=True) if has_label)
    return replace(csv, rows=rows), [cells[columns.file] for (_, cells), has_label in zip(csv.rows, filled, strict=True) if not has_label]


def _found(files: TableFiles, names: Sequence[str]) -> set[Path]:
    """Return the files of rows without a label. It does not matter if some are missing or ambiguous."""
    found = set[Path]()
    for name in names:
        with suppress(DataError):
            found.update(filter(None, [files.find(name)]))
    return found


def _without_excluded(csv: CsvFile, paths: list[Path], root: Path, table: Table) -> tuple[CsvFile, list[Path]]:
    """Remove the rows of images that ``--exclude`` matches.

    Raises:
        DataError: no row remains.
    """
    kept = [index for index, path in enumerate(paths) if not table.selection.excludes(path.relative_to(root).as_posix())]
    if not kept:
        raise DataError(f"{table.path}: --exclude leaves out all images of the table. Use fewer patterns.")
    return replace(csv, rows=tuple(csv.rows[index] for index in kept)), [paths[index] for index in kept]


def _columns(csv: CsvFile, table: Table) -> Columns:
    columns = find_columns(csv, table.columns, table.group)
    names = [csv.header[place] for place in columns.labels]
    if table.classes and set(table.classes) <= set(names):
        # One column for each class of the model; other columns are not labels.
        return replace(columns, labels=tuple(csv.header.index(name) for name in table.classes))
    if table.classes and len(names) > 1:
        # A column without any label fits, too: the choice must not depend on the progress of the labeling.
        fitting = [place for place in columns.labels if set(csv.column(place)) - {""} <= set(table.classes)]
        if len(fitting) != 1:
            raise ConfigError(
                f"{csv.path}: {len(fitting)} of the columns {', '.join(names[:10])} hold only class names of the model "
                f"({', '.join(table.classes[:10])}). Keep one such column, or one column for each class."
            )
        return replace(columns, labels=tuple(fitting))
    if table.task == "classification" and len(names) > 1 and one_hot(_labeled(csv, columns)[0], columns.labels) is None:
        raise ConfigError(
            f"{csv.path}: {len(names)} columns may be the class ({', '.join(names[:10])}). Choose a column of class names with "
            f"--columns NAME, or write one column for each class with exactly one 1 in each row."
        )
    if table.task in ("regression", "ordinal") and len(names) != 1:
        raise ConfigError(
            f"--task {table.task} needs one column of numbers, but {csv.path} has {len(names)}: {', '.join(names[:10])}. "
            f"Choose one with --columns NAME."
        )
    return columns


def _find_all(files: TableFiles, csv: CsvFile, columns: Columns) -> list[Path]:
    """Find the file of each row.

    Raises:
        DataError: a row matches no file, several files, or the file of another row.
    """
    paths: list[Path] = []
    lines: dict[Path, int] = {}
    absent: list[tuple[int, str]] = []
    for line, cells in csv.rows:
        name = cells[columns.file]
        try:
            path = files.find(name)
        except DataError as error:
            raise DataError(f"{csv.path}, line {line}: {error}") from error
        if path is None:
            absent.append((line, name))
            continue
        if path in lines:
            raise DataError(f"{csv.path}, line {line}: {name} is also in line {lines[path]}. Keep one row for each image.")
        lines[path] = line
        paths.append(path)
    if absent:
        line, name = absent[0]
        more = f" {len(absent)} of {len(csv.rows)} rows match no file." if len(absent) > 1 else ""
        raise DataError(
            f"{csv.path}, line {line}: there is no file {name!r} below {files.root} or {csv.path.parent}.{files.suggestion(name)}{more} "
            f"Correct the path, or remove the line."
        )
    return paths


def _rows(csv: CsvFile, columns: Columns, task: Task, classes: tuple[str, ...], paths: Sequence[Path]) -> tuple[tuple[str, ...], list[Row]]:
    """Return the labels and the rows of the table."""
    names = tuple(csv.header[place] for place in columns.labels)
    values: list[tuple[int, tuple[float, ...]]]
    if task == "classification":
        names, indices = _classes(csv, columns, classes)
        values = [(index, ()) for index in indices]
    else:
        values = [(0, row) for row in _numbers(csv, columns, task)]
    parts = [_part(csv, columns, line, cells) for line, cells in csv.rows]
    groups = ["" if columns.group is None else cells[columns.group] for _, cells in csv.rows]
    return names, [
        Row(path, label, targets, part, group) for path, (label, targets), part, group in zip(paths, values, parts, groups, strict=True)
    ]


def _classes(csv: CsvFile, columns: Columns, classes: tuple[str, ...]) -> tuple[tuple[str, ...], list[int]]:
    """Return the class names, and the class index of each row."""
    if len(columns.labels) > 1:
        header = tuple(csv.header[place] for place in columns.labels)
        hot = one_hot(csv, columns.labels)
        if hot is None:
            raise DataError(f"{csv.path}: the columns {', '.join(header[:5])} must have exactly one 1 in each row, and 0 elsewhere.")
        return header, hot
    names = class_names(csv, columns.labels[0])
    if classes and (unknown := sorted(set(names) - set(classes))):
        raise DataError(
            f"{csv.path} has classes that the model does not have: {', '.join(unknown[:5])}. It has {', '.join(classes[:10])}. "
            f"Remove their lines, or choose another column."
        )
    order = classes or class_order(set(names))
    index = {name: place for place, name in enumerate(order)}
    return order, [index[name] for name in names]


def _numbers(csv: CsvFile, columns: Columns, task: Task) -> list[tuple[float, ...]]:
    """Return the targets of each row: 0 or 1 for each label, or one number."""
    rows = []
    for line, cells in csv.rows:
        numbers = [_number(csv, task, line, csv.header[place], cells[place]) for place in columns.labels]
        rows.append(tuple(float(number > 0) for number in numbers) if task == "multi-label" else tuple(numbers))
    for place in columns.labels:
        cells_of = csv.column(place)
        if any("," in cell for cell in cells_of) and any("." in cell for cell in cells_of):
            raise DataError(
                f"{csv.path}: the column {csv.header[place]!r} has decimal commas and decimal points. Use one of them for all its numbers."
            )
    return rows


def _number(csv: CsvFile, task: Task, line: int, column: str, text: str) -> float:
    words = WORDS if task == "multi-label" else {}
    # If another character separates the cells, a comma is the decimal separator.
    plain = text.replace(",", ".") if csv.separator != "," and text.count(",") == 1 else text
    try:
        value = words[text.lower()] if text.lower() in words else float(plain)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(
            f"{csv.path}, line {line}: {text!r} in the column {column!r} is not a number. Write a number"
            f"{', true or false' if words else ''}, or choose other columns with --columns. Class names need --task classification."
        )
    if task == "ordinal" and value != int(value):
        raise DataError(f"{csv.path}, line {line}: {text} in the column {column!r} is not a whole number. Use --task regression for it.")
    return value


def _part(csv: CsvFile, columns: Columns, line: int, cells: Sequence[str]) -> Part | None:
    if columns.split is None:
        return None
    part = part_of(cells[columns.split])
    if part is None:
        raise DataError(
            f"{csv.path}, line {line}: {cells[columns.split]!r} in the column {csv.header[columns.split]!r} is not a split. Write "
            f"train, val or test, or rename the column."
        )
    return part


def _assumptions(csv: CsvFile, columns: Columns, assumed: str) -> list[str]:
    """Describe the assumptions about the table in sentences."""
    texts = [assumed] if assumed else []
    if csv.encoding == "cp1252":
        texts.append("not UTF-8, so the table is read as Windows-1252. Save it as CSV UTF-8 if names look wrong.")
    used = {columns.file, columns.split, columns.group, *columns.labels}
    if unused := [name for place, name in enumerate(csv.header) if place not in used]:
        texts.append(f"the columns {', '.join(name or 'without a name' for name in unused[:10])} are not used.")
    if csv.separator != "," and any("," in cells[place] for _, cells in csv.rows for place in columns.labels):
        texts.append("a comma in a number is the decimal separator.")
    return texts
