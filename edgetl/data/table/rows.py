"""Rows of a table of labels: the file of each row, its class or targets, its split and its group. No image is decoded."""

from __future__ import annotations

import math
from collections.abc import Sequence
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
    """Table of labels, and the options for reading it.

    Attributes:
        path: the CSV file; its column ``file`` (or ``filename``, ``image_id`` …) names images relative to the folder of images or to its
            own. Its columns ``split`` (train, val, test) and ``group`` are no labels, unless ``columns`` names them.
        task: of the label columns; none to derive it from their values.
        columns: label columns to read; empty for all.
        classes: labels of a trained classifier, to evaluate it: their order is kept, and others are refused.
        group: a column, or a pattern of paths, whose images stay in one split; none for the column ``group``, if there is one.
        selection: files to leave out although the table names them.
    """

    path: Path
    task: Task | None = None
    columns: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    group: str | None = None
    selection: Selection = NO_SELECTION


@dataclass(frozen=True)
class Row:
    """Row of the table: the image's class index or targets, its split and its group."""

    path: Path
    label: int
    targets: tuple[float, ...]
    part: Part | None
    group: str


@dataclass(frozen=True)
class TableRows:
    """Content of a table.

    Attributes:
        task: the given one, or the one that its values suggest.
        labels: class names, or the names of the label columns.
        rows: one for each image.
        group: name of the column of groups; empty without one.
        has_splits: true if a column gives the splits.
        assumptions: about the form of the table, as sentences.
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
        ConfigError: a column that does not exist, not exactly one where one is wanted, or a task that must be named.
        DataError: no table, a row that cannot be used, or a label that exported files cannot hold.
    """
    csv = read_csv(table.path)
    columns = _columns(csv, table)
    if not csv.rows:
        raise DataError(f"{table.path} has a header and no rows; add one row for each image.")
    task, assumed = (table.task, "") if table.task else choose_task(csv, columns.labels)
    files = TableFiles(folder, table.path, selection=table.selection)
    csv, paths = _without_excluded(csv, _find_all(files, csv, columns), folder, table)
    labels, rows = _rows(csv, columns, task, table.classes, paths)
    if problems := [f"'{printable(label)}' {problem}" for label in labels if (problem := label_problem(label))]:
        raise DataError(f"{table.path}: the label {problems[0]}, which exported files cannot hold. Rename it.")
    # A table names the images: files of other kinds, such as the table itself, need no note.
    left_out = [note for note in files.left_out.result() if note.reason != "other"]
    if unnamed := sorted(set(files.images) - {row.path for row in rows}):
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


def _without_excluded(csv: CsvFile, paths: list[Path], root: Path, table: Table) -> tuple[CsvFile, list[Path]]:
    """The rows, and their images, that ``--exclude`` does not name.

    Raises:
        DataError: no row is left.
    """
    kept = [index for index, path in enumerate(paths) if not table.selection.excludes(path.relative_to(root).as_posix())]
    if not kept:
        raise DataError(f"{table.path}: --exclude leaves out every image that the table names. Give fewer patterns.")
    return replace(csv, rows=tuple(csv.rows[index] for index in kept)), [paths[index] for index in kept]


def _columns(csv: CsvFile, table: Table) -> Columns:
    columns = find_columns(csv, table.columns, table.group)
    names = [csv.header[place] for place in columns.labels]
    if table.classes and set(table.classes) <= set(names):
        # One column for each class of the model; other columns are not labels.
        return replace(columns, labels=tuple(csv.header.index(name) for name in table.classes))
    if table.classes and len(names) > 1:
        fitting = [place for place in columns.labels if set(csv.column(place)) <= set(table.classes)]
        if len(fitting) != 1:
            raise ConfigError(
                f"{csv.path}: {len(fitting)} of the columns {', '.join(names[:10])} hold only class names of the model "
                f"({', '.join(table.classes[:10])}). Keep one such column, or one column for each class."
            )
        return replace(columns, labels=tuple(fitting))
    if table.task == "classification" and len(names) > 1 and one_hot(csv, columns.labels) is None:
        raise ConfigError(
            f"{csv.path}: {len(names)} columns may hold the class ({', '.join(names[:10])}). Choose one of class names with "
            f"--columns NAME, or write one column for each class, with exactly one 1 in each row."
        )
    if table.task in ("regression", "ordinal") and len(names) != 1:
        raise ConfigError(
            f"--task {table.task} takes one column of numbers, and {len(names)} are in {csv.path}: {', '.join(names[:10])}. "
            f"Choose one with --columns NAME."
        )
    return columns


def _find_all(files: TableFiles, csv: CsvFile, columns: Columns) -> list[Path]:
    """The file of each row.

    Raises:
        DataError: a row names no file, several, or that of another row.
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
            raise DataError(f"{csv.path}, line {line}: {name} is in line {lines[path]} too. Keep one row for each image.")
        lines[path] = line
        paths.append(path)
    if absent:
        line, name = absent[0]
        more = f" {len(absent)} of {len(csv.rows)} rows name no file." if len(absent) > 1 else ""
        raise DataError(
            f"{csv.path}, line {line}: there is no file {name!r} below {files.root} or {csv.path.parent}.{files.suggestion(name)}{more} "
            f"Correct the path, or remove the line."
        )
    return paths


def _rows(csv: CsvFile, columns: Columns, task: Task, classes: tuple[str, ...], paths: Sequence[Path]) -> tuple[tuple[str, ...], list[Row]]:
    """Labels and rows of the table."""
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
    """The class names, and each row's class index."""
    if len(columns.labels) > 1:
        header = tuple(csv.header[place] for place in columns.labels)
        hot = one_hot(csv, columns.labels)
        if hot is None:
            raise DataError(f"{csv.path}: the columns {', '.join(header[:5])} must hold exactly one 1 in each row, and otherwise 0.")
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
    """Each row's targets: 0 or 1 for each label, or the one number."""
    rows = []
    for line, cells in csv.rows:
        numbers = [_number(csv, task, line, csv.header[place], cells[place]) for place in columns.labels]
        rows.append(tuple(float(number > 0) for number in numbers) if task == "multi-label" else tuple(numbers))
    for place in columns.labels:
        cells_of = csv.column(place)
        if any("," in cell for cell in cells_of) and any("." in cell for cell in cells_of):
            raise DataError(
                f"{csv.path}: the column {csv.header[place]!r} holds decimal commas and decimal points. Write all its numbers in one way."
            )
    return rows


def _number(csv: CsvFile, task: Task, line: int, column: str, text: str) -> float:
    words = WORDS if task == "multi-label" else {}
    # In a table whose cells are not separated by commas, a comma is the decimal separator.
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
            f"{csv.path}, line {line}: {cells[columns.split]!r} in the column {csv.header[columns.split]!r} is no split. Write "
            f"train, val or test, or rename the column."
        )
    return part


def _assumptions(csv: CsvFile, columns: Columns, assumed: str) -> list[str]:
    """Assumptions about the table, as sentences."""
    texts = [assumed] if assumed else []
    if csv.encoding == "cp1252":
        texts.append("not UTF-8, so it is read as Windows-1252. Save it as CSV UTF-8 if names look wrong.")
    used = {columns.file, columns.split, columns.group, *columns.labels}
    if unused := [name for place, name in enumerate(csv.header) if place not in used]:
        texts.append(f"the columns {', '.join(name or 'without a name' for name in unused[:10])} are not used.")
    if csv.separator != "," and any("," in cells[place] for _, cells in csv.rows for place in columns.labels):
        texts.append("a comma in a number is the decimal separator.")
    return texts
