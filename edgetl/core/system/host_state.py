"""State of the host before and after a measurement: CPU frequency, throttling, temperature, CPU quota and energy.

Formats: ``cpufreq``, ``thermal`` and ``powercap`` of the Linux kernel's sysfs (Documentation/admin-guide/pm/cpufreq.rst,
Documentation/driver-api/thermal/sysfs-api.rst, Documentation/power/powercap/powercap.rst), and ``cpu.stat`` of control groups.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from edgetl.core.config import StrictModel
from edgetl.core.system.cgroup import cpu_quota, throttled_seconds
from edgetl.core.system.host import fingerprint, load_average
from edgetl.core.system.host_load import MAX_LOST, Counters, HostLoad, load_between, read_counters

# Largest relative decrease of the CPU frequency during a measurement.
MAX_FREQUENCY_DROP = 0.05
_ROOT = Path("/")


class HostState(StrictModel):
    """State of the host at one moment. A value is None if the system does not report it.

    Attributes:
        frequency_mhz: highest frequency of the cores that this process may use, MHz.
        temperature_c: highest temperature of the thermal zones, degrees Celsius.
        throttle_events: number of times that the CPU was throttled because of its temperature, since the start of the host.
        load_average: load average of the last minute.
    """

    frequency_mhz: float | None = None
    temperature_c: float | None = None
    throttle_events: int | None = None
    load_average: float = 0.0


class HostRecord(StrictModel):
    """Host during a measurement.

    Attributes:
        before: state before the measurement, after the warm-up.
        after: state after the measurement.
        load: load during the measurement. None if the system does not count it.
        quota_wait: ratio of the time in which the CPU quota of the control group stopped the process, 0..1. None without a quota.
        energy_j: energy of all processor packages during the measurement, joules, from RAPL. It includes other programs and idle power.
            None if it cannot be read; since Linux 5.10 only root can read it.
    """

    before: HostState
    after: HostState
    load: HostLoad | None = None
    quota_wait: float | None = None
    energy_j: float | None = None

    def problems(self) -> tuple[str, ...]:
        """Return the reasons why the latencies of the measurement are not valid; empty if they are."""
        found = []
        if self.load is not None and self.load.busy:
            found.append(self.load.describe())
        if self.quota_wait is not None and self.quota_wait > MAX_LOST:
            found.append(f"the CPU quota stopped this program for {100 * self.quota_wait:.0f} % of the time")
        before, after = self.before.frequency_mhz, self.after.frequency_mhz
        if before is not None and after is not None and after < before * (1 - MAX_FREQUENCY_DROP):
            found.append(f"the CPU frequency fell from {before:.0f} to {after:.0f} MHz")
        events = (self.after.throttle_events or 0) - (self.before.throttle_events or 0)
        if events > 0:
            found.append(f"the CPU was throttled {events} time(s), because of its temperature")
        return tuple(found)


@dataclass(frozen=True)
class Reading:
    """Reading of the host's state and counters, for ``record_between``."""

    state: HostState
    counters: Counters | None
    quota_seconds: float | None
    energy_uj: dict[str, tuple[int, int]]
    seconds: float


def read_host(root: Path = _ROOT) -> Reading:
    """Read the state and the counters of this host.

    Args:
        root: root folder of ``/proc`` and ``/sys``. Tests use another folder.
    """
    state = HostState(
        frequency_mhz=_frequency_mhz(root),
        temperature_c=_temperature_c(root),
        throttle_events=_throttle_events(root),
        load_average=round(load_average(), 2),
    )
    return Reading(state, read_counters(), throttled_seconds(root), _energy_uj(root), time.perf_counter())


def record_between(before: Reading, after: Reading) -> HostRecord:
    """Return the record of a measurement between two readings."""
    quota_wait = None
    if before.quota_seconds is not None and after.quota_seconds is not None:
        quota_wait = round((after.quota_seconds - before.quota_seconds) / max(after.seconds - before.seconds, 1e-9), 4)
    return HostRecord(
        before=before.state,
        after=after.state,
        load=load_between(before.counters, after.counters),
        quota_wait=quota_wait,
        energy_j=_energy_between(before.energy_uj, after.energy_uj),
    )


def describe_cpu(root: Path = _ROOT) -> dict[str, str]:
    """Return the fingerprint of the host with turbo and CPU quota.

    Args:
        root: root folder of ``/proc`` and ``/sys``. Tests use another folder.
    """
    quota = cpu_quota(root)
    return fingerprint() | {"turbo": _turbo(root), "cpu_quota": "none" if quota is None else f"{quota:g} cores"}


def _turbo(root: Path) -> str:
    cpu = root / "sys/devices/system/cpu"
    off, boost = _number(cpu / "intel_pstate/no_turbo"), _number(cpu / "cpufreq/boost")
    enabled = None if off is None and boost is None else off == 0 if off is not None else boost == 1
    return "unknown" if enabled is None else "on" if enabled else "off"


def _frequency_mhz(root: Path) -> float | None:
    """Return the frequency from cpufreq, which reports kHz, or else from ``/proc/cpuinfo``."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    found = [_number(root / f"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_cur_freq") for core in allowed]
    if any(found):
        return max(value for value in found if value) / 1e3
    lines = _text(root / "proc/cpuinfo").splitlines()
    values = [line.partition(":")[2].strip() for line in lines if line.startswith("cpu MHz")]
    return max((float(value) for value in values if value.replace(".", "", 1).isdecimal()), default=None)


def _temperature_c(root: Path) -> float | None:
    found = [_number(path) for path in (root / "sys/class/thermal").glob("thermal_zone*/temp")]
    return max((value / 1e3 for value in found if value is not None), default=None)


def _throttle_events(root: Path) -> int | None:
    found = [_number(path) for path in (root / "sys/devices/system/cpu").glob("cpu[0-9]*/thermal_throttle/*_throttle_count")]
    known = [value for value in found if value is not None]
    return sum(known) if known else None


def _energy_uj(root: Path) -> dict[str, tuple[int, int]]:
    """Return the counter and its range of each processor package, microjoules. AMD processors have the same names."""
    found = {}
    for zone in sorted((root / "sys/class/powercap").glob("intel-rapl:[0-9]*")):
        energy, limit = _number(zone / "energy_uj"), _number(zone / "max_energy_range_uj")
        if energy is not None and _text(zone / "name").startswith("package"):
            found[zone.name] = energy, limit or 0
    return found


def _energy_between(before: dict[str, tuple[int, int]], after: dict[str, tuple[int, int]]) -> float | None:
    """Return the energy between two readings, joules. A counter restarts at 0 after its range."""
    if not before or before.keys() != after.keys():
        return None
    total = 0
    for zone, (start, limit) in before.items():
        used = after[zone][0] - start
        total += used + limit if used < 0 else used
    return round(total / 1e6, 3)


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.removeprefix("-").isdecimal() else None


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace").strip()
    except OSError:
        return ""
