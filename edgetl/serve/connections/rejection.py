"""Error responses outside the routes: malformed requests, and 503 while the queue is full."""

from __future__ import annotations

import json
from collections.abc import Iterable

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from edgetl.serve.connections.middleware import REQUEST_ID, VALID_ID

BUSY = "the request queue is full. Try again."
RETRY_AFTER_S = 1
_BUSY_BODY = b"\r\n" + json.dumps({"error": BUSY}, separators=(",", ":")).encode()
_BUSY_HEAD = STATUS_LINE[503] + b"content-type: application/json\r\nretry-after: %d\r\ncontent-length: %d\r\n" % (
    RETRY_AFTER_S,
    len(_BUSY_BODY) - 2,
)


class MalformedRequestError(Exception):
    """Malformed request, with ``status`` and ``reason`` of the response. The server reads no more of its connection."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


def error_response(error: MalformedRequestError) -> bytes:
    """Return the complete response to a malformed request. The connection closes after it."""
    body = json.dumps({"error": error.reason}, separators=(",", ":")).encode()
    return STATUS_LINE[error.status] + b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%s" % (
        len(body),
        body,
    )


def busy_response(headers: Iterable[tuple[bytes, bytes]], *, last: bool) -> bytes:
    """Return a complete 503 response at low cost. ``last`` adds ``Connection: close``."""
    given = next((value for key, value in headers if key == REQUEST_ID), b"")
    id_header = b"x-request-id: %s\r\n" % given if VALID_ID.fullmatch(given) else b""
    return b"".join((_BUSY_HEAD, id_header, b"connection: close\r\n" if last else b"", _BUSY_BODY))
