"""``python -m bench.zoo``: which of timm's small architectures survive the export, as a table in ``models/``.

Every architecture of timm with at most 12 million parameters, of names that differ only in size the smallest, is built with random
weights and drawn BatchNorm statistics, exported by the functions that ``edgetl export`` calls, and compared with torch in the device's
engines at batch 1, 2 and 5. Rows that the table holds already are not repeated, so that a sweep which was stopped goes on.
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
    """What of the list is measured now.

    Attributes:
        only: a pattern of names, as a shell reads it.
        limit: at most so many.
        again: names that are repeated though the table holds them.
        failed: repeat what did not pass.
    """

    only: str = "*"
    limit: int | None = None
    again: tuple[str, ...] = ()
    failed: bool = False

    def todo(self, items: Sequence[Architecture], known: dict[str, Row]) -> list[Architecture]:
        """The items to measure; a row that other versions of the libraries made does not count as known."""
        now = libraries()
        wanted = [item for item in items if fnmatchcase(item.name, self.only) and self._open(known.get(item.name), now)]
        return _one_of_each_family_first(wanted)[: self.limit]

    def _open(self, row: Row | None, now: str) -> bool:
        if row is None or row.made_with != now or row.architecture in self.again:
            return True
        return self.failed and not row.passed


def _one_of_each_family_first(items: Sequence[Architecture]) -> list[Architecture]:
    """A sweep that is stopped early has then seen the most."""
    seen: Counter[str] = Counter()
    turns = []
    for item in items:
        turns.append((seen[item.family], item))
        seen[item.family] += 1
    return [item for _, item in sorted(turns, key=lambda turn: turn[0])]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.zoo", description=__doc__)
    parser.add_argument("--out", type=Path, default=TABLE, help="the folder of the table [default: models/]")
    parser.add_argument("--only", default="*", metavar="GLOB", help="names like this, such as 'mobilenet*'")
    parser.add_argument("--limit", type=int, help="at most so many of those that are not done")
    parser.add_argument("--all", action="store_true", help="every size, not only the smallest")
    parser.add_argument("--again", action="append", default=[], metavar="NAME", help="repeat this row (may be given several times)")
    parser.add_argument("--failed", action="store_true", help="repeat the rows that did not pass")
    parser.add_argument("--workers", type=int, default=1, help="processes at once; about 1.5 GB each")
    parser.add_argument("--timeout", type=float, default=Bounds.cpu_seconds, help="processor seconds for one architecture")
    parser.add_argument("--memory-gb", type=float, default=Bounds.memory_gb, help="for one process")
    parser.add_argument("--json", action="store_true", help="print all rows as JSON at the end")
    given = parser.parse_args()
    choice = Choice(given.only, given.limit, tuple(given.again), given.failed)
    try:
        found = architectures(progress=lambda done, total: _say(f"listing {done} of {total}", done % 100 == 0))
        items = found if given.all else smallest_of_each_kind(found)
        rows = run(items, choice, given.out, workers=given.workers, bounds=Bounds(given.timeout, 10 * given.timeout, given.memory_gb))
    except EdgetlError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(f"stopped; {given.out / 'export-sweep.csv'} holds what was done, and the same command goes on")
    passed = sum(row.passed for row in rows)
    _say(f"{passed} of {len(rows)} export and agree; see {given.out / 'export-sweep.md'}")
    if given.json:
        print(Sweep(passed=passed, rows=tuple(rows)).model_dump_json(indent=1))


def run(items: Sequence[Architecture], choice: Choice, out: Path, *, workers: int, bounds: Bounds) -> list[Row]:
    """Measure what ``choice`` asks for and write the table after every row; the rows of ``items`` that are known by then, by name.

    Raises:
        ConfigError: the folder holds a table that this version cannot read.
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
        _say(f"[{done}/{len(todo)}] {_short(row)}; {minutes:.0f} min left")
    return sorted(known.values(), key=lambda row: row.architecture)


def _short(row: Row) -> str:
    if row.passed:
        return f"{row.architecture}: agrees, {row.onnx_difference:.0e} and {row.openvino_difference:.0e}, {row.seconds:.0f} s"
    return f"{row.architecture}: ONNX {row.onnx}, OpenVINO {row.openvino}, {row.seconds:.0f} s. {row.cause}"


def _say(text: str, wanted: bool = True) -> None:
    if wanted:
        print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
