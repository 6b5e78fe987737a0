"""Stop requests: SIGTERM or Ctrl-C during a training ends it after the current step, and its state is saved."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from edgetl.errors import StoppedError


class StopRequest:
    """Signal handler: while entered, the first SIGTERM or SIGINT (Ctrl-C) sets ``asked``.

    A second SIGTERM ends the process at once; for a second SIGINT the former handler runs. It has an effect in the main thread only. An
    ignored SIGINT (``nohup``) stays ignored.
    """

    def __init__(self) -> None:
        self.asked = False
        self.number = signal.SIGTERM
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            found = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
            self._before = {number: handler for number, handler in found.items() if handler is not signal.SIG_IGN}
            self.install()
        return self

    def install(self) -> None:
        """Take the signals again: Lightning puts a handler of its own around ours when a training starts, which ends it at once."""
        for number in self._before:
            signal.signal(number, self._ask)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGTERM:
            os._exit(StoppedError.exit_code)
        before = self._before[signal.Signals(number)]
        if self.asked and callable(before):
            before(number, frame)
        self.asked, self.number = True, signal.Signals(number)
