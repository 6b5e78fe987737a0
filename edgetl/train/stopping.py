"""A request to end that waits for a good moment: SIGTERM during a training lets the step end and the state be saved."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from edgetl.errors import StoppedError


class StopRequest:
    """While entered, the first SIGTERM sets ``asked``; a second one ends the process at once. In the main thread only."""

    def __init__(self) -> None:
        self.asked = False
        self._before: Any = None
        self._installed = False

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.getsignal(signal.SIGTERM)
            self._installed = True
            self.install()
        return self

    def install(self) -> None:
        """Take the signal again: Lightning puts a handler of its own around ours when a training starts, which ends it at once."""
        if self._installed:
            signal.signal(signal.SIGTERM, self._ask)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._installed:
            signal.signal(signal.SIGTERM, self._before)

    def _ask(self, _number: int, _frame: FrameType | None) -> None:
        if self.asked:
            os._exit(StoppedError.exit_code)
        self.asked = True
