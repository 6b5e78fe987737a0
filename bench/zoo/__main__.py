"""Export sweep over the small architectures of timm, with a table in ``models/``.

``python -m bench.zoo`` builds every architecture of timm with at most 12 million parameters. Of names that differ only in size, it uses the
smallest. Weights and BatchNorm statistics are random. The functions of ``edgetl export`` convert each network. The device's engines run the
files at batch sizes 1, 2 and 5, and the outputs are compared with torch. Rows of the table are not measured again, so the same command
continues an interrupted sweep.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bench.zoo.nets import architectures, smallest_of_each_kind
from bench.zoo.pool import Bounds
from bench.zoo.sweep import Choice, log, run
from bench.zoo.table import Sweep
from edgetl.errors import EdgetlError

TABLE = Path(__file__).parents[2] / "models"


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
        found = architectures(progress=lambda done, total: log(f"listing {done} of {total}", done % 100 == 0))
        items = found if given.all else smallest_of_each_kind(found)
        rows = run(items, choice, given.out, workers=given.workers, bounds=Bounds(given.timeout, 10 * given.timeout, given.memory_gb))
    except EdgetlError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(f"interrupted. {given.out / 'export-sweep.csv'} has the finished rows, and the same command continues the sweep.")
    passed = sum(row.passed for row in rows)
    log(f"{passed} of {len(rows)} architectures export and agree. The table is {given.out / 'export-sweep.md'}.")
    if given.json:
        print(Sweep(passed=passed, rows=tuple(rows)).model_dump_json(indent=1))


if __name__ == "__main__":
    main()
