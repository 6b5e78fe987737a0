"""Report of a runner whose store has no healthy release: health file, log and systemd status."""

from __future__ import annotations

import logging
import os
import time
from datetime import UTC, datetime
from pathlib import Path

from edgetl.core.files.atomic import write_text
from edgetl.device.runner.health import Failure, Health, State
from edgetl.device.runner.systemd import Notifier
from edgetl.errors import StorageError

logger = logging.getLogger("edgetl.run")


class NotReady:
    """Runner that waits for a release.

    Args:
        source: name of the source.
        notifier: connection to systemd.
        health: path of the health file, or none.
    """

    def __init__(self, source: str, notifier: Notifier, health: Path | None) -> None:
        self._source, self._notifier, self._path = source, notifier, health
        self._start, self._reason = time.monotonic(), ""

    def report(self, reason: str) -> None:
        """Report the reason: log it if it is new, write the health file, and send a sign of life."""
        if reason != self._reason:
            logger.error("not ready: %s", reason)
            # The start is complete: systemd would end a service that waits longer than TimeoutStartSec.
            self._notifier.ready(f"not ready: {reason}")
        self._reason = reason
        self._notifier.alive(f"not ready: {reason}")
        self._write("not ready")

    def stop(self) -> Health:
        """Report the end of the process, and return its health."""
        self._notifier.stopping()
        return self._write("stopped")

    def _write(self, state: State) -> Health:
        now, uptime_s = datetime.now(UTC).isoformat(timespec="milliseconds"), round(time.monotonic() - self._start, 1)
        failure = Failure(time=now, message=self._reason) if self._reason else None
        health = Health(time=now, pid=os.getpid(), state=state, uptime_s=uptime_s, source=self._source, last_error=failure)
        if self._path is not None:
            try:
                write_text(self._path, health.model_dump_json(indent=2) + "\n")
            except StorageError as error:
                logger.error("the health file was not written: %s", error)
        return health
