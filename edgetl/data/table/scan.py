"""Labels from a CSV file: a class of each image, any of several labels, or a number or grade."""

from __future__ import annotations

import logging
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edgetl.core.files.text import label_problem, printable
from edgetl.core.progress import Progress, silent
from edgetl.core.tasks import MAX_LEVELS, Task
from edgetl.data.content.integrity import Checked, check_images
from edgetl.data.folder import MIN_IMAGES_PER_CLASS, BrokenImage, ImageFolder, Part, Sample, check_broken, split_folders
from edgetl.data.groups import group_by_path
from edgetl.data.layout import part_of
from edgetl.data.notes import EXAMPLES, ScanNote, log_notes
from edgetl.data.selection import NO_SELECTION, Selection
from edgetl.data.table.columns import WORDS, Columns, choose_task, class_names, class_order, find_columns, one_hot
from edgetl.data.table.csv_file import CsvFile, read_csv
from edgetl.data.table.files import TableFiles
from edgetl.errors import ConfigError, DataError

_log = logging.getLogger(__name__)

# A stratum of fewer images cannot give its 15 % to a split.
LEAST_STRATUM = 7
BINS = 10


@dataclass(frozen=True)
class Table:
    """A table of labels, and how it is read.

    Attributes:
        path: the CSV file; its column ``file`` (or ``filename``, ``image_id`` …) names images relative to the folder of images or to its
            own. Its columns ``split`` (train, val, test) and ``group`` are no labels, unless ``columns`` names them.
        task: of its other columns; none to derive it from their values.
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
class _Row:
    """Row of the table: the image's class index or targets, its split and its group."""

    path: Path
    label: int
    targets: tuple[float, ...]
    part: Part | None
    group: str


def scan_table(root: str | os.PathLike[str], table: Table, *, known: bool = False, progress: Progress = silent) -> ImageFolder:
    """Read the table and decode every image that it names; images that it does not name are left alone.

    Without ``table.task``, one column of words is classification; columns of 0 and 1 are labels that may occur together, or classes
    where each row has exactly one 1. One column of other numbers is refused, since it may be classes, grades or measurements.

    Splits keep the proportions of strata: of classes the classes, of a multi-label set the combinations of labels that at least
    ``LEAST_STRATUM`` images have, and for the others the rarest label of an image; of numbers ten ranges with equally many images; of
    grades the grades.

    Args:
        root: the folder that holds the images.
        table: the labels.
        known: the columns are those of a trained model, to evaluate it: labels may be absent.
        progress: called after each decoded file.

    Raises:
        ConfigError: a column that does not exist, not exactly one where one is wanted, or a task that must be named.
        DataError: no folder, no table, a row that cannot be used, too many broken images, a label that no image has.
    """
    folder = Path(root)
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; give the folder that holds the images which {table.path} names.")
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
    contents = check_images([row.path for row in rows], folder, progress=progress)
    broken = tuple(BrokenImage(row.path, contents[row.path].reason) for row in rows if contents[row.path].content is None)
    kept = sorted((row for row in rows if contents[row.path].content is not None), key=lambda row: row.path)
    samples = _samples(folder, task, kept, contents)
    texts = (*_assumptions(csv, columns, assumed), *files.notes(), *_split_notes(folder, columns, kept))
    notes = tuple(ScanNote(reason="table", used=True, count=len(csv.rows), text=f"{table.path}: {text}") for text in texts)
    # A table names the images: files of other kinds, such as the table itself, need no note.
    notes = (*notes, *(note for note in files.left_out.result() if note.reason != "other"))
    if unnamed := sorted(set(files.images) - {row.path for row in rows}):
        examples = tuple(printable(path.relative_to(folder)) for path in unnamed[:EXAMPLES])
        notes = (*notes, ScanNote(reason="not-in-table", used=False, count=len(unnamed), examples=examples))
    grouping = "" if columns.group is None else f"column {csv.header[columns.group]}"
    found = ImageFolder(folder, labels, samples, broken, task, notes=notes, grouping=grouping)
    log_notes(notes)
    check_broken(found)
    _check_targets(found, table, known=known)
    if table.group is not None and (columns.group is None or csv.header[columns.group] != table.group):
        return group_by_path(found, table.group)
    return found


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


def _rows(
    csv: CsvFile, columns: Columns, task: Task, classes: tuple[str, ...], paths: Sequence[Path]
) -> tuple[tuple[str, ...], list[_Row]]:
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
        _Row(path, label, targets, part, group) for path, (label, targets), part, group in zip(paths, values, parts, groups, strict=True)
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
        raise DataError(f"{csv.path}, line {line}: {text} in the column {column!r} is not a whole grade. Use --task regression for it.")
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


