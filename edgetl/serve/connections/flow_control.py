"""Flow control of one connection: paused reading and lingering close."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from uvicorn.protocols.http.flow_control import FlowControl


class Flow(FlowControl):
    """uvicorn's flow control with a hold. While ``held``, reading stays paused even if a handler resumes it."""

    held = False

    def resume_reading(self) -> None:
        """Resume reading, unless ``held``."""
        if not self.held:
            super().resume_reading()

    def hold(self, *, held: bool) -> None:
        """Pause or resume reading."""
        was_held, self.held = self.held, held
        if held:
            self.pause_reading()
        elif was_held:
            self.resume_reading()


class LingeringConnection(Protocol):
    """Interface of a connection with lingering close."""

    transport: asyncio.Transport

    @property
    def ending(self) -> bool:
        """True if nothing more will be written."""

    def linger(self) -> None:
        """Close after the client has read the response."""


class ResponseTransport:
    """Transport for the handler of a request. ``close`` is a lingering close."""

    def __init__(self, connection: LingeringConnection) -> None:
        self._connection = connection
        self.write = connection.transport.write

    def is_closing(self) -> bool:
        """True if nothing more will be written."""
        return self._connection.ending

    def close(self) -> None:
        """Close after the client has read the response."""
        self._connection.linger()


class _CompletedCycle:
    """Placeholder for uvicorn's request cycle after a complete response."""

    response_complete = True
    disconnected = False
    message_event = asyncio.Event()


COMPLETED: Any = _CompletedCycle()
