"""Results of the peer comparison: one JSON object per line, written when a measurement is complete. A later call continues."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

Row: TypeAlias = dict[str, Any]
FOLDER = Path(__file__).parent / "results"


class Results:
    """Rows of one host in a file. A row is identified by its ``kind`` and ``key``; the last row of a key counts.

    Args:
        path: file of JSON lines. It may be missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text("utf-8").splitlines() if path.is_file() else []
        self._rows: dict[tuple[str, str], Row] = {}
        for line in lines:
            row = json.loads(line)
            self._rows[row["kind"], row["key"]] = row

    def __contains__(self, identity: tuple[str, str]) -> bool:
        return identity in self._rows

    def get(self, kind: str, key: str) -> Row | None:
        """Return the row of a key, or None."""
        return self._rows.get((kind, key))

    def of_kind(self, kind: str) -> Iterator[Row]:
        """Iterate over the rows of a kind, in the order of their keys' first row."""
        return (row for (found, _), row in self._rows.items() if found == kind)

    def add(self, kind: str, key: str, **values: object) -> None:
        """Append a row to the file. Another process may append to it at the same time."""
        self._rows[kind, key] = {"kind": kind, "key": key, **values}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps(self._rows[kind, key], ensure_ascii=False) + "\n")
