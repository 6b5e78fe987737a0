"""Power loss in real processes: each operation on a store runs in a process that ends at its n-th change of the file system.

Another process then checks the store. Usage: ``python -m tests.device.stopped_process FOLDER STEP``. The folder was written by
``store_operations.prepare``. ``STEP`` is the distance of the tested changes. A line of JSON with the number of ended processes and the
longest time to load the store is printed for each operation.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import traceback
from collections.abc import Callable
from itertools import count
from pathlib import Path

import edgetl.runtime.ort  # noqa: F401  # processes are forked from this one, which loads no network itself
from tests.device.power_loss import Recorder, recording
from tests.device.store_operations import Operation, check, operations, without_self_test

_STOPPED, _FAILED = 70, 71


def main(root: Path, step: int) -> None:
    """Run all operations."""
    without_self_test()
    for name, operation in operations(root).items():
        times = _stop_everywhere(operation, root / "work", step)
        print(json.dumps({"operation": name, "points": len(times), "longest_s": max(times)}), flush=True)


def _stop_everywhere(operation: Operation, place: Path, step: int) -> list[float]:
    times: list[float] = []
    for point in count(0, step):
        shutil.copytree(operation.before, place)
        code = _run_child(lambda point=point: _run_until(operation, place, point))  # type: ignore[misc]
        if code == 0:  # it ended before this change
            shutil.rmtree(place)
            return times
        assert code == _STOPPED
        assert _run_child(lambda: place.with_name("seconds").write_text(str(check(operation, place)))) == 0
        times.append(float(place.with_name("seconds").read_text()))
        shutil.rmtree(place)
    raise AssertionError("the loop has no end")


def _run_until(operation: Operation, place: Path, point: int) -> None:
    with recording(Recorder(place, stop_at=point, stop=lambda: os._exit(_STOPPED))):
        operation.run(place)


def _run_child(function: Callable[[], object]) -> int:
    """Run a function in a child process, and return its exit code."""
    child = os.fork()
    if child == 0:
        code = _FAILED
        try:
            function()
            code = 0
        finally:
            if code:
                traceback.print_exc()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
