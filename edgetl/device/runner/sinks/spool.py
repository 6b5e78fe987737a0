"""Spool: records of a network sink on the disk, in SQLite, until the receiver has them."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import sqlite3
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from edgetl.core.files.atomic import storage_error
from edgetl.core.files.names import printable
from edgetl.errors import StorageError

_PAGE_BYTES = 4096
# SQLite needs a few pages for its schema and while it deletes.
_MIN_PAGES = 16
# The write-ahead log is emptied when it has this many pages.
_LOG_PAGES = 256

Numbered = tuple[int, bytes]


def spool_name(address: str) -> str:
    """Return the file name of the spool for the address of a receiver, such as ``broker.local-1f2e3d4c.sqlite``."""
    readable = re.sub(r"[^A-Za-z0-9.-]+", "-", address.partition("://")[2])[:40].strip("-.")
    return f"{readable}-{hashlib.sha256(address.encode()).hexdigest()[:8]}.sqlite"


class SpoolFullError(Exception):
    """The spool has reached its limit, or its disk is full."""


class Spool:
    """First-in, first-out queue on the disk. It survives the end of the process. A power failure may lose the last seconds.

    Args:
        path: database file. It has at most ``limit_bytes`` bytes, plus a log of about 1 MB.
        limit_bytes: largest size of the database, bytes.

    Attributes:
        count: number of records.

    Raises:
        StorageError: the folder cannot be written, or another process uses the spool.
    """

    def __init__(self, path: Path, limit_bytes: int) -> None:
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._open(limit_bytes)
            except sqlite3.DatabaseError as error:
                if isinstance(error, sqlite3.OperationalError):
                    raise
                # The file is damaged. It stays for an investigation, and a new one is created.
                self.close()
                damaged = path.with_name(f"{path.name}.damaged-{secrets.token_hex(4)}")
                os.replace(path, damaged)
                for suffix in ("-wal", "-shm"):
                    with suppress(FileNotFoundError):
                        Path(f"{path}{suffix}").rename(f"{damaged}{suffix}")
                self._open(limit_bytes)
        except OSError as error:
            raise storage_error(path, error) from error
        except sqlite3.Error as error:
            self.close()
            raise StorageError(
                f"the spool {printable(path)} cannot be opened: {error}. Stop the other process that uses it, or set another --spool."
            ) from error

    def _open(self, limit_bytes: int) -> None:
        # One connection for two threads. The outbox locks each call.
        self._database = sqlite3.connect(self._path, timeout=0.0, isolation_level=None, check_same_thread=False)
        execute = self._database.execute
        execute("PRAGMA locking_mode = EXCLUSIVE")  # fails at once if another process uses the spool
        execute("PRAGMA journal_mode = WAL")
        execute("PRAGMA synchronous = NORMAL")
        execute(f"PRAGMA wal_autocheckpoint = {_LOG_PAGES}")
        execute(f"PRAGMA journal_size_limit = {_LOG_PAGES * _PAGE_BYTES}")
        execute("CREATE TABLE IF NOT EXISTS records (number INTEGER PRIMARY KEY, data BLOB NOT NULL)")
        (page_bytes,) = execute("PRAGMA page_size").fetchone()
        execute(f"PRAGMA max_page_count = {max(_MIN_PAGES, limit_bytes // page_bytes)}")
        self.count, self.last_number = execute("SELECT count(*), coalesce(max(number), 0) FROM records").fetchone()

    def add(self, records: Sequence[Numbered]) -> None:
        """Add records, all or none of them. Numbers increase.

        Raises:
            SpoolFullError: there is no space.
        """
        try:
            self._database.execute("BEGIN")
            try:
                self._database.executemany("INSERT INTO records VALUES (?, ?)", records)
                self._database.execute("COMMIT")
            except sqlite3.Error:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise SpoolFullError(str(error)) from error
        self.count += len(records)

    def first(self, count: int) -> list[Numbered]:
        """Return at most ``count`` records, the oldest first.

        Raises:
            OSError: the disk fails.
        """
        try:
            return list(self._database.execute("SELECT number, data FROM records ORDER BY number LIMIT ?", (count,)))
        except sqlite3.Error as error:
            raise OSError(errno.EIO, str(error), str(self._path)) from error

    def remove(self, last_number: int) -> None:
        """Remove the records up to ``last_number``.

        Raises:
            OSError: the disk fails.
        """
        try:
            self.count -= self._database.execute("DELETE FROM records WHERE number <= ?", (last_number,)).rowcount
        except sqlite3.Error as error:
            raise OSError(errno.EIO, str(error), str(self._path)) from error

    def close(self) -> None:
        """Close the database."""
        with suppress(sqlite3.Error):
            self._database.close()
