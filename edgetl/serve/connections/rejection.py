"""Responses that no route writes: a request that is refused before it is complete, and 503 while the queue is full."""

from __future__ import annotations

import json
from collections.abc import Iterable

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from edgetl.serve.connections.middleware import REQUEST_ID, SOUND_ID

BUSY = "too many requests wait; try again."
RETRY_AFTER_S = 1
_BUSY_BODY = b"\r\n" + json.dumps({"error": BUSY}, separators=(",", ":")).encode()
_BUSY_HEAD = STATUS_LINE[503] + b"content-type: application/json\r\nretry-after: %d\r\ncontent-length: %d\r\n" % (
    RETRY_AFTER_S,
    len(_BUSY_BODY) - 2,
)


class RefusedError(Exception):
    """A request that is not read any further: ``status`` and ``reason`` of the response."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


def refusal(error: RefusedError) -> bytes:
    """The whole response to a refused request; the connection closes behind it."""
    body = json.dumps({"error": error.reason}, separators=(",", ":")).encode()
    return STATUS_LINE[error.status] + b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%s" % (
        len(body),
        body,
    )


def busy(headers: Iterable[tuple[bytes, bytes]], *, last: bool) -> bytes:
    """503 as cheaply as possible, so that the requests that are computed stay fast; ``last`` announces that the connection closes."""
    given = next((value for key, value in headers if key == REQUEST_ID), b"")
    name = b"x-request-id: %s\r\n" % given if SOUND_ID.fullmatch(given) else b""
    return b"".join((_BUSY_HEAD, name, b"connection: close\r\n" if last else b"", _BUSY_BODY))
