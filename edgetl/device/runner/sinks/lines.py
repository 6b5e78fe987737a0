"""Line sink: JSON Lines or CSV on standard output or in a file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from edgetl.core.files.atomic import storage_error
from edgetl.core.files.names import printable
from edgetl.device.runner.sinks.record import COLUMNS, Record, SinkStatus, csv_line
from edgetl.errors import StorageError

_STANDARD_OUTPUT = 1


class LineSink:
    """Lines in a file or on standard output. Each record is one line, written at once.

    A file is extended, never replaced. It is opened again if a log rotation moved it. If a write fails, the partial line is removed.

    Args:
        path: file, or none for standard output.
        form: ``jsonl`` or ``csv``.

    Raises:
        StorageError: the file cannot be opened.
    """

    def __init__(self, path: Path | None, form: Literal["jsonl", "csv"]) -> None:
        self._path, self._form = path, form
        self._file: int | None = None
        self._delivered = self._lost = 0
        self._problem = ""
        if path is None:
            self._open_output()
        else:
            try:
                self._reopen(path)
            except OSError as error:
                raise storage_error(path, error) from error

    def put(self, record: Record) -> bool:
        """Write a record. Return false if the file cannot be written now.

        Raises:
            StorageError: standard output is closed.
        """
        line = record.to_csv() if self._form == "csv" else record.to_json() + b"\n"
        if self._path is None:
            self._write_output(line)
        elif not self._write_file(self._path, line):
            return False
        self._delivered += 1
        return True

    def status(self) -> SinkStatus:
        """Return the state of the sink."""
        name = f"{self._form}:{printable(self._path)}" if self._path else self._form
        return SinkStatus(name=name, delivered=self._delivered, problem=self._problem)

    def close(self, timeout_s: float) -> None:  # noqa: ARG002  (part of the interface)
        """Flush the file to the disk and close it."""
        self._close()

    def _open_output(self) -> None:
        if self._form == "csv":
            self._write_output(csv_line(COLUMNS))

    def _write_output(self, line: bytes) -> None:
        try:
            while line:
                line = line[os.write(_STANDARD_OUTPUT, line) :]
        except OSError as error:
            raise StorageError(
                f"standard output cannot be written: {error.strerror}. The frame in progress has no record. Keep the reader of the pipe "
                f"open, or write to a file with --sink {self._form}:PATH."
            ) from error

    def _write_file(self, path: Path, line: bytes) -> bool:
        try:
            if self._file is None or not _same_file(self._file, path):
                self._close()
                self._reopen(path)
            assert self._file is not None
            end = os.lseek(self._file, 0, os.SEEK_END)
            written = os.write(self._file, line)
            if written < len(line):  # the disk is full, or a limit of the file size
                os.ftruncate(self._file, end)
                raise OSError(None, f"only {written} of {len(line)} bytes were written")
        except OSError as error:
            self._problem = f"cannot write {printable(path)}: {error.strerror}"
            self._close()
            return False
        self._problem = ""
        return True

    def _reopen(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        size = os.fstat(self._file).st_size
        if size and os.pread(self._file, 1, size - 1) != b"\n":
            os.write(self._file, b"\n")  # a power failure cut off the last line
        if not size and self._form == "csv":
            os.write(self._file, csv_line(COLUMNS))

    def _close(self) -> None:
        if self._file is None:
            return
        try:
            os.fsync(self._file)
        except OSError as error:  # also of files that cannot be flushed, such as /dev/null
            self._problem = self._problem or f"cannot flush {printable(self._path or '')}: {error.strerror}"
        os.close(self._file)
        self._file = None


def _same_file(descriptor: int, path: Path) -> bool:
    """Return true if ``path`` is still the opened file."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return False
    opened = os.fstat(descriptor)
    return (status.st_dev, status.st_ino) == (opened.st_dev, opened.st_ino)
