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

_Omitted: TypeAlias = Literal["hidden", "system", "edgetl", "excluded", "mask", "unsupported", "other", "unreadable", "loop", "sibling"]
_Unlabeled: TypeAlias = Literal["loose", "unlabeled", "no-images", "not-in-table", "copy"]
_Used: TypeAlias = Literal["linked", "content", "splits", "nested", "class-train", "no-val", "no-test", "table", "no-group", "not-utf8"]
Reason: TypeAlias = Literal[_Omitted, _Unlabeled, _Used]

_log = logging.getLogger(__name__)

EXAMPLES = 3
# Rows of ``ScanNote.by``.
MOST_ROWS = 20
_INCLUDE = "--include PATTERN uses them"
_EXCLUDE = "--exclude PATTERN leaves them out"
# Unit, event and remedy of each reason.
_TEXTS: dict[Reason, tuple[str, str, str]] = {
    "hidden": ("file", "left out: hidden, the name of the file or of its folder begins with a dot", _INCLUDE),
    "system": ("file", "left out: thumbnails and index files of storage systems", _INCLUDE),
    "edgetl": ("file", "left out: files of a run or bundle", _INCLUDE),
    "excluded": ("file", "left out by --exclude", ""),
    "mask": (
        "image",
        "left out: segmentation masks, with few gray levels and the name of a photo",
        "--include PATTERN uses them as photos",
    ),
    "unsupported": ("file", "left out: image formats that are not read", "Convert them to JPEG or PNG"),
    "other": ("file", "left out: no images", ""),
    "unreadable": ("file or folder", "left out: cannot be read", "Check the permissions"),
    "loop": ("linked folder", "left out: leads to a folder that is read already", ""),
    "sibling": ("image", "left out: in a folder beside the splits that is not a split", ""),
    "loose": ("image", "left out: beside the class folders, not in one", "Move them into a class folder to use them"),
    "unlabeled": ("image", "of the test split left out: in no class folder of the training split, thus without a label", ""),
    "no-images": ("folder", "left out: no images", ""),
    "not-in-table": ("image", "left out: not named in the table", ""),
    "copy": ("image", "left out: a copy of an image in another split", ""),
    "linked": ("linked folder", "read", _EXCLUDE),
    "content": ("image", "read by content: the suffix is missing or unusual", _EXCLUDE),
    "splits": ("folder", "read as splits", ""),
    "nested": ("split", "read one folder deeper, in a folder of the same name", ""),
    "class-train": ("folder", "read as a class, although the name is that of a split", ""),
    "no-val": ("validation split", "found: a share of the training images is used", ""),
    "no-test": ("test split", "found: no figures on test images", "Add a folder test/ to have them"),
    "table": ("row", "of the table", ""),
    "no-group": ("image", "without a group: the pattern of --group does not match; each is a group of its own", ""),
    "not-utf8": ("file name", "not in UTF-8: the files are used, and their names written with escapes such as \\xe9", ""),
}
_USED = frozenset(get_args(_Used))


class ScanNote(StrictModel):
    """Scan note: a reason, and the files or folders that it holds for.

    Attributes:
        reason: the kind; ``describe`` returns it as text.
        used: the files are read; false where they were left out.
        count: files, or folders where the words of ``describe`` name folders.
        examples: a few of them, relative to the data folder; characters that cannot be printed are escaped.
        by: counts for each suffix, format or folder, the largest first, at most ``MOST_ROWS``.
        text: the note as a sentence, where it is not made of the other fields.
    """

    reason: Reason
    used: bool
    count: int
    examples: tuple[str, ...] = ()
    by: dict[str, int] = Field(default={})
    text: str = ""

    def describe(self) -> str:
        """The note as one or two sentences."""
        if self.text:
            return self.text
        unit, what, remedy = _TEXTS[self.reason]
        rows = [f"{name} ({count:,})" for name, count in self.by.items()] or list(self.examples)
        complete = sum(self.by.values()) == self.count if self.by else len(rows) == self.count
        named = f": {', '.join(rows)}{'' if complete else ', …'}" if rows else ""
        plural = unit.replace(" or ", "s or ") + "s" if self.count > 1 else unit
        number = f"{self.count:,}" if self.count else "no"
        return f"{number} {plural} {what}{named}.{f' {remedy}.' if remedy else ''}"


class Notes:
    """Collects notes during a scan."""

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
        """All notes, those on files that were left out first."""
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
