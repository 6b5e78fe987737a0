"""Tasks of the tests of executors, at the top level of a module."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from edgetl.errors import DataError


def square(number: int) -> int:
    """Return the square; print, as libraries do."""
    print("noise on the standard output")
    time.sleep(0.05 * (number == 0))
    return number * number


def crash_once(place: Path) -> str:
    """Kill the own process at the first call."""
    if not place.exists():
        place.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "done"


def fail_once(place: Path) -> str:
    """Raise an unexpected error at the first call."""
    if not place.exists():
        place.touch()
        raise RuntimeError("out of luck")
    return "done"


def crash(_: int) -> None:
    """Kill the own process."""
    os.kill(os.getpid(), signal.SIGKILL)


def refuse(place: Path) -> None:
    """Raise an error of the user, and count the calls."""
    with place.open("a") as file:
        file.write("call\n")
    raise DataError("there is no such folder.")


def write_later(place: Path) -> None:
    """Write the process id, wait, and write a file."""
    place.with_suffix(".pid").write_text(str(os.getpid()))
    time.sleep(60)
    place.touch()


def fill_memory(size: int) -> None:
    """Use ``size`` bytes of memory until the process is killed."""
    kept = bytearray(size)
    for index in range(0, size, 4096):
        kept[index] = 1
    time.sleep(60)
