"""Memory of a process and its descendants."""

from __future__ import annotations

from pathlib import Path


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
