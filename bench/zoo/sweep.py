"""Selection of architectures, and the sweep that writes the table after every row."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from bench.zoo.nets import Architecture
from bench.zoo.pool import Bounds, sweep
from bench.zoo.table import Row, libraries, read_rows, write_table
from edgetl.export.gate.agreement import MAX_FP32_DIFFERENCE, STRICT_BATCHES


@dataclass(frozen=True)
class Choice:
    """Selection of architectures to measure.

    Attributes:
        only: glob pattern of names.
        limit: largest number of architectures.
        again: names to measure again although the table has their rows.
        failed: measure architectures again that did not pass.
    """

    only: str = "*"
    limit: int | None = None
    again: tuple[str, ...] = ()
    failed: bool = False

    def todo(self, items: Sequence[Architecture], known: dict[str, Row]) -> list[Architecture]:
        """Return the architectures to measure. Rows of other library versions are measured again."""
        now = libraries()
        selected = [item for item in items if fnmatchcase(item.name, self.only) and self._is_open(known.get(item.name), now)]
        return _one_of_each_family_first(selected)[: self.limit]

    def _is_open(self, row: Row | None, now: str) -> bool:
        if row is None or row.made_with != now or row.architecture in self.again:
            return True
        return self.failed and not row.passed


def _one_of_each_family_first(items: Sequence[Architecture]) -> list[Architecture]:
    """Sort the architectures by their number within the family. An interrupted sweep then covers most families."""
    seen: Counter[str] = Counter()
    turns = []
    for item in items:
        turns.append((seen[item.family], item))
        seen[item.family] += 1
    return [item for _, item in sorted(turns, key=lambda turn: turn[0])]


def run(items: Sequence[Architecture], choice: Choice, out: Path, *, workers: int, bounds: Bounds) -> list[Row]:
    """Measure the architectures that ``choice`` selects, and write the table after every row. Return all rows of the table, by name.

    Raises:
        ConfigError: the folder contains a table that this version cannot read.
        StorageError: the table cannot be written.
    """
    known = read_rows(out / "export-sweep.csv")
    todo = choice.todo(items, known)
    begin = time.monotonic()
    for done, row in enumerate(sweep(todo, workers=workers, bounds=bounds), start=1):
        known[row.architecture] = row
        left = sum(item.name not in known for item in items)
        write_table(out, known.values(), limit=MAX_FP32_DIFFERENCE, batches=STRICT_BATCHES, left=left)
        minutes = (time.monotonic() - begin) / done * (len(todo) - done) / 60
        log(f"[{done}/{len(todo)}] {_short(row)}; {minutes:.0f} min left")
    return sorted(known.values(), key=lambda row: row.architecture)


def _short(row: Row) -> str:
    if row.passed:
        return f"{row.architecture}: agrees, {row.onnx_difference:.0e} and {row.openvino_difference:.0e}, {row.seconds:.0f} s"
    return f"{row.architecture}: ONNX {row.onnx}, OpenVINO {row.openvino}, {row.seconds:.0f} s. {row.cause}"


def log(text: str, enabled: bool = True) -> None:
    """Print a line on the standard error."""
    if enabled:
        print(text, file=sys.stderr, flush=True)
