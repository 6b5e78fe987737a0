"""Host load during a measurement."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgetl.core.system.host import available_cores
from edgetl.core.system.host_load import Counters, HostLoad, load_between, read_counters

BEFORE = Counters(wall=10.0, used=100.0, stolen=1.0, own=50.0, waiting=2.0, cores=2)


def _after(seconds: float = 2.0, *, used: float = 0.0, stolen: float = 0.0, own: float = 0.0, waiting: float = 0.0) -> Counters:
    return Counters(BEFORE.wall + seconds, BEFORE.used + used, BEFORE.stolen + stolen, BEFORE.own + own, BEFORE.waiting + waiting, 2)


def test_cpu_time_of_the_process_is_not_load() -> None:
    load = load_between(BEFORE, _after(used=2.0, own=2.0))
    assert load == HostLoad(others=0.0, stolen=0.0, waiting=0.0) and not load.busy


@pytest.mark.parametrize(
    ("after", "name", "figure"),
    [
        (_after(used=4.0, own=2.0), "others", 0.5),
        (_after(used=2.0, own=2.0, stolen=0.4), "stolen", 0.1),
        (_after(used=2.0, own=1.8, waiting=0.2), "waiting", 0.1),
    ],
)
def test_other_programs_stolen_time_and_waiting_make_the_host_busy(after: Counters, name: str, figure: float) -> None:
    load = load_between(BEFORE, after)
    assert load is not None and load.busy and getattr(load, name) == pytest.approx(figure)


def test_the_description_of_a_load_names_its_main_cause() -> None:
    load = HostLoad(others=0.8, stolen=0.0, waiting=1.6)
    assert load.describe() == "other programs used 80 % of the CPU"
    assert "waited for a core: 1.60 s per second" in load.details()
    assert "virtual machines" in HostLoad(others=0.1, stolen=0.2, waiting=0.0).describe()
    assert "not always available" in HostLoad(others=0.0, stolen=0.0, waiting=0.2).describe()


def test_there_is_no_load_without_counters() -> None:
    assert load_between(None, BEFORE) is None and load_between(BEFORE, None) is None


@pytest.mark.skipif(not Path("/proc/stat").is_file(), reason="the system has no /proc/stat")
def test_programs_on_every_core_are_measured() -> None:
    spinners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * available_cores())]
    try:
        before = read_counters()
        time.sleep(1.0)
        load = load_between(before, read_counters())
    finally:
        for spinner in spinners:
            spinner.kill()
            spinner.wait()
    assert load is not None and load.busy and load.others > 0.25
