from __future__ import annotations

from pathlib import Path

import pytest

from edgetl.core.system.host_load import HostLoad
from edgetl.core.system.host_state import HostRecord, HostState, describe_cpu, read_host, record_between

IDLE = HostLoad(others=0.0, stolen=0.0, waiting=0.0)
CPU = "sys/devices/system/cpu"


def _write(root: Path, files: dict[str, object]) -> None:
    for name, value in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """Root folder of a host with frequency, throttling, temperature, RAPL and a CPU quota."""
    cores = {f"{CPU}/cpu{core}/cpufreq/scaling_cur_freq": 3_000_000 for core in range(256)}
    _write(
        tmp_path,
        cores
        | {
            f"{CPU}/cpu0/thermal_throttle/core_throttle_count": 3,
            f"{CPU}/cpu0/thermal_throttle/package_throttle_count": 4,
            f"{CPU}/intel_pstate/no_turbo": 1,
            "sys/class/thermal/thermal_zone0/temp": 41_000,
            "sys/class/thermal/thermal_zone1/temp": 56_500,
            "sys/class/powercap/intel-rapl:0/name": "package-0",
            "sys/class/powercap/intel-rapl:0/energy_uj": 9_000_000,
            "sys/class/powercap/intel-rapl:0/max_energy_range_uj": 10_000_000,
            "sys/class/powercap/intel-rapl:1/name": "psys",
            "sys/class/powercap/intel-rapl:1/energy_uj": 1,
            "proc/self/cgroup": "0::/box",
            "proc/self/mountinfo": "30 1 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw",
            "sys/fs/cgroup/box/cpu.max": "150000 100000",
            "sys/fs/cgroup/box/cpu.stat": "usage_usec 5\nthrottled_usec 2000000",
        },
    )
    return tmp_path


def test_the_state_has_frequency_temperature_and_throttling(host: Path) -> None:
    state = read_host(host).state
    assert (state.frequency_mhz, state.temperature_c, state.throttle_events) == (3000.0, 56.5, 7)
    assert describe_cpu(host)["turbo"] == "off" and describe_cpu(host)["cpu_quota"] == "1.5 cores"


def test_an_energy_counter_continues_after_its_range(host: Path) -> None:
    before = read_host(host)
    _write(host, {"sys/class/powercap/intel-rapl:0/energy_uj": 500_000})
    assert record_between(before, read_host(host)).energy_j == pytest.approx(1.5), "only packages are counted"
    (host / "sys/class/powercap/intel-rapl:0/energy_uj").unlink()
    assert record_between(before, read_host(host)).energy_j is None


def test_throttling_during_a_measurement_is_a_problem(host: Path) -> None:
    before = read_host(host)
    _write(host, {f"{CPU}/cpu0/thermal_throttle/core_throttle_count": 15, "sys/fs/cgroup/box/cpu.stat": "throttled_usec 9000000"})
    found = record_between(before, read_host(host)).problems()
    assert any(text == "the CPU was throttled 12 time(s), because of its temperature" for text in found)
    assert any(text.startswith("the CPU quota stopped this program for") for text in found)


def test_a_lower_frequency_is_a_problem_beyond_five_percent() -> None:
    before = HostState(frequency_mhz=3600.0)
    record = HostRecord(before=before, after=HostState(frequency_mhz=2400.0), load=IDLE)
    assert record.problems() == ("the CPU frequency fell from 3600 to 2400 MHz",)
    assert record.model_copy(update={"after": HostState(frequency_mhz=3500.0)}).problems() == ()


def test_a_host_without_counters_has_no_problems(tmp_path: Path) -> None:
    reading = read_host(tmp_path)
    assert reading.state.frequency_mhz is None and reading.energy_uj == {} and reading.quota_seconds is None
    assert HostRecord(before=reading.state, after=reading.state).problems() == ()
    assert describe_cpu(tmp_path)["turbo"] == "unknown"
