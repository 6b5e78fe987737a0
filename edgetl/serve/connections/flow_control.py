"""Flow control of one connection: reading that stays paused, and a transport whose ``close`` lingers."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from uvicorn.protocols.http.flow_control import FlowControl


class Flow(FlowControl):
    """uvicorn's flow control; while ``held``, reading stays paused although a handler resumes it."""

    held = False

    def resume_reading(self) -> None:
        """Resume reading, unless it is held."""
        if not self.held:
            super().resume_reading()

    def hold(self, *, held: bool) -> None:
        """Pause or resume reading."""
        was, self.held = self.held, held
        if held:
            self.pause_reading()
        elif was:
            self.resume_reading()


class Lingering(Protocol):
    """A connection that is not closed before the client has read the response."""

    transport: asyncio.Transport

    @property
    def ending(self) -> bool:
        """True if nothing more will be written."""

    def linger(self) -> None:
        """Close."""


class Outlet:
    """The transport as a request's handler sees it: ``close`` waits until the client has read the response."""

    def __init__(self, connection: Lingering) -> None:
        self._connection = connection
        self.write = connection.transport.write

    def is_closing(self) -> bool:
        """True if nothing more will be written."""
        return self._connection.ending

    def close(self) -> None:
        """End the connection."""
        self._connection.linger()


class _Answered:
    """Placeholder for the handling of an answered request, which uvicorn expects."""

    response_complete = True
    disconnected = False
    message_event = asyncio.Event()


ANSWERED: Any = _Answered()
