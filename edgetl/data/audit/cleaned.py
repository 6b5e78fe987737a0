"""Cleaned list: a label table of a data set without copies and conflicts. ``edgetl train --labels`` reads it."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from edgetl.core.files.regular import open_plain
from edgetl.data.folder import ImageFolder, Sample

# Columns that the reader of label tables knows (``edgetl.data.table.columns``).
_START, _SPLIT = "file,group,", "split"
# Of several copies, one in this split is kept, so that the test stays complete.
_PRIORITY = {"test": 0, "val": 1, "train": 2, None: 2}


def find_removed(folder: ImageFolder, sets: Sequence[tuple[Sequence[int], bool]]) -> dict[int, str]:
    """Return the images that the cleaned list leaves out, with the reason of each.

    Of the copies of an image one stays: that of the test, otherwise the largest. If copies have different labels, none stays.

    Args:
        folder: scanned images.
        sets: indices of the images that show one photo, and true for exact copies. Of near-duplicates, only images that reveal an
            evaluation image are left out.
    """
    removed: dict[int, str] = {}
    for members, exact in sets:
        samples = [folder.samples[index] for index in members]
        if exact and len({folder.truth(sample) for sample in samples}) > 1:
            removed |= dict.fromkeys(members, "copies of this image have different labels")
            continue
        order = sorted(members, key=lambda index: _preference(folder.samples[index]))
        kept = folder.samples[order[0]]
        for index in order[1:]:
            across = folder.samples[index].part != kept.part
            if exact or across:
                name = kept.path.relative_to(folder.root).as_posix()
                removed[index] = f"{'copy' if exact else 'near-duplicate'} of {name}"
    return removed


def _preference(sample: Sample) -> tuple[int, int, str]:
    area = sample.facts.width * sample.facts.height if sample.facts else 0
    return _PRIORITY[sample.part], -area, sample.path.as_posix()


def cleaned_csv(folder: ImageFolder, removed: Collection[int], groups: Mapping[int, str]) -> str:
    """Return the cleaned list as CSV text: file, group, split (of ready-made splits), and the labels.

    Args:
        folder: scanned images.
        removed: indices of images to leave out.
        groups: group of an image by its index, for images without a given group.
    """
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    has_splits = any(sample.part for sample in folder.samples)
    labels = ["label"] if folder.task == "classification" else list(folder.labels)
    table.writerow([*_START.strip(",").split(","), *([_SPLIT] if has_splits else []), *labels])
    for index, sample in enumerate(folder.samples):
        if index not in removed:
            values = [folder.truth(sample)] if folder.task == "classification" else [f"{value:g}" for value in sample.targets]
            split = [sample.part or "train"] if has_splits else []
            table.writerow([sample.path.relative_to(folder.root).as_posix(), sample.group or groups.get(index, ""), *split, *values])
    return text.getvalue()


def is_cleaned_list(path: Path) -> bool:
    """Return true if a file starts with the header of a cleaned list."""
    try:
        with open_plain(path, follow_links=False) as file:
            return file.read(len(_START)) == _START.encode()
    except OSError:
        return False
