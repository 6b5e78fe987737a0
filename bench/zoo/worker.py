"""Child process of the export sweep: read architectures from the standard input, one per line, and write rows as JSON lines.

The process imports torch once and checks many architectures. The kernel limits its memory, and its CPU time for each architecture. The
parent limits the wall time, and starts another child when this one dies.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import sys
import time
from typing import TextIO

from bench.zoo.table import Row


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.zoo.worker", description=__doc__)
    parser.add_argument("--memory-gb", type=float, required=True)
    parser.add_argument("--cpu-seconds", type=float, required=True)
    given = parser.parse_args()
    limit = int(given.memory_gb * 1e9)
    # Limit private writable memory. A limit of the address space would also count the mapped libraries of torch and OpenVINO.
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    messages = _open_messages()
    from bench.zoo.check import check

    # The exporter creates millions of short-lived objects. Garbage collection over torch's objects takes a fifth of an export.
    gc.freeze()
    gc.disable()
    print(json.dumps({"kind": "ready"}), file=messages, flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        _limit_cpu(given.cpu_seconds)

        def report(stage: str, row: Row) -> None:
            print(json.dumps({"kind": "stage", "stage": stage, "row": row.model_dump()}), file=messages, flush=True)

        row = check(job["name"], job["family"], job["parameters"], tuple(job["sides"]), report)
        print(json.dumps({"kind": "row", "row": row.model_dump()}), file=messages, flush=True)
        gc.collect()


def _limit_cpu(seconds: float) -> None:
    """Limit the CPU time from now on, rounded up to whole seconds. Beyond it, the kernel ends the process (SIGXCPU)."""
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time() + seconds) + 1, most))


def _open_messages() -> TextIO:
    """Return the pipe to the parent, and redirect the standard output of libraries to the error stream."""
    messages = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return messages


if __name__ == "__main__":
    main()
