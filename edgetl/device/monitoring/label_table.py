"""Label table of captured images: a CSV file with empty label columns, to which rows are appended."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from edgetl.core.files.atomic import storage_error, write_text
from edgetl.errors import StorageError

MAX_BYTES = 64_000_000


class LabelTable:
    """CSV file with the columns ``file``, labels and facts. A crash can only tear its last line.

    Args:
        path: CSV file.
        labels: names of the label columns, which a person fills in.
        facts: names of the other columns.
    """

    def __init__(self, path: Path, labels: Sequence[str], facts: Sequence[str]) -> None:
        self.path, self._labels = path, tuple(labels)
        self.header = ("file", *self._labels, *(fact for fact in facts if fact not in self._labels))

    @property
    def size_bytes(self) -> int:
        """Size of the file, bytes; 0 if it does not exist."""
        return self.path.stat().st_size if self.path.exists() else 0

    def fits(self) -> bool:
        """Return true if the file does not exist, or has these columns."""
        return not self.path.exists() or self._read()[:1] == [list(self.header)]

    def rows(self) -> list[dict[str, str]]:
        """Return the complete rows."""
        return [dict(zip(self.header, cells, strict=False)) for cells in self._read()[1:] if len(cells) == len(self.header)]

    def remove_torn_line(self) -> None:
        """Remove an incomplete last line, which a crash has left. This needs no disk space."""
        if self.path.exists():
            data = self.path.read_bytes()
            if not data.endswith(b"\n"):
                os.truncate(self.path, data.rfind(b"\n") + 1)

    def is_labeled(self, row: Mapping[str, str]) -> bool:
        """Return true if a person has filled in a label column of the row."""
        return any(row[name].strip() for name in self._labels)

    def append(self, row: Mapping[str, str]) -> None:
        """Append a row with empty label columns.

        Raises:
            StorageError: the disk is full.
        """
        size = self.size_bytes
        # A label may have the name of a fact. Its column is for the label.
        unlabeled = {**row, **dict.fromkeys(self._labels, "")}
        try:
            with open(self.path, "ab") as file:
                file.write(self._text([unlabeled] if size else [dict(zip(self.header, self.header, strict=True)), unlabeled]))
        except OSError as error:
            if self.size_bytes > size:
                os.truncate(self.path, size)
            raise storage_error(self.path, error) from error

    def rewrite(self, rows: Iterable[Mapping[str, str]]) -> None:
        """Replace the file atomically.

        Raises:
            StorageError: the disk is full.
        """
        write_text(self.path, self._text([dict(zip(self.header, self.header, strict=True)), *rows]).decode())

    def _text(self, rows: Iterable[Mapping[str, str]]) -> bytes:
        text = io.StringIO()
        csv.DictWriter(text, self.header, restval="", lineterminator="\n").writerows(rows)
        return text.getvalue().encode()

    def _read(self) -> list[list[str]]:
        """Return the cells of all complete lines.

        Raises:
            StorageError: the file cannot be read.
        """
        if not self.path.exists():
            return []
        try:
            text = self.path.read_bytes()[:MAX_BYTES].decode("utf-8-sig", errors="replace")
        except OSError as error:
            raise StorageError(f"cannot read {self.path}: {error.strerror}. Check the file, or choose another --capture.") from error
        # A loop in Python, unlike list(), lets other threads run.
        return [cells for cells in csv.reader(io.StringIO(text[: text.rfind("\n") + 1]))]  # noqa: C416
