"""``python -m tests [options of pytest]``: all tests, in groups, each group in a process of its own and two processes at a time.

The tests of the server mostly wait, for time limits and for worker processes, so their group runs beside the two.

Processes are separate because torch's data loaders need the default signal handlers, which OpenVINO and gevent (Triton's client) change.
Each process computes with one thread. The output of a group appears when the group ends.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed

# Longest first, so that the two processes end at about the same time.
GROUPS = (
    ("tests/train",),
    ("tests/device", "tests/docs", "tests/measure", "tests/pretrain"),
    ("tests/export",),
    ("tests/cli", "tests/end_to_end"),
    ("tests/executors", "tests/report", "tests/runtime", "tests/scoring"),
    ("tests/core", "tests/data", "tests/test_structure.py"),
)
WAITING = ("tests/serve",)
PROCESSES = 2
NO_TESTS_COLLECTED = 5
_COUNT = re.compile(r"(\d+) (passed|failed|skipped|errors?)\b")


def main(options: list[str]) -> int:
    """Return 0 if every group passed, else 1."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    total: Counter[str] = Counter()
    codes = set()

    def run(group: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
        begin = time.monotonic()
        command = [sys.executable, "-m", "pytest", *options, *group]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        print(f"{done.stdout}\n{' '.join(group)}: {time.monotonic() - begin:.0f} s\n", flush=True)
        return done

    with ThreadPoolExecutor(PROCESSES) as pool, ThreadPoolExecutor(1) as beside:
        tests = [*(pool.submit(run, group) for group in GROUPS), beside.submit(run, WAITING)]
        for done in as_completed(tests):
            result = done.result()
            codes.add(result.returncode)
            last_line = result.stdout.rstrip().rpartition("\n")[2]
            total.update({kind.removesuffix("s"): int(count) for count, kind in _COUNT.findall(last_line)})
    failed = total["failed"] + total["error"]
    print(f"{total['passed']} passed, {failed} failed, {total['skipped']} skipped")
    return 0 if total["passed"] and codes <= {0, NO_TESTS_COLLECTED} else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
