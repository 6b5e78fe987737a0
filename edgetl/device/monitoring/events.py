"""Events and daily counts in a SQLite file of limited size, which survives a crash and a full disk.

The write-ahead log (WAL) keeps the file consistent if the process is killed at any time (https://sqlite.org/wal.html). After a power
failure, the last transactions may be missing, but the file is not damaged (``synchronous=NORMAL``).
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from edgetl.errors import StorageError

MAX_EVENTS = 10_000
MAX_DAYS = 400
MAX_FILE_BYTES = 32_000_000
_PAGE_BYTES = 4096
# The log is written back to the file after this number of pages, 256 kB.
_LOG_PAGES = 64
_SCHEMA = """
CREATE TABLE IF NOT EXISTS events (
    id INTEGER PRIMARY KEY, time TEXT NOT NULL, model TEXT NOT NULL, release INTEGER NOT NULL, kind TEXT NOT NULL, detail TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS counts (
    day TEXT NOT NULL, model TEXT NOT NULL, release INTEGER NOT NULL, name TEXT NOT NULL, value INTEGER NOT NULL,
    PRIMARY KEY (day, model, release, name)
) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class Event:
    """Event of a model.

    Attributes:
        time: ISO 8601, UTC, by the clock of the device.
        model: name of the model.
        release: release number of the model.
        kind: ``drift``, ``drift-end``, ``capture-failed`` …
        detail: JSON object that depends on the kind.
    """

    time: str
    model: str
    release: int
    kind: str
    detail: dict[str, Any]


class EventLog:
    """SQLite file of events and daily counts. One thread at a time may use it.

    At most 10,000 events, the counts of 400 days and 32 MB are kept. The oldest are deleted.

    Args:
        path: file. It is created with its folder.

    Attributes:
        failed: number of events and counts that could not be written, for instance on a full disk.
    """

    def __init__(self, path: Path) -> None:
        """
        Raises:
            StorageError: the file cannot be created, or is not a file of events.
        """
        self.failed = 0
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = _connect(path)
        except OSError as error:
            raise StorageError(f"cannot create {path}: {error.strerror}. Choose another path with --events.") from error
        except sqlite3.Error as error:
            raise StorageError(f"cannot open {path} as a file of events: {error}. Move it away, or choose another --events.") from error

    def add(self, event: Event, counts: Mapping[str, int] | None = None) -> bool:
        """Write an event, and increase the counts of its day, in one transaction. Return false if the disk is full."""
        with self._transaction() as done:
            self._connection.execute(
                "INSERT INTO events (time, model, release, kind, detail) VALUES (?, ?, ?, ?, ?)",
                (event.time, event.model, event.release, event.kind, json.dumps(event.detail)),
            )
            self._connection.execute("DELETE FROM events WHERE id <= (SELECT max(id) FROM events) - ?", (MAX_EVENTS,))
            self._increase(event.time[:10], event.model, event.release, counts or {})
            done.append(True)
        return bool(done)

    def count(self, model: str, release: int, counts: Mapping[str, int]) -> bool:
        """Increase the counts of today. Return false if the disk is full."""
        with self._transaction() as done:
            self._increase(timestamp()[:10], model, release, counts)
            done.append(True)
        return bool(done)

    def events(self, limit: int = 100) -> list[Event]:
        """Return the last events, the newest first."""
        rows = self._connection.execute("SELECT time, model, release, kind, detail FROM events ORDER BY id DESC LIMIT ?", (limit,))
        return [Event(time, model, release, kind, json.loads(detail)) for time, model, release, kind, detail in rows]

    def counts(self) -> dict[tuple[str, str, int, str], int]:
        """Return the counts by day, model, release and name."""
        return {tuple(row[:4]): row[4] for row in self._connection.execute("SELECT day, model, release, name, value FROM counts")}

    def close(self) -> None:
        """Close the file."""
        with suppress(sqlite3.Error):
            self._connection.close()

    def _increase(self, day: str, model: str, release: int, counts: Mapping[str, int]) -> None:
        self._connection.executemany(
            "INSERT INTO counts VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET value = value + excluded.value",
            [(day, model, release, name, value) for name, value in counts.items()],
        )
        self._connection.execute(
            "DELETE FROM counts WHERE day <= (SELECT day FROM counts GROUP BY day ORDER BY day DESC LIMIT 1 OFFSET ?)", (MAX_DAYS,)
        )

    @contextmanager
    def _transaction(self) -> Iterator[list[bool]]:
        """Run the block as one transaction. An error, such as a full disk, is counted and rolls the transaction back."""
        try:
            with self._connection:
                yield []
        except sqlite3.Error:
            self.failed += 1


def timestamp() -> str:
    """Return the current time, ISO 8601, UTC, in seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _connect(path: Path) -> sqlite3.Connection:
    # The monitor creates the log in one thread and uses it in another.
    connection = sqlite3.connect(path, timeout=5.0, check_same_thread=False)
    try:
        connection.execute(f"PRAGMA page_size={_PAGE_BYTES}")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute(f"PRAGMA wal_autocheckpoint={_LOG_PAGES}")
        connection.execute(f"PRAGMA journal_size_limit={_LOG_PAGES * _PAGE_BYTES}")
        connection.execute(f"PRAGMA max_page_count={MAX_FILE_BYTES // _PAGE_BYTES}")
        connection.executescript(_SCHEMA)
    except sqlite3.Error:
        connection.close()
        raise
    return connection
