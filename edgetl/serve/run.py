"""The process around the routes: uvicorn, a drain on SIGTERM, and clean errors for a port that is taken."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import FrameType

import uvicorn
from starlette.applications import Starlette

from edgetl.errors import ConfigError
from edgetl.serve.http import Server
from edgetl.serve.lane import Lane

# After SIGTERM the server says for so long that it is not ready, and still answers: whoever sends requests looks every second or so.
NOT_READY_S = 1.0
# Then requests in progress have this long to end.
DRAIN_S = 20
MAX_HEADER_BYTES = 32_768


def listen(server: Server, lane: Lane, host: str, port: int, *, started: Callable[[], None]) -> None:
    """Serve until SIGTERM or SIGINT; then readiness falls, a second later no new connection is taken, and what runs ends. A second signal
    ends at once.

    Raises:
        ConfigError: the address cannot be listened on.
    """
    listener = _bind(host, port)
    app = server.app()
    app.router.lifespan_context = _lifespan(started)
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, timeout_keep_alive=10, timeout_graceful_shutdown=DRAIN_S,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES, server_header=False, lifespan="on",
    )  # fmt: skip
    for number in (signal.SIGTERM, signal.SIGINT):
        # After its drain uvicorn raises the signal again for whoever handled it before; a drained server ends with 0.
        signal.signal(number, lambda *_: None)
    try:
        _Draining(config, server).run(sockets=[listener])
    finally:
        lane.close()
        listener.close()


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror or error}. Choose another --port or --host.") from error
    return listener


class _Draining(uvicorn.Server):
    """Readiness falls before connections are refused."""

    def __init__(self, config: uvicorn.Config, server: Server) -> None:
        super().__init__(config)
        self._server = server

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal: the first begins the drain, the second ends it."""
        if not self._server.ready:
            self.should_exit = self.force_exit = True
            return
        self._server.ready = False
        threading.Timer(NOT_READY_S, super().handle_exit, (sig, frame)).start()


def _lifespan(started: Callable[[], None]) -> Callable[[Starlette], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def life(_app: Starlette) -> AsyncIterator[None]:
        started()
        yield

    return life
