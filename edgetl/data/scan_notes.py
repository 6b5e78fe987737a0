"""Scan notes: files and folders that were left out or read in an unusual way, by reason, with counts and examples."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

from pydantic import Field

from edgetl.core.config import StrictModel
from edgetl.core.files.names import printable

_Omitted: TypeAlias = Literal[
    "hidden", "system", "edgetl", "excluded", "mask", "ground-truth", "unsupported", "other", "unreadable", "loop", "sibling", "member"
]
_Unlabeled: TypeAlias = Literal["loose", "unlabeled", "no-images", "no-label", "not-in-table", "copy"]
_Used: TypeAlias = Literal[
    "linked",
    "content",
    "splits",
    "nested",
    "class-train",
    "normal",
    "anomaly",
    "no-val",
    "no-test",
    "table",
    "no-group",
    "not-utf8",
    "shards",
]
Reason: TypeAlias = Literal[_Omitted, _Unlabeled, _Used]

_log = logging.getLogger(__name__)

EXAMPLES = 3
# Rows of ``ScanNote.by``.
MOST_ROWS = 20
_INCLUDE = "--include PATTERN uses them"
_EXCLUDE = "--exclude PATTERN leaves them out"
# Reasons whose counts are per file suffix. The suffixes alone do not lead to the files.
_BY_SUFFIX: frozenset[Reason] = frozenset({"unsupported", "other", "content", "member"})
# Unit, event and remedy of each reason.
_TEXTS: dict[Reason, tuple[str, str, str]] = {
    "hidden": ("file", "left out: hidden (the name of the file or its folder starts with a dot)", _INCLUDE),
    "system": ("file", "left out: thumbnails and index files of storage systems", _INCLUDE),
    "edgetl": ("file", "left out: files of a run or bundle", _INCLUDE),
    "excluded": ("file", "left out by --exclude", ""),
    "mask": (
        "image",
        "left out: segmentation masks (few colors, and the name of another image)",
        "--include PATTERN uses them as images",
    ),
    "ground-truth": ("image", "left out: in a folder of segmentation masks", "Rename the folder to use them as images"),
    "unsupported": ("file", "left out: unsupported image format", "Convert them to JPEG or PNG"),
    "other": ("file", "left out: not an image", ""),
    "unreadable": ("file or folder", "left out: cannot be read", "Check the permissions"),
    "loop": ("linked folder", "left out: the target is already read", ""),
    "sibling": ("image", "left out: in a folder next to the splits that is not a split", ""),
    "member": ("file", "of the shards left out: not KEY.SUFFIX of an image, .cls or .json. A key ends at the first dot of a file name", ""),
    "loose": ("image", "left out: not in a class folder", "Move them into a class folder to use them"),
    "unlabeled": ("image", "of the test split left out: no label, because the training split has no class folder of this name", ""),
    "no-images": ("folder", "left out: no images", ""),
    "no-label": ("row", "of the table left out: no label", "Fill in their labels to use them"),
    "not-in-table": ("image", "left out: not named in the table", ""),
    "copy": ("image", "left out: copy of an image in another split", ""),
    "linked": ("linked folder", "read", _EXCLUDE),
    "content": ("image", "read by content: the file suffix is missing or unusual", _EXCLUDE),
    "splits": ("folder", "read as splits", ""),
    "nested": ("split", "read one level deeper, in a folder of the same name", ""),
    "class-train": ("folder", "read as a class, although its name is that of a split", ""),
    "normal": ("folder", "read as normal images, because it is the only one", ""),
    "anomaly": ("image", "of the training or validation split used for the test: anomalies are never trained on", ""),
    "no-val": ("validation split", "found: a part of the training images is used", ""),
    "no-test": ("test split", "found: accuracy on test images is not measured", "Add a folder test/ to measure it"),
    "table": ("row", "of the table", ""),
    "no-group": ("image", "without a group: the pattern of --group does not match. Each of them is its own group", ""),
    "not-utf8": ("file name", "not in UTF-8: the files are used, and their names are written with escapes such as \\xe9", ""),
    "shards": ("shard", "read", ""),
}
_USED = frozenset(get_args(_Used))


class ScanNote(StrictModel):
    """Scan note: files or folders that were left out or read in an unusual way, with the reason.

    Attributes:
        reason: reason. ``describe`` returns it as text.
        used: true if the files are read, false if they were left out.
        count: number of files or folders.
        examples: up to ``EXAMPLES`` of their paths, relative to the data folder. Characters that cannot be printed are escaped.
        by: counts per suffix, format or folder, in descending order, at most ``MOST_ROWS``.
        text: complete text of the note, if ``describe`` does not build it from the other fields.
    """

    reason: Reason
    used: bool
    count: int
    examples: tuple[str, ...] = ()
    by: dict[str, int] = Field(default={})
    text: str = ""

    def describe(self) -> str:
        """Return the note as one or two sentences."""
        if self.text:
            return self.text
        unit, event, remedy = _TEXTS[self.reason]
        by_name = not self.by or (self.reason in _BY_SUFFIX and len(self.examples) == self.count)
        rows = list(self.examples) if by_name else [f"{name} ({count:,})" for name, count in self.by.items()]
        complete = (len(rows) if by_name else sum(self.by.values())) == self.count
        such_as = f", such as {self.examples[0]}" if self.reason in _BY_SUFFIX and self.examples and not by_name else ""
        named = f": {', '.join(rows)}{'' if complete else ', …'}{such_as}" if rows else ""
        plural = unit.replace(" or ", "s or ") + "s" if self.count > 1 else unit
        number = f"{self.count:,}" if self.count else "no"
        return f"{number} {plural} {event}{named}.{f' {remedy}.' if remedy else ''}"


class Notes:
    """Collector of scan notes."""

    def __init__(self) -> None:
        self._counts: Counter[Reason] = Counter()
        self._examples: dict[Reason, list[str]] = {}
        self._by: dict[Reason, Counter[str]] = {}

    def add(self, reason: Reason, path: str | os.PathLike[str] = "", *, count: int = 1, by: str | None = None) -> None:
        """Count ``count`` files under ``reason``; ``path``, relative to the data folder, may become an example."""
        self._counts[reason] += count
        examples = self._examples.setdefault(reason, [])
        if path and len(examples) < EXAMPLES:
            examples.append(printable(path))
        if by is not None:
            self._by.setdefault(reason, Counter())[printable(by)] += count

    def result(self) -> tuple[ScanNote, ...]:
        """Return all notes. Notes on files that were left out come first."""
        order = list(_TEXTS)
        return tuple(
            ScanNote(
                reason=reason,
                used=reason in _USED,
                count=self._counts[reason],
                examples=tuple(self._examples[reason]),
                by=dict(self._by.get(reason, Counter()).most_common(MOST_ROWS)),
            )
            for reason in sorted(self._counts, key=lambda reason: (reason in _USED, order.index(reason)))
        )


def log_notes(notes: Sequence[ScanNote]) -> None:
    """Log each note on a line of its own."""
    for note in notes:
        _log.info("%s", note.describe())
