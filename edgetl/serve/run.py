"""Server process: uvicorn, signals, reload, and draining."""

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
from edgetl.serve.connections.listener import accept_last, bind
from edgetl.serve.connections.middleware import AccessMiddleware, RejectionLog, log_refused, read_token
from edgetl.serve.page import page_paths
from edgetl.serve.protocol.models import Models
from edgetl.serve.routes import Server
from edgetl.serve.service import Service

logger = logging.getLogger("edgetl.serve")

# After SIGTERM the server says for so long that it is not ready, and still answers: whoever sends requests looks every second or so.
NOT_READY_S = 1.0
# Then requests in progress have this long to end.
DRAIN_S = 20
# Connections that the system keeps until they are accepted, and those accepted before others are looked at: by default asyncio would accept
# the whole backlog at once, beyond the descriptors that there are.
_BACKLOG = 1024
_ACCEPTED_AT_ONCE = 32
# A TLS handshake that takes longer is none.
_HANDSHAKE_S = 5.0
# Descriptors that are no client's, or a client's that is being let go.
_OWN_DESCRIPTORS = 128


# Paths without a token: load balancers use them, and they return nothing about a model.
_HEALTH_PATHS = frozenset({"/v2/health/live", "/v2/health/ready"})


def serve(bundles: Sequence[Path], config: ServeConfig, *, started: Callable[[Models], None]) -> None:
    """Serve until SIGTERM or SIGINT: readiness becomes false, a second later no new connection is accepted, and open requests finish.

    A second signal ends at once. SIGHUP reloads the bundles.

    Args:
        bundles: each is a model.
        config: address, workers, limits and access.
        started: called when the server accepts requests.

    Raises:
        EdgetlError: a bundle cannot be served.
        ConfigError: the token cannot be read, or the address is not available.
    """
    token = read_token(config.token_file) if config.token_file else None
    with bind(config.host, config.port) as listener, suppress(asyncio.CancelledError):
        asyncio.run(_serve(bundles, config, token, listener, started))


async def _serve(
    bundles: Sequence[Path], config: ServeConfig, token: bytes | None, listener: socket.socket, started: Callable[[Models], None]
) -> None:
    # A signal that comes while bundles are loaded ends the process as it always would.
    service = Service(bundles, config)
    await service.start()
    try:
        server = Server(service, config)
        _prepare_connections(server)
        app = AccessMiddleware(server.app(), token=token, open_paths=_HEALTH_PATHS | page_paths())
        draining = _Draining(_uvicorn_config(app, config), server, lambda: started(service.pool.models))
        for number in (signal.SIGTERM, signal.SIGINT):
            # Until uvicorn handles signals itself; after its drain it raises them again for whoever did before, and that ends nothing.
            signal.signal(number, draining.stop_early)
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, service.request_reload)
        if config.watch:
            service.watch()
        listener.setblocking(False)
        asyncio.get_running_loop().set_exception_handler(_LoopErrors())
        # What was loaded stays; the collector need not look through it again and again while requests wait.
        gc.collect()
        gc.freeze()
        await draining.serve(sockets=[listener])
    finally:
        await service.close()


def _prepare_connections(server: Server) -> None:
    """Set the limits and callbacks of all connections of this process."""
    Connection.most = _most_connections()
    Connection.refused = staticmethod(partial(_refused, server))
    Connection.full = staticmethod(lambda: server.full)
    Connection.draining = False
    Connection.rejected = staticmethod(partial(_count_rejected, server.metrics.rejected.labels("queue full"), RejectionLog()))


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


def _refused(server: Server, client: str, status: int) -> None:
    server.metrics.malformed.labels(str(status)).inc()
    log_refused(client, status)


def _count_rejected(counter: Counter, log: RejectionLog, client: str) -> None:
    counter.inc()
    log.add(client)


class _LoopErrors:
    """What the event loop meets that is nobody's request, such as no descriptor left for a new connection: at most a line a second."""

    def __init__(self) -> None:
        self._last = 0.0

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if loop.time() - self._last >= 1.0:
            self._last = loop.time()
            logger.error("%s: %s", context.get("message"), context.get("exception"))


def _most_connections() -> int:
    """As many connections as the system lets this process open, up to 4096."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4096 + _OWN_DESCRIPTORS
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft < allowed:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
            soft = allowed
    return max(8, min(soft, wanted) - _OWN_DESCRIPTORS)


class _Draining(uvicorn.Server):
    """Readiness falls before connections are refused, and no connection that the system accepted is dropped."""

    def __init__(self, config: uvicorn.Config, server: Server, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._server, self._started = server, started
        self.servers: list[asyncio.Server] = []

    def stop_early(self, _sig: int, _frame: FrameType | None) -> None:
        """A signal before there is anything to drain."""
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen."""
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
        """A signal: the first begins the drain, the second ends it."""
        if self._server.draining:
            self.should_exit = self.force_exit = True
            return
        self._server.draining = Connection.draining = True
        asyncio.get_running_loop().call_later(NOT_READY_S, super().handle_exit, sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take what waits at the listening socket, close it, and end when everything is answered."""
        loop = asyncio.get_running_loop()
        for listener in sockets or []:
            handshakes = [
                loop.create_task(loop.connect_accepted_socket(self._protocol, accepted, **self._tls()))
                async for accepted in accept_last(listener)
            ]
            # A TLS handshake may fail; the others go on.
            await asyncio.gather(*handshakes, return_exceptions=True)
        await super().shutdown(sockets)

    def _protocol(self) -> Connection:
        return Connection(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)
