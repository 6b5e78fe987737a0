"""Host load during a measurement: CPU time of other programs, time stolen by the hypervisor, and time without a core."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from edgetl.core.config import StrictModel

# MLPerf and SPEC require an idle host. `edgetl bench` has the same limit for the load average: a quarter of the cores.
MAX_OTHERS = 0.25
# Two runs of one file on an idle host differ by less than this.
MAX_LOST = 0.05


class HostLoad(StrictModel):
    """Load of the host during a measurement. All values are 0 on an idle host.

    Attributes:
        others: CPU time of other programs, as a ratio of the cores that this process may use, 0..1.
        stolen: time that the hypervisor gave to other machines, as a ratio of these cores, 0..1.
        waiting: seconds per second that threads of this process were ready but had no core, because of other programs or a container's
            CPU quota.
    """

    others: float
    stolen: float
    waiting: float

    @property
    def busy(self) -> bool:
        """True if the host was too busy to compare latencies."""
        return self.others > MAX_OTHERS or self.stolen > MAX_LOST or self.waiting > MAX_LOST

    @property
    def total(self) -> float:
        """Sum of the values, to sort measurements by load."""
        return self.others + self.stolen + self.waiting

    def describe(self) -> str:
        """Format the cause of the load, such as ``other programs used 40 % of the CPU``."""
        if self.others > MAX_OTHERS:
            return f"other programs used {100 * self.others:.0f} % of the CPU"
        if self.stolen > MAX_LOST:
            return f"the hypervisor gave {100 * self.stolen:.0f} % of the CPU to other virtual machines"
        return "the CPU was not always available to this program, because of other programs or a CPU limit"

    def details(self) -> str:
        """Format all values."""
        return (
            f"CPU time of other programs: {100 * self.others:.0f} %; CPU time of other virtual machines: {100 * self.stolen:.0f} %; "
            f"time in which threads of this program waited for a core: {self.waiting:.2f} s per second"
        )


@dataclass(frozen=True)
class Counters:
    """Counters of the system, seconds: wall time, CPU time and stolen time of the cores, CPU time and waiting time of this process."""

    wall: float
    used: float
    stolen: float
    own: float
    waiting: float
    cores: int


def read_counters() -> Counters | None:
    """Read the counters; None if the system does not provide them (no ``/proc/stat``)."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    try:
        rows = [line.split() for line in Path("/proc/stat").read_text("ascii").splitlines()]
        hertz = os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, AttributeError):
        return None
    used = stolen = 0.0
    for name, *values in rows:
        if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in allowed and len(values) >= 8:
            # proc(5): user, nice, system, idle, iowait, irq, softirq, steal. User includes guests.
            user, nice, system, _, _, irq, softirq, steal = (int(value) for value in values[:8])
            used += (user + nice + system + irq + softirq) / hertz
            stolen += steal / hertz
    spent = os.times()
    return Counters(time.perf_counter(), used, stolen, spent.user + spent.system, _waited(), len(allowed))


def _waited() -> float:
    """Return the seconds that threads of this process were runnable but did not run (``schedstat``, nanoseconds)."""
    total = 0
    for path in Path("/proc/self/task").glob("*/schedstat"):
        try:
            total += int(path.read_text("ascii").split()[1])
        except (OSError, ValueError, IndexError):
            continue  # the thread ended, or the kernel has no such counter
    return total / 1e9


def load_between(before: Counters | None, after: Counters | None) -> HostLoad | None:
    """Compute the load between two readings of the counters; None if the system does not provide them."""
    if before is None or after is None:
        return None
    wall = max(after.wall - before.wall, 1e-9)
    cores = wall * after.cores

    def ratio(value: float) -> float:
        return round(min(1.0, max(0.0, value / cores)), 4)

    return HostLoad(
        others=ratio((after.used - before.used) - (after.own - before.own)),
        stolen=ratio(after.stolen - before.stolen),
        waiting=round(max(0.0, (after.waiting - before.waiting) / wall), 4),
    )
