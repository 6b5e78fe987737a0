"""``python -m tests [options of pytest]``: all tests, in groups, each group in a process of its own and two processes at a time.

Processes are separate because torch's data loaders need the default signal handlers, which OpenVINO and gevent (Triton's client) change.
Each process computes with one thread. The output of a group appears when the group ends.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed

# Longest first, so that the two processes end at about the same time.
GROUPS = (
    ("tests/train",),
    ("tests/export",),
    ("tests/serve",),
    ("tests/cli", "tests/end_to_end"),
    ("tests/device", "tests/docs", "tests/measure", "tests/pretrain"),
    ("tests/core", "tests/data", "tests/executors", "tests/report", "tests/runtime", "tests/scoring", "tests/test_structure.py"),
)
PROCESSES = 2
NO_TESTS_COLLECTED = 5
_COUNT = re.compile(r"(\d+) (passed|failed|skipped|errors?)\b")


def main(options: list[str]) -> int:
    """Return 0 if every group passed, else 1."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    total: Counter[str] = Counter()
    codes = set()

    def run(group: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pytest", *options, *group]
        return subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)

    with ThreadPoolExecutor(PROCESSES) as pool:
        for done in as_completed([pool.submit(run, group) for group in GROUPS]):
            result = done.result()
            print(result.stdout, flush=True)
            codes.add(result.returncode)
            last_line = result.stdout.rstrip().rpartition("\n")[2]
            total.update({kind.removesuffix("s"): int(count) for count, kind in _COUNT.findall(last_line)})
    failed = total["failed"] + total["error"]
    print(f"{total['passed']} passed, {failed} failed, {total['skipped']} skipped")
    return 0 if total["passed"] and codes <= {0, NO_TESTS_COLLECTED} else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
