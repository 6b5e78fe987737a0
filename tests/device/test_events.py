"""Events and counts in SQLite: limits, kill -9, full disk, damaged files."""

import random
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from edgetl.device.monitoring import events
from edgetl.device.monitoring.events import Event, EventLog
from edgetl.errors import ConfigError, StorageError
from tests.disks import fill

WRITER = """
import sys
from pathlib import Path
from edgetl.device.monitoring.events import Event, EventLog

log = EventLog(Path(sys.argv[1]))
for number in range(int(sys.argv[2]), 10**9):
    if log.add(Event("2026-11-26T12:00:00+00:00", "waste", 1, "drift", {"number": number}), {"observed": 1}):
        print(number, flush=True)
"""


def event(number: int, day: str = "2026-11-26") -> Event:
    """Return an event with a number."""
    return Event(f"{day}T12:00:00+00:00", "waste", 3, "drift", {"number": number})


def test_events_and_counts_are_read_after_a_restart(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "new/events.sqlite")
    log.add(event(1), {"captured_drift": 1})
    log.add(event(2), {"captured_drift": 2})
    log.close()
    log = EventLog(tmp_path / "new/events.sqlite")
    assert log.events() == [event(2), event(1)]
    assert log.counts() == {("2026-11-26", "waste", 3, "captured_drift"): 3}


def test_events_of_a_file_in_use_are_read_without_a_change(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.sqlite")
    log.add(event(1))
    log.add(event(2))
    assert events.read_events(tmp_path / "events.sqlite") == [event(2), event(1)]
    assert events.read_events(tmp_path / "events.sqlite", limit=1) == [event(2)]
    log.close()
    before = (tmp_path / "events.sqlite").read_bytes()
    assert events.read_events(tmp_path / "events.sqlite") == [event(2), event(1)]
    assert (tmp_path / "events.sqlite").read_bytes() == before


def test_reading_another_file_as_events_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("notes " * 1000)
    sqlite3.connect(tmp_path / "other.sqlite").execute("CREATE TABLE events (id)").connection.close()
    for name, reason in (("missing", "does not exist"), ("notes.txt", "not a database"), ("other.sqlite", "another program created it")):
        with pytest.raises(ConfigError, match=rf"--events .*{name}.*{reason}"):
            events.read_events(tmp_path / name)


def test_the_oldest_events_and_days_are_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MAX_EVENTS", 5)
    monkeypatch.setattr(events, "MAX_DAYS", 3)
    log = EventLog(tmp_path / "events.sqlite")
    for number in range(9):
        log.add(event(number, day=f"2026-11-1{number}"), {"observed": 1, "drift_events": 1})
    assert [item.detail["number"] for item in log.events()] == [8, 7, 6, 5, 4]
    assert {day for day, *_ in log.counts()} == {"2026-11-16", "2026-11-17", "2026-11-18"}


def test_the_file_does_not_exceed_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MAX_FILE_BYTES", 200_000)
    log = EventLog(tmp_path / "events.sqlite")
    written = sum(log.add(Event("2026-11-26", "waste", 1, "drift", {"text": "x" * 1000})) for _ in range(500))
    log.close()
    assert 0 < written < 500 and log.failed == 500 - written
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 200_000


@pytest.mark.parametrize("repetitions", [3, pytest.param(50, marks=pytest.mark.slow)])
def test_no_written_event_is_lost_when_the_process_is_killed(tmp_path: Path, repetitions: int) -> None:
    path, rng, last = tmp_path / "events.sqlite", random.Random(0), -1
    for _ in range(repetitions):
        with subprocess.Popen([sys.executable, "-c", WRITER, path, str(last + 1)], stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            for _ in range(rng.randint(1, 120)):
                last = int(writer.stdout.readline())
            writer.send_signal(signal.SIGKILL)
            # Events that were written, but not read yet.
            last = max([last, *(int(line) for line in writer.stdout if line.endswith("\n"))])
        connection = sqlite3.connect(path)
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        connection.close()
        log = EventLog(path)
        found = [item.detail["number"] for item in reversed(log.events(10**6))]
        log.close()
        # At most one event was written and not acknowledged.
        assert found == list(range(len(found))) and len(found) in (last + 1, last + 2)
        last = found[-1]


def test_a_full_disk_loses_events_but_raises_no_error(small_disk: Path) -> None:
    log = EventLog(small_disk / "events.sqlite")
    assert log.add(event(0))
    filler = fill(small_disk)
    written = sum(log.add(event(number), {"observed": 1}) for number in range(1, 300))
    assert log.failed == 299 - written > 0
    filler.unlink()
    assert log.add(event(300))
    assert log.events()[0] == event(300) and len(log.events(1000)) == written + 2
    log.close()


def test_a_start_on_a_full_disk_writes_events_later(small_disk: Path) -> None:
    filler = fill(small_disk)
    log = EventLog(small_disk / "events.sqlite")
    assert not log.add(event(0))
    filler.unlink()
    assert log.add(event(1)) and log.events() == [event(1)]
    log.close()


def test_a_file_of_another_kind_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no database" * 100)
    with pytest.raises(StorageError, match=r"notes\.txt as a file of events"):
        EventLog(tmp_path / "notes.txt")
    assert (tmp_path / "notes.txt").read_text() == "no database" * 100


def test_a_database_of_another_program_is_an_error(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "other.sqlite")
    connection.execute("CREATE TABLE notes (text TEXT)")
    connection.close()
    with pytest.raises(StorageError, match="another program created it"):
        EventLog(tmp_path / "other.sqlite")


def test_a_damaged_file_is_kept_under_another_name_and_replaced(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.sqlite")
    for number in range(300):
        log.add(event(number))
    log.close()
    data = bytearray((tmp_path / "events.sqlite").read_bytes())
    data[4096:] = random.Random(0).randbytes(len(data) - 4096)
    (tmp_path / "events.sqlite").write_bytes(data)
    log = EventLog(tmp_path / "events.sqlite")
    assert log.events() == [] and log.add(event(1))
    assert (tmp_path / "events.sqlite.damaged").read_bytes() == data
