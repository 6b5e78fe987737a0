"""Labels from a CSV file: which labels each image has, or one number or grade for it."""

from __future__ import annotations

import csv
import io
import logging
import math
import os
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgetl.core.progress import Progress, silent
from edgetl.core.tasks import MOST_GRADES, Task
from edgetl.data.folder import PART_NAMES, BrokenImage, ImageFolder, Part, Sample, check_broken, has_parts, images_below
from edgetl.data.integrity import check_images
from edgetl.errors import ConfigError, DataError

_log = logging.getLogger(__name__)

FILE_COLUMN = "file"
MAX_CSV_BYTES = 200_000_000
# A stratum of fewer pictures cannot give its 15 % to a split.
LEAST_STRATUM = 7
BINS = 10
_WORDS = {"true": 1.0, "yes": 1.0, "false": 0.0, "no": 0.0}


@dataclass(frozen=True)
class Table:
    """Where labels stand.

    Attributes:
        path: the CSV file; its column ``file`` names images relative to its own folder or to the folder of images.
        task: what its other columns say.
        columns: those to read; empty for all.
    """

    path: Path
    task: Task = "multi-label"
    columns: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Row:
    line: int
    path: Path
    targets: tuple[float, ...]


def scan_table(root: str | os.PathLike[str], table: Table, *, known: bool = False, progress: Progress = silent) -> ImageFolder:
    """Read the table and decode every image that it names; images that it does not name are left alone.

    Splits keep the proportions of strata: of a multi-label set the combinations of labels that at least ``LEAST_STRATUM`` pictures have,
    and for the others the rarest label of an image; of numbers ten ranges with equally many pictures; of grades the grades.

    Args:
        root: the folder that holds the images.
        table: where their labels stand.
        known: the columns are those of a trained model, to evaluate it: labels may be absent.
        progress: told after each decoded file.

    Raises:
        ConfigError: a column that does not exist, or not exactly one where one number is wanted.
        DataError: no folder, no table, a row that cannot be used, too many broken images, a label that no image has.
    """
    folder = Path(root)
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; give the folder that holds the images which {table.path} names.")
    columns, cells = _read(table)
    rows = _rows(folder, table, columns, cells)
    contents = check_images([row.path for row in rows], folder, progress=progress)
    broken = [BrokenImage(row.path, contents[row.path].reason) for row in rows if contents[row.path].content is None]
    kept = sorted((row for row in rows if contents[row.path].content is not None), key=lambda row: row.path)
    hashes = [contents[row.path].content or "" for row in kept]
    strata = _strata(table.task, [row.targets for row in kept], hashes)
    ready_made = has_parts(folder)
    samples = tuple(
        Sample(row.path, stratum, content, _part(folder, row.path) if ready_made else None, row.targets)
        for row, stratum, content in zip(kept, strata, hashes, strict=True)
    )
    found = ImageFolder(folder, columns, samples, tuple(broken), table.task)
    check_broken(found)
    _check_targets(found, table, known=known)
    if unnamed := len(set(images_below(folder)) - {row.path for row in rows}):
        _log.info("%d images of %s are not in %s and are left out", unnamed, folder, table.path)
    return found


def _read(table: Table) -> tuple[tuple[str, ...], list[tuple[int, str, list[str]]]]:
    """The chosen columns, and of each row its line, its file and its cells."""
    try:
        data = table.path.read_bytes()
    except OSError as error:
        raise DataError(f"--labels {table.path} cannot be read: {error.strerror}. Give a CSV file with a column `file`.") from error
    if len(data) > MAX_CSV_BYTES:
        raise DataError(f"--labels {table.path} is larger than {MAX_CSV_BYTES:,} bytes; it is not a table of labels.")
    try:
        reader = csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True)
        lines = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"--labels {table.path} is not a CSV file in UTF-8: {error}.") from error
    header = [unicodedata.normalize("NFC", cell.strip()) for cell in lines[0][1]] if lines else []
    columns = _columns(table, header)
    places = [header.index(name) for name in columns]
    rows = []
    for line, row in lines[1:]:
        if len(row) != len(header):
            raise DataError(f"{table.path}, line {line}: {len(row)} cells, and the header has {len(header)}. Mend the line.")
        rows.append((line, row[header.index(FILE_COLUMN)].strip(), [row[place].strip() for place in places]))
    if not rows:
        raise DataError(f"{table.path} has a header and no rows; add one row for each image.")
    return columns, rows


