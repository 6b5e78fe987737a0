"""Server process: uvicorn, signals, reload, graceful shutdown."""

from __future__ import annotations

import asyncio
import gc
import logging
import resource
import signal
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from prometheus_client import Counter

from edgetl.serve.config import ServeConfig
from edgetl.serve.connections.connection import Connection
from edgetl.serve.connections.listener import accept_pending, bind
from edgetl.serve.connections.middleware import AccessMiddleware, RejectionLog, log_malformed, read_token
from edgetl.serve.metrics import Monitor
from edgetl.serve.page import page_paths
from edgetl.serve.protocol.models import Models
from edgetl.serve.routes import Server
from edgetl.serve.service import Service

logger = logging.getLogger("edgetl.serve")

# After SIGTERM, the server accepts requests for this time while readiness is false. Load balancers check readiness about once per second.
NOT_READY_S = 1.0
# Time limit for requests in progress after that, seconds.
DRAIN_S = 20
# Length of the system's accept queue, and connections accepted per turn of the event loop. By default, asyncio accepts the whole queue at
# once, which may exceed the available descriptors.
_BACKLOG = 1024
_ACCEPTED_AT_ONCE = 32
# Time limit for a TLS handshake, seconds.
_HANDSHAKE_S = 5.0
# Descriptors for files, workers, and connections that are closing.
_OWN_DESCRIPTORS = 128


# Paths without a token. Load balancers use them, and their responses contain nothing about a model.
_HEALTH_PATHS = frozenset({"/v2/health/live", "/v2/health/ready"})


def serve(bundles: Sequence[Path], config: ServeConfig, *, started: Callable[[Models], None], monitor: Monitor | None = None) -> None:
    """Serve bundles until SIGTERM or SIGINT, then shut down gracefully.

    At shutdown, readiness becomes false. One second later the server accepts no new connections and finishes open requests. A second signal
    ends the process immediately. SIGHUP reloads the bundles.

    Args:
        bundles: bundle folders, one per model version.
        config: address, workers, limits, access.
        started: callback, called when the server accepts requests.
        monitor: observer of all predictions.

    Raises:
        EdgetlError: a bundle cannot be served or monitored.
        ConfigError: the token file cannot be read, or the address is not available.
    """
    token = read_token(config.token_file) if config.token_file else None
    with bind(config.host, config.port) as listener, suppress(asyncio.CancelledError):
        asyncio.run(_serve(Service(bundles, config, statistics=monitor is not None), config, token, listener, started, monitor))


async def _serve(
    service: Service,
    config: ServeConfig,
    token: bytes | None,
    listener: socket.socket,
    started: Callable[[Models], None],
    monitor: Monitor | None,
) -> None:
    # While the bundles are loaded, signals have their default handlers.
    await service.start()
    try:
        if monitor is not None:
            for model in service.pool.models.all():
                monitor.add(model.manifest)
        server = Server(service, config, monitor)
        _configure_connections(server)
        app = AccessMiddleware(server.app(), token=token, open_paths=_HEALTH_PATHS | page_paths())
        web_server = _GracefulServer(_uvicorn_config(app, config), server, lambda: started(service.pool.models))
        for number in (signal.SIGTERM, signal.SIGINT):
            # Used until uvicorn installs its handlers. After the shutdown, uvicorn restores this handler and raises the signal again.
            signal.signal(number, web_server.handle_early_signal)
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, service.request_reload)
        listener.setblocking(False)
        asyncio.get_running_loop().set_exception_handler(_LoopErrorLog())
        # Exclude permanent objects from garbage collection, which would delay requests.
        gc.collect()
        gc.freeze()
        await web_server.serve(sockets=[listener])
    finally:
        await service.close()


def _configure_connections(server: Server) -> None:
    """Set the limits and callbacks of all connections."""
    Connection.max_connections = _max_connections()
    Connection.on_malformed = staticmethod(partial(_count_malformed, server))
    Connection.is_full = staticmethod(lambda: server.is_full)
    Connection.draining = False
    Connection.on_rejected = staticmethod(partial(_count_rejected, server.metrics.rejected.labels("queue full"), RejectionLog()))


def _uvicorn_config(app: AccessMiddleware, config: ServeConfig) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=DRAIN_S,
        server_header=False,
        ssl_certfile=config.tls_cert,
        ssl_keyfile=config.tls_key,
        proxy_headers=False,
    )


def _count_malformed(server: Server, client: str, status: int) -> None:
    server.metrics.malformed.labels(str(status)).inc()
    log_malformed(client, status)


def _count_rejected(counter: Counter, log: RejectionLog, client: str) -> None:
    counter.inc()
    log.add(client)


class _LoopErrorLog:
    """Exception handler of the event loop, for errors outside requests, such as missing descriptors. Logs at most one line per second."""

    def __init__(self) -> None:
        self._last = 0.0

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if loop.time() - self._last >= 1.0:
            self._last = loop.time()
            logger.error("%s: %s", context.get("message"), context.get("exception"))


def _max_connections() -> int:
    """Raise the limit of descriptors, and return the limit of connections: at most 4096."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4096 + _OWN_DESCRIPTORS
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft < allowed:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
            soft = allowed
    return max(8, min(soft, wanted) - _OWN_DESCRIPTORS)


class _GracefulServer(uvicorn.Server):
    """uvicorn server with graceful shutdown.

    Readiness becomes false before the server refuses connections. Connections in the accept queue are served.
    """

    def __init__(self, config: uvicorn.Config, server: Server, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._server, self._started = server, started
        self.servers: list[asyncio.Server] = []

    def handle_early_signal(self, _sig: int, _frame: FrameType | None) -> None:
        """Handle a signal before the server accepts connections."""
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen on the sockets."""
        await self.lifespan.startup()
        loop = asyncio.get_running_loop()
        for listener in sockets or []:
            self.servers.append(await loop.create_server(self._protocol, sock=listener, backlog=_ACCEPTED_AT_ONCE, **self._tls()))
            listener.listen(_BACKLOG)
        self.started = True
        if not self.should_exit:
            self._started()

    def _tls(self) -> dict[str, Any]:
        return {"ssl": self.config.ssl, "ssl_handshake_timeout": _HANDSHAKE_S} if self.config.is_ssl else {}

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handle a signal. The first begins the graceful shutdown, the second ends it."""
        if self._server.draining:
            self.should_exit = self.force_exit = True
            return
        self._server.draining = Connection.draining = True
        asyncio.get_running_loop().call_later(NOT_READY_S, super().handle_exit, sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept the connections in the accept queue, close the listening socket, and finish all requests."""
        loop = asyncio.get_running_loop()
        for listener in sockets or []:
            handshakes = [
                loop.create_task(loop.connect_accepted_socket(self._protocol, connection, **self._tls()))
                async for connection in accept_pending(listener)
            ]
            # A failed TLS handshake does not affect other connections.
            await asyncio.gather(*handshakes, return_exceptions=True)
        await super().shutdown(sockets)

    def _protocol(self) -> Connection:
        return Connection(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)
