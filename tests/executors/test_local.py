"""Local executor with real processes."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgetl.core.files.platforms import process_runs
from edgetl.errors import DataError, EngineError
from edgetl.executors.local import Local
from tests.executors.tasks import crash, crash_once, fail_once, refuse, square, write_later


def test_results_are_in_the_order_of_the_items() -> None:
    assert list(Local(2).map(square, [0, 1, 2])) == [0, 1, 4]
    assert list(Local(2).map(square, [])) == []


def test_a_task_whose_process_crashes_or_fails_is_tried_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "edgetl"):
        assert list(Local(1).map(crash_once, [tmp_path / "a"])) == ["done"]
        assert list(Local(1).map(fail_once, [tmp_path / "b"])) == ["done"]
    assert "started again (attempt 2 of 3): its process ended with signal 9" in caplog.text
    assert "RuntimeError: out of luck" in caplog.text


def test_a_task_that_always_crashes_is_an_error_after_three_attempts() -> None:
    with pytest.raises(EngineError, match=r"a task failed 2 times: its process ended with signal 9.*Use fewer processes"):
        list(Local(1, retries=1).map(crash, [1]))


def test_a_failed_task_gets_another_result_and_the_others_continue() -> None:
    found = Local(2, retries=0).map(_crash_at_one, [0, 1, 2], failed=lambda item, error: f"{item}: {error}")
    assert [str(item)[:40] for item in found] == ["0", "1: a task failed 1 times: its process en", "4"]


def _crash_at_one(number: int) -> int:
    if number == 1:
        crash(number)
    return square(number)


def test_a_mistake_of_the_user_is_not_tried_again_and_stops_the_other_tasks(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such folder"):
        list(Local(2).map(_either, [tmp_path / "slow", tmp_path / "bad"]))
    assert (tmp_path / "bad").read_text() == "call\n"
    assert not (tmp_path / "slow").exists()


def _either(place: Path) -> None:
    refuse(place) if place.name == "bad" else write_later(place)


_PARENT = """
import sys
from pathlib import Path
from edgetl.executors.local import Local
from tests.executors.tasks import write_later
list(Local(1).map(write_later, [Path(sys.argv[1])]))
"""


def test_a_task_ends_with_its_parent_process(tmp_path: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", _PARENT, str(tmp_path / "late")])
    place = tmp_path / "late.pid"
    while not (place.exists() and place.read_text()):
        assert parent.poll() is None
        time.sleep(0.02)
    child = int(place.read_text())
    parent.kill()
    parent.wait()
    while process_runs(child):  # the test has a limit of time
        state = Path(f"/proc/{child}/stat")
        if state.exists() and state.read_text().split()[2] == "Z":
            break
        time.sleep(0.02)
    assert not (tmp_path / "late").exists()
