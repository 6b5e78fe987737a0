"""Scan of a label table (CSV) for classification, multi-label classification, regression or ordinal regression."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from edgetl.core.progress import Progress, silent
from edgetl.core.tasks import MAX_LEVELS, Task
from edgetl.data.content.integrity import Checked, check_images
from edgetl.data.folder import MIN_IMAGES_PER_CLASS, BrokenImage, ImageFolder, Sample, check_broken, check_folder, split_folders
from edgetl.data.groups import group_by_path
from edgetl.data.scan_notes import ScanNote, log_notes
from edgetl.data.table.rows import Row, Table, read_rows
from edgetl.errors import DataError

_log = logging.getLogger(__name__)

# Least images of a stratum: 15 % of fewer images round to none.
LEAST_STRATUM = 7
BINS = 10


def scan_table(
    root: str | os.PathLike[str], table: Table, *, known: bool = False, limits: bool = True, progress: Progress = silent
) -> ImageFolder:
    """Scan the images that a label table lists. Other images are ignored.

    Without ``table.task``, the task is derived from the values:

    - One column of words: classification.
    - Several columns of 0 and 1: classification if each row has exactly one 1, otherwise multi-label.
    - One column of 0 and 1: multi-label with one label.
    - One column of other numbers: an error, because they may be classes, ordinal levels or measurements.

    Args:
        root: folder with the images.
        table: label table.
        known: true for the evaluation of a trained model: labels may be absent.
        limits: false for a report on the folder: broken images and small classes are no errors.
        progress: called after each decoded file.

    Raises:
        ConfigError: a column does not exist, several columns are possible, or the task is ambiguous.
        DataError: the folder or the table cannot be read, a row is invalid, too many images cannot be decoded, or no image has a label.
    """
    folder = check_folder(Path(root), holds=f"the images of {table.path}")
    read = read_rows(folder, table)
    contents = check_images([row.path for row in read.rows], folder, progress=progress)
    broken = tuple(BrokenImage(row.path, contents[row.path].reason) for row in read.rows if contents[row.path].content is None)
    kept = sorted((row for row in read.rows if contents[row.path].content is not None), key=lambda row: row.path)
    samples = _samples(folder, read.task, kept, contents)
    texts = (*read.assumptions, *(_split_notes(folder, kept) if read.has_splits else ()))
    notes = tuple(ScanNote(reason="table", used=True, count=len(read.rows), text=f"{table.path}: {text}") for text in texts)
    grouping = f"column {read.group}" if read.group else ""
    found = ImageFolder(folder, read.labels, samples, broken, read.task, notes=(*notes, *read.left_out), grouping=grouping)
    log_notes(found.notes)
    if limits:
        check_broken(found)
        _check_targets(found, table, known=known)
    if table.group is not None and read.group != table.group:
        return group_by_path(found, table.group)
    return found


def _samples(root: Path, task: Task, rows: Sequence[Row], contents: Mapping[Path, Checked]) -> tuple[Sample, ...]:
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
            facts=item.facts,
        )
        for row, stratum, item in zip(rows, strata, found, strict=True)
    )


def _split_notes(root: Path, rows: Sequence[Row]) -> list[str]:
    """Describe the split column of the table, and the number of images that are in the folder of another split."""
    parts = Counter(row.part for row in rows)
    texts = [f"the split column is used: {parts['train']} train, {parts['val']} val, {parts['test']} test."]
    folders = split_folders(root)
    if folders and (other := sum(row.part != folders.get(row.path.relative_to(root).parts[0]) for row in rows)):
        texts.append(f"{other} images are in the folder of another split. The table takes precedence.")
    return texts


def _strata(task: Task, targets: Sequence[tuple[float, ...]], contents: Sequence[str]) -> list[int]:
    """Return the index of the stratum of each image. Splits keep the proportions of the strata.

    Multi-label: a stratum is a combination of labels that at least ``LEAST_STRATUM`` images have. Other images are in the stratum of their
    rarest label. Regression: ten value ranges with equal numbers of images. Ordinal: the levels. Copies of an image count once.
    """
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
    """Return the index of the rarest label of an image."""
    held = [(totals[index], index) for index, value in enumerate(targets) if value]
    return (float(min(held)[1]),) if held else ()


def _check_targets(folder: ImageFolder, table: Table, *, known: bool) -> None:
    if not folder.samples:
        raise DataError(f"none of the images of {table.path} can be decoded. Check the files, or convert them to JPEG or PNG.")
    if known:
        return
    if folder.task == "multi-label":
        if absent := [label for label, count in folder.counts().items() if not count]:
            raise DataError(
                f"{table.path}: no image has the label {', '.join(map(repr, absent[:5]))}. Remove it, or choose others with --columns."
            )
        return
    if folder.task == "classification":
        _check_classes(folder, table)
        return
    values = {sample.targets[0] for sample in folder.samples}
    if len(values) < 2:
        raise DataError(f"{table.path}: every image has the same number in {folder.labels[0]!r}. Choose another column with --columns.")
    if folder.task == "ordinal" and max(values) - min(values) >= MAX_LEVELS:
        raise DataError(
            f"{table.path}: levels from {min(values):g} to {max(values):g} in {folder.labels[0]!r}. At most {MAX_LEVELS} levels are "
            f"possible. Use --task regression for such numbers."
        )


def _check_classes(folder: ImageFolder, table: Table) -> None:
    counts = folder.counts()
    small = [f"{label} ({count})" for label, count in counts.items() if count < MIN_IMAGES_PER_CLASS]
    if len(counts) < 2 or small:
        problem = f"too few readable images of {', '.join(small[:5])}" if small else f"one class ({next(iter(counts))})"
        raise DataError(
            f"{table.path}: {problem}. Use at least 2 classes with {MIN_IMAGES_PER_CLASS} images each. Add images, remove the class, or "
            f"choose another column with --columns."
        )
    alike = Counter(" ".join(label.casefold().split()) for label in counts)
    if similar := [label for label in counts if alike[" ".join(label.casefold().split())] > 1]:
        _log.warning(
            "%s: the classes %s differ only in case or spaces. Rename them if they are the same class.",
            table.path,
            ", ".join(map(repr, similar[:6])),
        )
