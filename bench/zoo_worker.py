"""A child of ``bench.zoo``: takes names from its input, one a line, and answers with rows of the table, as JSON lines.

It imports torch once and checks many architectures. The kernel bounds its memory and the processor's time for each architecture; its
parent bounds the time on the clock, and starts another when this one dies.
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

from bench.zoo_table import Row


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.zoo_worker", description=__doc__)
    parser.add_argument("--memory-gb", type=float, required=True)
    parser.add_argument("--cpu-seconds", type=float, required=True)
    given = parser.parse_args()
    limit = int(given.memory_gb * 1e9)
    # Private writable memory: the address space would count torch's and OpenVINO's mapped libraries too.
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    answers = _own_output()
    from bench.zoo_check import check

    # The exporter makes millions of short-lived objects; looking through torch's own for garbage each time takes a fifth of an export.
    gc.freeze()
    gc.disable()
    print(json.dumps({"kind": "ready"}), file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        _allow(given.cpu_seconds)

        def tell(stage: str, row: Row) -> None:
            print(json.dumps({"kind": "stage", "stage": stage, "row": row.model_dump()}), file=answers, flush=True)

        row = check(asked["name"], asked["family"], asked["parameters"], tuple(asked["sides"]), tell)
        print(json.dumps({"kind": "row", "row": row.model_dump()}), file=answers, flush=True)
        gc.collect()


def _allow(seconds: float) -> None:
    """From now on so much of the processor's time; then the kernel ends the process (SIGXCPU). It counts whole seconds."""
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time() + seconds) + 1, most))


def _own_output() -> TextIO:
    """The parent's pipe; what libraries print goes to the error stream instead."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


if __name__ == "__main__":
    main()
