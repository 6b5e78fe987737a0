"""Access middleware: bearer token, request ids, access log."""

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
VALID_ID = re.compile(rb"[\x20-\x7e]{1,128}")
_MIN_TOKEN = 16
_MAX_LOGGED_PATH = 200


def read_token(path: Path) -> bytes:
    """Read the bearer token from a file with one line.

    Raises:
        ConfigError: the file cannot be read, or is not one line of at least 16 visible ASCII characters.
    """
    try:
        with open_plain(path) as file:
            token: bytes = file.read(4097).strip()
    except OSError as error:
        raise ConfigError(f"cannot read the token file {path}: {error.strerror}.") from error
    if not re.fullmatch(rb"[\x21-\x7e]{%d,4096}" % _MIN_TOKEN, token):
        raise ConfigError(
            f"the token file {path} must contain one line of at least {_MIN_TOKEN} visible ASCII characters. Create a token with: "
            "openssl rand -hex 32"
        )
    return token


@dataclass(frozen=True)
class _Entry:
    """Entry of the access log. ``status`` is 0 if the client closed the connection before a response."""

    client: str
    status: int
    id: str = ""
    method: str = ""
    path: str = ""
    bytes: int = 0
    seconds: float = 0.0
    count: int = 1

    def write(self) -> None:
        """Log one line of JSON. JSON escapes keep control characters out of the line."""
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
    """ASGI middleware for the bearer token, the request id, and the access log. ``open_paths`` need no token."""

    def __init__(self, app: ASGIApp, *, token: bytes | None = None, open_paths: frozenset[str] = frozenset()) -> None:
        self._app, self._token, self._open = app, token, open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.monotonic()
        headers = dict(scope["headers"])
        given = headers.get(REQUEST_ID)
        is_valid = given is None or VALID_ID.fullmatch(given)
        request_id = given if given is not None and is_valid else os.urandom(8).hex().encode()
        status, size = 0, 0

        async def send_and_count(message: Message) -> None:
            nonlocal status, size
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (REQUEST_ID, request_id), (b"x-content-type-options", b"nosniff")]
            else:
                size += len(message.get("body", b""))
            await send(message)

        try:
            if not is_valid:
                await _respond(send_and_count, 400, "the header X-Request-Id must be 1 to 128 printable ASCII characters.")
            elif self._token is not None and scope["path"] not in self._open and not self._allowed(headers.get(b"authorization", b"")):
                await _respond(
                    send_and_count,
                    401,
                    "a token is required. Send the header: Authorization: Bearer TOKEN",
                    (b"www-authenticate", b"Bearer"),
                )
            else:
                await self._app(scope, receive, send_and_count)
        finally:
            if access.isEnabledFor(logging.INFO):
                client, seconds = (scope["client"] or ("",))[0], time.monotonic() - start
                _Entry(client, status, request_id.decode(), scope["method"], scope["path"], size, seconds).write()

    def _allowed(self, given: bytes) -> bool:
        kind, _, token = given.partition(b" ")
        # The comparison takes the same time for every token of this length.
        return kind.lower() == b"bearer" and hmac.compare_digest(token.strip(), self._token or b"")


async def _respond(send: Send, status: int, text: str, *headers: tuple[bytes, bytes]) -> None:
    body = json.dumps({"error": text}, separators=(",", ":")).encode()
    plain = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *headers]
    await send({"type": "http.response.start", "status": status, "headers": plain})
    await send({"type": "http.response.body", "body": body})


def log_malformed(client: str, status: int) -> None:
    """Log a malformed request, which no route handled."""
    if access.isEnabledFor(logging.INFO):
        _Entry(client, status).write()


class RejectionLog:
    """Access log of requests rejected with 503: one line per second and client, with their count.

    A line for each request would take 10 % of the server's time under overload.
    """

    _MAX_CLIENTS = 1000

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def add(self, client: str) -> None:
        """Count one rejected request."""
        if not access.isEnabledFor(logging.INFO):
            return
        if not self._counts:
            asyncio.get_running_loop().call_later(1.0, self._write)
        self._counts[client if len(self._counts) < self._MAX_CLIENTS or client in self._counts else "others"] += 1

    def _write(self) -> None:
        for client, count in self._counts.items():
            _Entry(client, 503, count=count).write()
        self._counts.clear()