def _samples(root: Path, task: Task, rows: Sequence[_Row], contents: Mapping[Path, Checked]) -> tuple[Sample, ...]:
    found = [contents[row.path] for row in rows]
    hashes = [item.content or "" for item in found]
    strata = [row.label for row in rows] if task == "classification" else _strata(task, [row.targets for row in rows], hashes)
    folders = split_folders(root)
    return tuple(
        Sample(
            row.path,
            stratum,
            item.content or "",
            row.part or folders.get(row.path.relative_to(root).parts[0]),
            row.targets,
            row.group,
            levels=item.levels,
        )
        for row, stratum, item in zip(rows, strata, found, strict=True)
    )


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


def _split_notes(root: Path, columns: Columns, rows: Sequence[_Row]) -> list[str]:
    """Sentences on the table's column of splits, and on the number of images in a folder of another split."""
    if columns.split is None:
        return []
    parts = Counter(row.part for row in rows)
    texts = [f"its column of splits is used: {parts['train']} train, {parts['val']} val, {parts['test']} test."]
    folders = split_folders(root)
    if folders and (other := sum(row.part != folders.get(row.path.relative_to(root).parts[0]) for row in rows)):
        texts.append(f"{other} images are in a folder of another split; the table decides.")
    return texts


def _strata(task: Task, targets: Sequence[tuple[float, ...]], contents: Sequence[str]) -> list[int]:
    """For each image the index of its stratum; copies of a picture count once."""
    distinct = dict(zip(contents, targets, strict=True))
    keys: list[tuple[object, ...]]
    if task == "multi-label":
        combinations = Counter(distinct.values())
        totals = np.sum(list(distinct.values()), axis=0) if distinct else np.zeros(0)
        keys = [("all", item) if combinations[item] >= LEAST_STRATUM else ("rarest", _rarest(item, totals)) for item in targets]
    elif task == "ordinal":
        keys = list(targets)
    else:
        values = np.array(list(distinct.values()))[:, 0] if distinct else np.zeros(0)
        bins = max(1, min(BINS, len(values) // LEAST_STRATUM))
        edges = np.quantile(values, np.arange(1, bins) / bins) if len(values) else np.zeros(0)
        keys = [(int(np.searchsorted(edges, item[0], side="right")),) for item in targets]
    order = {key: index for index, key in enumerate(sorted(set(keys)))}
    return [order[key] for key in keys]


def _rarest(targets: tuple[float, ...], totals: np.ndarray) -> tuple[float, ...]:
    """The index of the label that fewest images have, of those that this one has."""
    held = [(totals[index], index) for index, value in enumerate(targets) if value]
    return (float(min(held)[1]),) if held else ()


def _check_targets(folder: ImageFolder, table: Table, *, known: bool) -> None:
    if not folder.samples:
        raise DataError(f"none of the images that {table.path} names can be decoded.")
    if known:
        return
    if folder.task == "multi-label":
        if absent := [label for label, count in folder.counts().items() if not count]:
            raise DataError(
                f"{table.path}: no image has the label {', '.join(map(repr, absent[:5]))}. Remove the column, or name others by --columns."
            )
        return
    if folder.task == "classification":
        _check_classes(folder, table)
        return
    values = {sample.targets[0] for sample in folder.samples}
    if len(values) < 2:
        raise DataError(f"{table.path}: every image has the same number in {folder.labels[0]!r}; there is nothing to learn.")
    if folder.task == "ordinal" and max(values) - min(values) >= MAX_LEVELS:
        raise DataError(
            f"{table.path}: grades from {min(values):g} to {max(values):g} in {folder.labels[0]!r}; up to {MAX_LEVELS} grades are "
            f"possible. Use --task regression for such numbers."
        )


def _check_classes(folder: ImageFolder, table: Table) -> None:
    counts = folder.counts()
    small = [f"{label} ({count})" for label, count in counts.items() if count < MIN_IMAGES_PER_CLASS]
    if len(counts) < 2 or small:
        what = f"too few readable images of {', '.join(small[:5])}" if small else f"one class ({next(iter(counts))})"
        raise DataError(
            f"{table.path}: {what}; at least 2 classes of {MIN_IMAGES_PER_CLASS} images are needed. Add images or remove the class, or "
            f"choose another column with --columns."
        )
    alike = Counter(" ".join(label.casefold().split()) for label in counts)
    if similar := [label for label in counts if alike[" ".join(label.casefold().split())] > 1]:
        _log.warning("%s: the classes %s differ only in case or spaces.", table.path, ", ".join(map(repr, similar[:6])))
