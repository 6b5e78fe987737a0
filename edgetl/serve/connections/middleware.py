"""Access middleware: bearer token, request ids, and the access log."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import os
import re
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgetl.core.files.regular import open_plain
from edgetl.errors import ConfigError

access = logging.getLogger("edgetl.access")

REQUEST_ID = b"x-request-id"
SOUND_ID = re.compile(rb"[\x20-\x7e]{1,128}")
_MIN_TOKEN = 16
_MAX_LOGGED_PATH = 200


def read_token(path: Path) -> bytes:
    """The token in a file: one line.

    Raises:
        ConfigError: it cannot be read, or is shorter than 16 characters, or not one line of visible ASCII.
    """
    try:
        with open_plain(path) as file:
            token: bytes = file.read(4097).strip()
    except OSError as error:
        raise ConfigError(f"cannot read the token file {path}: {error.strerror}.") from error
    if not re.fullmatch(rb"[\x21-\x7e]{%d,4096}" % _MIN_TOKEN, token):
        raise ConfigError(
            f"the token file {path} must hold one line of at least {_MIN_TOKEN} visible ASCII characters; make one with: "
            "openssl rand -hex 32"
        )
    return token


@dataclass(frozen=True)
class _Entry:
    """Entry of the access log; ``status`` 0: the client closed the connection before a response."""

    client: str
    status: int
    id: str = ""
    method: str = ""
    path: str = ""
    bytes: int = 0
    seconds: float = 0.0
    count: int = 1

    def write(self) -> None:
        """Log one line of JSON, whose escapes leave no control character in it."""
        now = time.time()
        values = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}Z",
            **{name: getattr(self, name) for name in ("id", "client", "method")},
            "path": quote(self.path, safe="/:.")[:_MAX_LOGGED_PATH],
            **{name: getattr(self, name) for name in ("status", "count", "bytes")},
            "ms": round(self.seconds * 1000, 3),
        }
        access.info(json.dumps(values))


class AccessMiddleware:
    """ASGI middleware: bearer token, request id, access log. ``open_paths`` need no token."""

    def __init__(self, app: ASGIApp, *, token: bytes | None = None, open_paths: frozenset[str] = frozenset()) -> None:
        self._app, self._token, self._open = app, token, open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = time.monotonic()
        headers = dict(scope["headers"])
        given = headers.get(REQUEST_ID)
        sound = given is None or SOUND_ID.fullmatch(given)
        name = given if given is not None and sound else os.urandom(8).hex().encode()
        status, size = 0, 0

        async def counted(message: Message) -> None:
            nonlocal status, size
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (REQUEST_ID, name), (b"x-content-type-options", b"nosniff")]
            else:
                size += len(message.get("body", b""))
            await send(message)

        try:
            if not sound:
                await _respond(counted, 400, "the header X-Request-Id takes 1 to 128 printable ASCII characters.")
            elif self._token is not None and scope["path"] not in self._open and not self._allowed(headers.get(b"authorization", b"")):
                await _respond(counted, 401, "this needs the server's token: Authorization: Bearer TOKEN", (b"www-authenticate", b"Bearer"))
            else:
                await self._app(scope, receive, counted)
        finally:
            if access.isEnabledFor(logging.INFO):
                client, seconds = (scope["client"] or ("",))[0], time.monotonic() - begun
                _Entry(client, status, name.decode(), scope["method"], scope["path"], size, seconds).write()

    def _allowed(self, given: bytes) -> bool:
        kind, _, token = given.partition(b" ")
        # Constant time for tokens of one length, whatever they share.
        return kind.lower() == b"bearer" and hmac.compare_digest(token.strip(), self._token or b"")


async def _respond(send: Send, status: int, text: str, *headers: tuple[bytes, bytes]) -> None:
    body = json.dumps({"error": text}, separators=(",", ":")).encode()
    plain = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *headers]
    await send({"type": "http.response.start", "status": status, "headers": plain})
    await send({"type": "http.response.body", "body": body})


def log_refused(client: str, status: int) -> None:
    """Log a connection that was closed before it was a request."""
    if access.isEnabledFor(logging.INFO):
        _Entry(client, status).write()


class RejectionLog:
    """Log of requests that are rejected because the queue is full: one line a second for each client, with their number.

    A line for each request would take a tenth of the time that responses need just then.
    """

    _MOST_CLIENTS = 1000

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def add(self, client: str) -> None:
        """Count one rejected request."""
        if not access.isEnabledFor(logging.INFO):
            return
        if not self._counts:
            asyncio.get_running_loop().call_later(1.0, self._write)
        self._counts[client if len(self._counts) < self._MOST_CLIENTS or client in self._counts else "others"] += 1

    def _write(self) -> None:
        for client, count in self._counts.items():
            _Entry(client, 503, count=count).write()
        self._counts.clear()
