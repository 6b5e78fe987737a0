"""Request body reader with limits on size, time, rate, and total memory."""

from __future__ import annotations

import asyncio

from starlette.requests import ClientDisconnect, Request

from edgetl.errors import RequestError
from edgetl.serve.protocol.content import WINDOWS

# Grace period of a body, seconds, and the minimum rate after it (as in Apache's mod_reqtimeout).
GRACE_S = 5.0
MIN_BYTES_PER_S = 1000


def content_encoding(request: Request) -> str:
    """Return the Content-Encoding of the body.

    Raises:
        RequestError: 415 for an unknown encoding.
    """
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", *WINDOWS):
        raise RequestError(415, "the Content-Encoding is not supported. Use gzip, deflate, or no encoding.")
    return encoding


class BodyReader:
    """Reader of request bodies with a limit on their total memory. Arriving bodies do not count as admitted requests."""

    def __init__(self, *, max_bytes: int, max_total_bytes: int, timeout_s: float) -> None:
        """Set the limits.

        Args:
            max_bytes: largest body.
            max_total_bytes: memory of all arriving bodies together.
            timeout_s: time limit of one body.
        """
        self._max_bytes, self._max_total_bytes, self._timeout_s = max_bytes, max_total_bytes, timeout_s
        self._total_bytes = 0
        # Bytes of each arriving body, the oldest first.
        self._received: dict[asyncio.Timeout, int] = {}

    async def read(self, request: Request) -> bytes:
        """Read the body of a request. A compressed body stays compressed.

        Raises:
            RequestError: 400 if the client disconnects. 408 if the body is too slow, or is the oldest when the total memory is exceeded.
                413 if the body is too large.
        """
        declared = request.headers.get("content-length", "")
        if declared.isdigit() and int(declared) > self._max_bytes:
            raise RequestError(413, f"the body is larger than {self._max_bytes} bytes (--max-body-mb).")
        loop = asyncio.get_running_loop()
        start, timeout = loop.time(), asyncio.timeout(min(GRACE_S, self._timeout_s))
        try:
            async with timeout:
                self._received[timeout] = 0
                return await self._receive(request, timeout, start)
        except TimeoutError as error:
            raise RequestError(408, self._timeout_message(timeout, loop.time() - start)) from error
        except ClientDisconnect as error:
            raise RequestError(400, "the client disconnected.") from error
        finally:
            self._total_bytes -= self._received.pop(timeout, 0)

    async def _receive(self, request: Request, timeout: asyncio.Timeout, start: float) -> bytes:
        data = bytearray()
        async for chunk in request.stream():
            data += chunk
            if len(data) > self._max_bytes:
                raise RequestError(413, f"the body is larger than {self._max_bytes} bytes (--max-body-mb).")
            if timeout in self._received:
                self._received[timeout] += len(chunk)
                self._total_bytes += len(chunk)
                timeout.reschedule(start + min(self._timeout_s, GRACE_S + len(data) / MIN_BYTES_PER_S))
            if self._total_bytes > self._max_total_bytes:
                self._abort_oldest()
        return bytes(data)

    def _abort_oldest(self) -> None:
        oldest = next(iter(self._received))
        self._total_bytes -= self._received.pop(oldest)
        oldest.reschedule(asyncio.get_running_loop().time())

    def _timeout_message(self, timeout: asyncio.Timeout, elapsed_s: float) -> str:
        if timeout not in self._received:
            return "the arriving request bodies need too much memory, and this one is the oldest. Send the request again."
        if elapsed_s >= self._timeout_s:
            return f"the body did not arrive within {self._timeout_s:g} s."
        return f"the body arrived too slowly. The minimum rate after {GRACE_S:g} s is {MIN_BYTES_PER_S} bytes per second."
