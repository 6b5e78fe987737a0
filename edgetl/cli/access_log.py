"""Access log of the server on standard output. A separate thread writes it, so that a full disk or a blocked pipe delays no response."""

from __future__ import annotations

import logging
import queue
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

# Largest number of lines in the queue. With a slow reader, lines are dropped.
_MOST_LINES = 10_000
_LAST_S = 2.0


@contextmanager
def access_log(*, on: bool) -> Iterator[None]:
    """Write each record of the logger ``edgetl.access`` as one line while the block runs."""
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
    """Log handler with a queue of lines that a thread writes. If the queue is full, new lines are dropped."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: queue.Queue[str | None] = queue.Queue(_MOST_LINES)
        self._writer = threading.Thread(target=self._write, name="edgetl-access-log", daemon=True)
        self._writer.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Add a line to the queue."""
        with suppress(queue.Full):
            self._lines.put_nowait(record.getMessage())

    def close(self) -> None:
        """Write the remaining lines, for at most two seconds."""
        with suppress(queue.Full):
            self._lines.put_nowait(None)
            self._writer.join(_LAST_S)
        super().close()

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            # The disk is full, the pipe is closed, or there is no standard output. The line is dropped.
            with suppress(OSError, ValueError, AttributeError):
                sys.stdout.write(line + "\n")
                if self._lines.empty():
                    sys.stdout.flush()
