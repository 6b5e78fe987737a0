"""Events and daily counts in a SQLite file of limited size, which survives a crash and a full disk.

The write-ahead log (WAL) keeps the file consistent if the process is killed at any time (https://sqlite.org/wal.html). After a power
failure, the last transactions may be missing, but the file is not damaged (``synchronous=NORMAL``).
"""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from edgetl.errors import ConfigError, StorageError

Result = TypeVar("Result")
logger = logging.getLogger("edgetl.monitor")

MAX_EVENTS = 10_000
MAX_DAYS = 400
MAX_FILE_BYTES = 32_000_000
_PAGE_BYTES = 4096
# Identifies the files of this module (``PRAGMA application_id``): "edge" in ASCII.
_APPLICATION = 0x65646765
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

    At most 10,000 events, the counts of 400 days and 32 MB are kept. The oldest are deleted. A damaged file is renamed to
    ``<name>.damaged``, and a new one is started, because a device must not stop for it.

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
        self._connection: sqlite3.Connection | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = _open(path)
        except OSError as error:
            raise StorageError(f"cannot create {path}: {error.strerror}. Choose another path with --events.") from error
        except sqlite3.Error as error:
            if not _is_temporary(error):
                raise StorageError(f"cannot open {path} as a file of events: {error}. Move it away, or choose another --events.") from error
            logger.warning("%s cannot be opened now: %s. Events are written as soon as it can.", path, error)

    def add(self, event: Event, counts: Mapping[str, int] | None = None) -> bool:
        """Write an event, and increase the counts of its day, in one transaction. Return false if the disk is full."""

        def write(connection: sqlite3.Connection) -> bool:
            connection.execute(
                "INSERT INTO events (time, model, release, kind, detail) VALUES (?, ?, ?, ?, ?)",
                (event.time, event.model, event.release, event.kind, json.dumps(event.detail)),
            )
            connection.execute("DELETE FROM events WHERE id <= (SELECT max(id) FROM events) - ?", (MAX_EVENTS,))
            _increase(connection, (event.time[:10], event.model, event.release), counts or {})
            return True

        return self._run(write) or False

    def count(self, model: str, release: int, counts: Mapping[str, int]) -> bool:
        """Increase the counts of today. Return false if the disk is full."""

        def write(connection: sqlite3.Connection) -> bool:
            _increase(connection, (timestamp()[:10], model, release), counts)
            return True

        return self._run(write) or False

    def events(self, limit: int = 100) -> list[Event]:
        """Return the last events, the newest first."""
        query = "SELECT time, model, release, kind, detail FROM events ORDER BY id DESC LIMIT ?"
        rows = self._run(lambda connection: connection.execute(query, (limit,)).fetchall()) or []
        return [Event(time, model, release, kind, json.loads(detail)) for time, model, release, kind, detail in rows]

    def counts(self) -> dict[tuple[str, str, int, str], int]:
        """Return the counts by day, model, release and name."""
        query = "SELECT day, model, release, name, value FROM counts"
        rows = self._run(lambda connection: connection.execute(query).fetchall()) or []
        return {(day, model, release, name): value for day, model, release, name, value in rows}

    def close(self) -> None:
        """Close the file."""
        if self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.close()

    def _run(self, work: Callable[[sqlite3.Connection], Result]) -> Result | None:
        """Run ``work`` as one transaction. After an error, such as a full disk, count it and return none."""
        try:
            if self._connection is None:
                self._connection = _open(self._path)
            with self._connection:
                return work(self._connection)
        except (sqlite3.Error, OSError) as error:
            self.failed += 1
            if _is_damage(error):
                # The next call opens the file again, and replaces it.
                self.close()
                self._connection = None
            return None


