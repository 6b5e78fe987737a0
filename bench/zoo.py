"""Export sweep over the small architectures of timm, with a table in ``models/``.

``python -m bench.zoo`` builds every architecture of timm with at most 12 million parameters. Of names that differ only in size, it uses the
smallest. Weights and BatchNorm statistics are random. The functions of ``edgetl export`` convert each network. The device's engines run the
files at batch sizes 1, 2 and 5, and the outputs are compared with torch. Rows of the table are not measured again, so the same command
continues an interrupted sweep.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from bench.zoo_nets import Architecture, architectures, smallest_of_each_kind
from bench.zoo_pool import Bounds, sweep
from bench.zoo_table import Row, Sweep, libraries, read_rows, write_table
from edgetl.errors import EdgetlError
from edgetl.export.gate.agreement import MAX_FP32_DIFFERENCE, STRICT_BATCHES

TABLE = Path(__file__).parents[1] / "models"


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


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.zoo", description=__doc__)
    parser.add_argument("--out", type=Path, default=TABLE, help="folder of the table [default: models/]")
    parser.add_argument("--only", default="*", metavar="GLOB", help="pattern of names, such as 'mobilenet*'")
    parser.add_argument("--limit", type=int, help="largest number of architectures to measure")
    parser.add_argument("--all", action="store_true", help="measure every size, not only the smallest")
    parser.add_argument("--again", action="append", default=[], metavar="NAME", help="architecture to measure again; may be repeated")
    parser.add_argument("--failed", action="store_true", help="measure architectures again that did not pass")
    parser.add_argument("--workers", type=int, default=1, help="number of parallel processes; each needs about 1.5 GB")
    parser.add_argument("--timeout", type=float, default=Bounds.cpu_seconds, help="limit of CPU time for one architecture, seconds")
    parser.add_argument("--memory-gb", type=float, default=Bounds.memory_gb, help="limit of memory for one process, GB")
    parser.add_argument("--json", action="store_true", help="print all rows as JSON")
    given = parser.parse_args()
    choice = Choice(given.only, given.limit, tuple(given.again), given.failed)
    try:
        found = architectures(progress=lambda done, total: _log(f"listing {done} of {total}", done % 100 == 0))
        items = found if given.all else smallest_of_each_kind(found)
        rows = run(items, choice, given.out, workers=given.workers, bounds=Bounds(given.timeout, 10 * given.timeout, given.memory_gb))
    except EdgetlError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(f"interrupted. {given.out / 'export-sweep.csv'} has the finished rows, and the same command continues the sweep.")
    passed = sum(row.passed for row in rows)
    _log(f"{passed} of {len(rows)} architectures export and agree. The table is {given.out / 'export-sweep.md'}.")
    if given.json:
        print(Sweep(passed=passed, rows=tuple(rows)).model_dump_json(indent=1))


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
        _log(f"[{done}/{len(todo)}] {_short(row)}; {minutes:.0f} min left")
    return sorted(known.values(), key=lambda row: row.architecture)


def _short(row: Row) -> str:
    if row.passed:
        return f"{row.architecture}: agrees, {row.onnx_difference:.0e} and {row.openvino_difference:.0e}, {row.seconds:.0f} s"
    return f"{row.architecture}: ONNX {row.onnx}, OpenVINO {row.openvino}, {row.seconds:.0f} s. {row.cause}"


def _log(text: str, enabled: bool = True) -> None:
    if enabled:
        print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
