"""The access log on the standard output, in a thread of its own: a full disk, or a pipe that nobody reads, delays no response."""

from __future__ import annotations

import logging
import queue
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

# Lines that wait to be written; a slow reader loses lines, not responses.
_MOST_LINES = 10_000
_LAST_S = 2.0


@contextmanager
def access_log(*, on: bool) -> Iterator[None]:
    """Write what ``edgetl.access`` logs, a line each."""
    logger = logging.getLogger("edgetl.access")
    logger.propagate = False
    logger.setLevel(logging.INFO if on else logging.CRITICAL)
    handler = _Queued() if on else logging.NullHandler()
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()


class _Queued(logging.Handler):
    """Lines that a thread writes; where no more fit, the new one is lost."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: queue.Queue[str | None] = queue.Queue(_MOST_LINES)
        self._writer = threading.Thread(target=self._write, name="edgetl-access-log", daemon=True)
        self._writer.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Take a line."""
        with suppress(queue.Full):
            self._lines.put_nowait(record.getMessage())

    def close(self) -> None:
        """Write what waits, unless nobody takes it."""
        with suppress(queue.Full):
            self._lines.put_nowait(None)
            self._writer.join(_LAST_S)
        super().close()

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            # The disk is full, the reader went, or there is no standard output: the line is lost.
            with suppress(OSError, ValueError, AttributeError):
                sys.stdout.write(line + "\n")
                if self._lines.empty():
                    sys.stdout.flush()