def read_events(path: Path, limit: int = 100) -> list[Event]:
    """Return the last events of a file, the newest first. The file is not changed, and may be in use.

    Raises:
        ConfigError: the file is missing, damaged, or not a file of events.
    """
    if not path.is_file():
        raise ConfigError(f"--events {path} does not exist. Give the file of --events of `edgetl serve` or `edgetl run`.")
    query = "SELECT time, model, release, kind, detail FROM events ORDER BY id DESC LIMIT ?"
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=1.0)) as connection:
            (application,) = connection.execute("PRAGMA application_id").fetchone()
            if application != _APPLICATION:
                raise _error("another program created it", "SQLITE_MISMATCH")
            rows = connection.execute(query, (limit,)).fetchall()
            return [Event(time, model, release, kind, json.loads(detail)) for time, model, release, kind, detail in rows]
    except (sqlite3.Error, ValueError) as error:
        raise ConfigError(f"--events {path} cannot be read as a file of events: {error}. Choose another file.") from error


def timestamp() -> str:
    """Return the current time, ISO 8601, UTC, in seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _increase(connection: sqlite3.Connection, key: tuple[str, str, int], counts: Mapping[str, int]) -> None:
    """Increase the counts of a day, model and release, and delete the oldest days."""
    connection.executemany(
        "INSERT INTO counts VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET value = value + excluded.value",
        [(*key, name, value) for name, value in counts.items()],
    )
    connection.execute(
        "DELETE FROM counts WHERE day <= (SELECT day FROM counts GROUP BY day ORDER BY day DESC LIMIT 1 OFFSET ?)", (MAX_DAYS,)
    )


def _open(path: Path) -> sqlite3.Connection:
    """Open the file, or replace it if it is damaged.

    Raises:
        sqlite3.Error: the file cannot be opened, or another program created it.
    """
    try:
        return _connect(path)
    except sqlite3.DatabaseError as error:
        if not _is_damage(error) or not _is_own(path):
            raise
    path.replace(path.with_name(f"{path.name}.damaged"))
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    logger.warning("%s was damaged. It is now %s.damaged, and a new file is started.", path, path.name)
    return _connect(path)


def _connect(path: Path) -> sqlite3.Connection:
    # The monitor opens the file in one thread and uses it in another.
    connection = sqlite3.connect(path, timeout=1.0, check_same_thread=False)
    try:
        (application,), (tables,) = (
            connection.execute(query).fetchone() for query in ("PRAGMA application_id", "SELECT count(*) FROM sqlite_master")
        )
        if tables and application != _APPLICATION:
            raise _error("another program created it", "SQLITE_MISMATCH")
        connection.execute(f"PRAGMA page_size={_PAGE_BYTES}")
        if application != _APPLICATION:
            connection.execute(f"PRAGMA application_id={_APPLICATION}")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute(f"PRAGMA wal_autocheckpoint={_LOG_PAGES}")
        connection.execute(f"PRAGMA journal_size_limit={_LOG_PAGES * _PAGE_BYTES}")
        connection.execute(f"PRAGMA max_page_count={MAX_FILE_BYTES // _PAGE_BYTES}")
        connection.executescript(_SCHEMA)
        if connection.execute("PRAGMA quick_check").fetchone() != ("ok",):
            raise _error("the file is damaged", "SQLITE_CORRUPT")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _error(text: str, name: str) -> sqlite3.DatabaseError:
    error = sqlite3.DatabaseError(text)
    error.sqlite_errorname = name
    return error


def _is_damage(error: Exception) -> bool:
    """Return true if the content of a file is not that of a SQLite file."""
    return getattr(error, "sqlite_errorname", "").startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB"))


def _is_temporary(error: sqlite3.Error) -> bool:
    """Return true for an error that may end: a full disk, an input or output error, or a lock of another process."""
    return getattr(error, "sqlite_errorname", "").startswith(("SQLITE_FULL", "SQLITE_IOERR", "SQLITE_BUSY"))


def _is_own(path: Path) -> bool:
    """Return true if the header of a file is that of a file of this module: SQLite, with its application id."""
    with open(path, "rb") as file:
        header = file.read(72)
    return header.startswith(b"SQLite format 3\0") and header[68:72] == _APPLICATION.to_bytes(4)