def _columns(table: Table, header: Sequence[str]) -> tuple[str, ...]:
    if FILE_COLUMN not in header:
        raise DataError(
            f"{table.path} has no column `{FILE_COLUMN}` (its first line says: {', '.join(header[:8]) or 'nothing'}). "
            f"Name the images in a column of that name."
        )
    others = [name for name in header if name != FILE_COLUMN]
    if repeated := [name for name, count in Counter(header).items() if count > 1 or not name]:
        raise DataError(f"{table.path}: the column {repeated[0]!r} stands there twice or has no name. Rename or remove it.")
    if not others:
        raise DataError(f"{table.path} has no column beside `{FILE_COLUMN}`: no labels. Add a column for each label, or one of numbers.")
    if unknown := [name for name in table.columns if name not in others]:
        raise ConfigError(f"{table.path} has no column {unknown[0]!r}; it has {', '.join(others[:10])}.")
    chosen = table.columns or tuple(others)
    if table.task != "multi-label" and len(chosen) != 1:
        raise ConfigError(
            f"--task {table.task} learns one column of numbers, and {len(chosen)} stand in {table.path}: {', '.join(chosen[:10])}. "
            f"Choose one with --column NAME."
        )
    return chosen


def _rows(root: Path, table: Table, columns: Sequence[str], cells: list[tuple[int, str, list[str]]]) -> list[_Row]:
    rows: list[_Row] = []
    lines: dict[Path, int] = {}
    for line, name, values in cells:
        path = _find(root, table.path, line, name)
        if path in lines:
            raise DataError(f"{table.path}, line {line}: {name} stands in line {lines[path]} too. Keep one row for each image.")
        lines[path] = line
        numbers = [_number(table, line, column, value) for column, value in zip(columns, values, strict=True)]
        targets = tuple(float(number > 0) for number in numbers) if table.task == "multi-label" else tuple(numbers)
        rows.append(_Row(line, path, targets))
    return rows


def _find(root: Path, csv_path: Path, line: int, name: str) -> Path:
    """The image below ``root``, by the path that ``root`` and the name give, so that a link stays what the user sees."""
    inside, *candidates = (Path(os.path.normpath(Path.cwd() / path)) for path in (root, root / name, csv_path.parent / name))
    for candidate in candidates:
        if name and candidate.is_file():
            if not candidate.is_relative_to(inside):
                raise DataError(f"{csv_path}, line {line}: {name} lies outside {root}. Give a folder that holds all images.")
            return root / candidate.relative_to(inside)
    raise DataError(
        f"{csv_path}, line {line}: there is no file {name!r} below {root} or {csv_path.parent}. Mend the path, or remove the line."
    )


def _number(table: Table, line: int, column: str, text: str) -> float:
    words = _WORDS if table.task == "multi-label" else {}
    try:
        value = words[text.lower()] if text.lower() in words else float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(
            f"{table.path}, line {line}: {text!r} in the column {column!r} is not a number. Write a number"
            f"{', true or false' if words else ''}, or choose other columns with --column."
        )
    if table.task == "ordinal" and value != int(value):
        raise DataError(f"{table.path}, line {line}: {text} in the column {column!r} is not a whole grade. Use --task regression for it.")
    return value


def _part(root: Path, path: Path) -> Part | None:
    return PART_NAMES.get(path.relative_to(root).parts[0].lower())


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
    if table.task == "multi-label":
        if absent := [label for label, count in folder.counts().items() if not count]:
            raise DataError(
                f"{table.path}: no image has the label {', '.join(map(repr, absent[:5]))}. Remove the column, or name others with --column."
            )
        return
    values = {sample.targets[0] for sample in folder.samples}
    if len(values) < 2:
        raise DataError(f"{table.path}: every image has the same number in {folder.labels[0]!r}; there is nothing to learn.")
    if table.task == "ordinal" and max(values) - min(values) >= MOST_GRADES:
        raise DataError(
            f"{table.path}: grades from {min(values):g} to {max(values):g} in {folder.labels[0]!r}; up to {MOST_GRADES} grades are "
            f"possible. Use --task regression for such numbers."
        )
