"""Memory of a process and its descendants."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import NamedTuple


def family(pid: int) -> list[int]:
    """Return the ids of a process and its descendants."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            found += family(int(child))
    return found


def family_mb(pid: int) -> float:
    """Return the sum of the resident memory of a process and its descendants, MB (10^6 bytes). Shared memory counts in each process."""
    total = 0
    for member in family(pid):
        status = Path(f"/proc/{member}/status").read_text()
        line = next((line for line in status.splitlines() if line.startswith("VmRSS")), "VmRSS: 0 kB")
        total += int(line.split()[1])
    return total * 1024 / 1e6


class Peak(NamedTuple):
    """Largest memory of a process, MB (10^6 bytes).

    Attributes:
        anonymous: memory that no file has: the kernel cannot drop it.
        resident: all resident memory, also of libraries and mapped files, which the kernel drops if memory is short.
    """

    anonymous: float
    resident: float


def watch(process: subprocess.Popen[bytes], interval_s: float = 0.05) -> Peak:
    """Wait until ``process`` ends, and return its largest memory, without its descendants."""
    peak = Peak(0.0, 0.0)
    while process.poll() is None:
        try:
            lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()[1:]
        except OSError:  # it ended
            continue
        sizes = {name: 1024 * int(size) / 1e6 for name, size, *_ in map(str.split, lines)}
        peak = Peak(max(peak.anonymous, sizes.get("Anonymous:", 0.0)), max(peak.resident, sizes.get("Rss:", 0.0)))
        time.sleep(interval_s)
    return peak
