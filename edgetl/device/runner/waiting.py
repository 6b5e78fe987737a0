"""Waiting: a stop request from a signal, and exponential back-off with jitter."""

from __future__ import annotations

import os
import random
import select
from contextlib import suppress

# Longest wait without a look at the watchdog, the health file and the model, seconds.
POLL_S = 0.5


class Stop:
    """Stop request, set by a signal handler or another thread.

    It uses a pipe. A signal handler that sets a ``threading.Event`` can wait forever for a lock that the interrupted code holds.

    Attributes:
        requested: true after ``request``.
    """

    def __init__(self) -> None:
        self.requested = False
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)

    def request(self) -> None:
        """Request the stop. Waits end at once."""
        self.requested = True
        with suppress(OSError):  # the pipe is full: it is readable already
            os.write(self._write, b"\0")

    def wait(self, seconds: float, *descriptors: int) -> bool:
        """Wait for ``seconds``, for a stop request, or until a descriptor is readable. Return true if a descriptor is readable."""
        readable, _, _ = select.select([self._read, *descriptors], [], [], max(0.0, seconds))
        return any(descriptor in readable for descriptor in descriptors)

    def close(self) -> None:
        """Close the pipe."""
        os.close(self._read)
        os.close(self._write)


class Backoff:
    """Exponential back-off with jitter, so that many devices do not return at the same moment.

    Each wait is between half of a limit and the limit, and the limit doubles ("equal jitter" in "Exponential Backoff And Jitter", AWS
    Architecture Blog, 2015).

    Args:
        first_s: limit of the first wait, seconds.
        longest_s: limit of all waits, seconds.
    """

    def __init__(self, first_s: float = 0.5, longest_s: float = 60.0) -> None:
        self._first, self._longest = first_s, longest_s
        self._limit = first_s

    def next(self) -> float:
        """Return the next wait, seconds."""
        limit, self._limit = self._limit, min(self._longest, 2 * self._limit)
        return random.uniform(limit / 2, limit)

    def reset(self) -> None:
        """Start with the first wait again, after a success."""
        self._limit = self._first
