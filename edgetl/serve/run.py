"""The process around the routes: uvicorn, signals, a drain, and clean errors for a port that is taken."""

from __future__ import annotations

import asyncio
import gc
import logging
import resource
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from prometheus_client import Counter

from edgetl.serve.connections.connection import Connection
from edgetl.serve.connections.listener import accept_last, bind
from edgetl.serve.connections.middleware import Gate, TurnedAway, log_refused
from edgetl.serve.protocol.models import Models
from edgetl.serve.routes import Limits, Server
from edgetl.serve.service import Service, Staff
from edgetl.serve.workers.worker import Order

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


@dataclass(frozen=True)
class Address:
    """Where the server listens, and who may come in.

    Attributes:
        host: a name or an address.
        port: TCP.
        token: what clients must send; none lets everybody in.
        certificate: with its key, PEM; none speaks plain HTTP.
    """

    host: str
    port: int
    token: bytes | None = None
    certificate: tuple[Path, Path] | None = None

    @property
    def url(self) -> str:
        """For people."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http{'s' if self.certificate else ''}://{host}:{self.port}"


def serve(order: Order, staff: Staff, limits: Limits, address: Address, *, watch: bool = False, started: Callable[[Models], None]) -> None:
    """Serve until SIGTERM or SIGINT; then readiness falls, a second later no new connection is taken, and what runs ends. A second signal
    ends at once. SIGHUP loads the bundles anew.

    Args:
        order: what to serve.
        staff: by how many processes.
        limits: of requests.
        address: where.
        watch: load a bundle anew also whenever its path leads to another manifest.
        started: called once requests are answered.

    Raises:
        EdgetlError: a bundle cannot be served.
        ConfigError: the address cannot be listened on.
    """
    with bind(address.host, address.port) as listener, suppress(asyncio.CancelledError):
        asyncio.run(_serve(order, staff, limits, address, listener, watch=watch, started=started))


async def _serve(
    order: Order, staff: Staff, limits: Limits, address: Address, listener: socket.socket, *, watch: bool, started: Callable[[Models], None]
) -> None:
    # A signal that comes while bundles are loaded ends the process as it always would.
    service = Service(order, staff)
    await service.start()
    try:
        server = Server(service, limits)
        certificate, key = address.certificate or (None, None)
        Connection.most = _most_connections()
        Connection.refused = staticmethod(partial(_refused, server))
        Connection.full = staticmethod(lambda: server.full)
        Connection.draining = False
        Connection.turned_away = staticmethod(partial(_turned_away, server.meters.rejected.labels("queue full"), TurnedAway()))
        config = uvicorn.Config(
            Gate(server.app(), address.token), http=Connection, ws="none", lifespan="off", log_config=None, access_log=False,
            timeout_keep_alive=30, timeout_graceful_shutdown=DRAIN_S, server_header=False,
            ssl_certfile=certificate, ssl_keyfile=key, proxy_headers=False,
        )  # fmt: skip
        draining = _Draining(config, server, lambda: started(service.team.models))
        for number in (signal.SIGTERM, signal.SIGINT):
            # Until uvicorn handles signals itself; after its drain it raises them again for whoever did before, and that ends nothing.
            signal.signal(number, draining.asked_early)
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, service.ask_reload)
        if watch:
            service.watch()
        listener.setblocking(False)
        asyncio.get_running_loop().set_exception_handler(_Troubles())
        # What was loaded stays; the collector need not look through it again and again while requests wait.
        gc.collect()
        gc.freeze()
        await draining.serve(sockets=[listener])
    finally:
        await service.close()


def _refused(server: Server, client: str, status: int) -> None:
    server.meters.malformed.labels(str(status)).inc()
    log_refused(client, status)


def _turned_away(counter: Counter, log: TurnedAway, client: str) -> None:
    counter.inc()
    log.add(client)


class _Troubles:
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

    def asked_early(self, _sig: int, _frame: FrameType | None) -> None:
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
