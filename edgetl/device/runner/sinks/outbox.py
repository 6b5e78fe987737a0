"""Outbox: queue of a network sink. A thread delivers the records, in order, and tries again with back-off."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol

from edgetl.device.runner.sinks.record import Record, SinkStatus
from edgetl.device.runner.sinks.spool import Numbered, Spool, SpoolFullError
from edgetl.device.runner.waiting import Backoff

logger = logging.getLogger("edgetl.run")

# Records in memory. Further records go to the spool; without a spool the runner waits.
MEMORY_RECORDS = 1000


class RejectedError(Exception):
    """The receiver refused a record as invalid. Sending it again would fail again."""


class Connection(Protocol):
    """Connection to a receiver.

    Attributes:
        batch: number of records of one ``send``.
    """

    batch: int

    def send(self, records: Sequence[bytes]) -> None:
        """Send records and wait until the receiver has confirmed all of them.

        Raises:
            OSError: they were not confirmed. All of them are sent again.
            RejectedError: the receiver refused them as invalid.
        """

    def close(self) -> None:
        """Close the connection."""


class Outbox:
    """Sink with a queue. Records are delivered at least once, in order; ``id`` identifies a repeated delivery.

    The queue is in memory. When it is full, its records and all further records go to the spool until the spool is empty again.

    Args:
        name: address of the receiver, without password.
        connect: function that opens a connection. It raises ``OSError``.
        spool: queue on the disk, or none.
        memory_records: largest number of records in memory.
    """

    def __init__(self, name: str, connect: Callable[[], Connection], spool: Spool | None, *, memory_records: int = MEMORY_RECORDS) -> None:
        self._name, self._connect, self._spool, self._limit = name, connect, spool, memory_records
        self._memory: deque[Numbered] = deque()
        self._number = spool.last_number if spool else 0
        self._changed = threading.Condition()
        self._closing = False
        self._deadline = float("inf")
        self._delivered = self._rejected = self._lost = 0
        self._problem = ""
        self._thread = threading.Thread(target=self._deliver, name=f"sink {name}", daemon=True)
        self._thread.start()

    def put(self, record: Record) -> bool:
        """Add a record to the queue. Return false if memory and spool are full."""
        data = record.to_json()
        with self._changed:
            self._number += 1
            numbered = (self._number, data)
            spooling = self._spool is not None and self._spool.count > 0
            if len(self._memory) < self._limit and not spooling:
                self._memory.append(numbered)
            elif not self._to_spool([*self._memory, numbered]):
                return False
            self._changed.notify()
        return True

    def status(self) -> SinkStatus:
        """Return the state of the sink."""
        with self._changed:
            waiting = len(self._memory) + (self._spool.count if self._spool else 0)
            return SinkStatus(
                name=self._name,
                delivered=self._delivered,
                waiting=waiting,
                rejected=self._rejected,
                lost=self._lost,
                problem=self._problem,
            )

    def close(self, timeout_s: float) -> None:
        """Deliver the queue within ``timeout_s`` seconds. The rest goes to the spool. Without a spool it is lost, which is logged."""
        with self._changed:
            self._closing = True
            self._deadline = time.monotonic() + timeout_s
            self._changed.notify()
        self._thread.join(timeout_s)
        with self._changed:
            self._deadline = 0.0  # a delivery in progress removes nothing from now on
            if self._memory and not self._to_spool(list(self._memory)):
                self._lost = len(self._memory)
                logger.error("%s: %d records are lost: %s. Set --spool to keep them on the disk.", self._name, self._lost, self._problem)
            if self._spool:
                if self._spool.count:
                    logger.warning("%s: %d records stay in the spool for the next start.", self._name, self._spool.count)
                self._spool.close()

    def _to_spool(self, records: list[Numbered]) -> bool:
        if self._spool is None:
            return False
        try:
            self._spool.add(records)
        except SpoolFullError as error:
            self._problem = self._problem or f"the spool is full: {error}"
            return False
        self._memory.clear()
        return True

    def _deliver(self) -> None:
        """Deliver until the queue is empty and the outbox closes, or its deadline has passed."""
        connection: Connection | None = None
        batch: list[Numbered] = []
        backoff = Backoff()
        while True:
            try:
                batch = self._next(connection.batch if connection else 1)
                if not batch:
                    break
                connection = connection or self._connect()
                connection.send([data for _, data in batch])
            except RejectedError as error:
                logger.error("%s refused a record: %s. It is not sent again.", self._name, error)
                self._remove(batch, rejected=True)
            except OSError as error:
                _close(connection)
                connection = None
                self._pause(str(error), backoff.next())
            else:
                backoff.reset()
                self._remove(batch)
        _close(connection)

    def _next(self, count: int) -> list[Numbered]:
        """Wait for records and return the oldest ones; none at the end."""
        with self._changed:
            while True:
                if time.monotonic() > self._deadline:
                    return []
                if self._spool and self._spool.count:
                    return self._spool.first(count)
                if self._memory:
                    return [self._memory[index] for index in range(min(count, len(self._memory)))]
                if self._closing:
                    return []
                self._changed.wait()

    def _remove(self, batch: list[Numbered], *, rejected: bool = False) -> None:
        last = batch[-1][0]
        with self._changed:
            if time.monotonic() > self._deadline:
                return
            self._problem = ""
            if rejected:
                self._rejected += len(batch)
            else:
                self._delivered += len(batch)
            while self._memory and self._memory[0][0] <= last:
                self._memory.popleft()
            # The records may have moved to the spool while they were sent.
            if self._spool and self._spool.count:
                with suppress(OSError):  # they are sent again
                    self._spool.remove(last)

    def _pause(self, reason: str, seconds: float) -> None:
        with self._changed:
            if not self._problem:
                logger.warning("%s does not take records: %s. They wait in the queue.", self._name, reason)
            self._problem = reason
            end, closing = time.monotonic() + seconds, self._closing
            # ``close`` ends the pause: there is one more attempt at once.
            while self._closing == closing and (left := min(end, self._deadline) - time.monotonic()) > 0:
                self._changed.wait(left)


def _close(connection: Connection | None) -> None:
    if connection is not None:
        with suppress(OSError):
            connection.close()
