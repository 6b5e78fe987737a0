"""Bodies of requests as they arrive: their length, their time, their rate, and the memory of all together."""

from __future__ import annotations

import asyncio

from starlette.requests import ClientDisconnect, Request

from edgetl.errors import RequestError
from edgetl.serve.protocol.content import WINDOWS

# Grace period, and minimum rate after it, of a body (as in Apache's mod_reqtimeout).
GRACE_S = 5.0
MIN_BYTES_PER_S = 1000


def content_encoding(request: Request) -> str:
    """The body's compression.

    Raises:
        RequestError: 415 an unknown one.
    """
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", *WINDOWS):
        raise RequestError(415, "Content-Encoding may be gzip, deflate, or none.")
    return encoding


class Bodies:
    """Bodies that are arriving. They occupy no place of a request, and their total memory is limited."""

    def __init__(self, *, max_bytes: int, together: int, timeout_s: float) -> None:
        """Limits: bytes of one body, bytes of all that are being read, seconds for one."""
        self._max_bytes, self._together, self._timeout_s = max_bytes, together, timeout_s
        self._held = 0
        # In the order in which they began.
        self._reading: dict[asyncio.Timeout, int] = {}

    async def read(self, request: Request) -> bytes:
        """The body of a request, as it was sent.

        Raises:
            RequestError: 408 too slow, or the oldest while all together hold too much; 413 too large.
        """
        declared = request.headers.get("content-length", "")
        if declared.isdigit() and int(declared) > self._max_bytes:
            raise RequestError(413, f"the body may have {self._max_bytes} bytes.")
        loop = asyncio.get_running_loop()
        begun, limit = loop.time(), asyncio.timeout(min(GRACE_S, self._timeout_s))
        try:
            async with limit:
                self._reading[limit] = 0
                return await self._receive(request, limit, begun)
        except TimeoutError as error:
            raise RequestError(408, self._slow(limit, loop.time() - begun)) from error
        except ClientDisconnect as error:
            raise RequestError(400, "the client disconnected.") from error
        finally:
            self._held -= self._reading.pop(limit, 0)

    async def _receive(self, request: Request, limit: asyncio.Timeout, begun: float) -> bytes:
        data = bytearray()
        async for chunk in request.stream():
            data += chunk
            if len(data) > self._max_bytes:
                raise RequestError(413, f"the body may have {self._max_bytes} bytes.")
            if limit in self._reading:
                self._reading[limit] += len(chunk)
                self._held += len(chunk)
                limit.reschedule(begun + min(self._timeout_s, GRACE_S + len(data) / MIN_BYTES_PER_S))
            if self._held > self._together:
                self._cut_off_oldest()
        return bytes(data)

    def _cut_off_oldest(self) -> None:
        oldest = next(iter(self._reading))
        self._held -= self._reading.pop(oldest)
        oldest.reschedule(asyncio.get_running_loop().time())

    def _slow(self, limit: asyncio.Timeout, took: float) -> str:
        if limit not in self._reading:
            return "the bodies of all requests take too much memory, and this one is the oldest; send it again."
        if took >= self._timeout_s:
            return f"the body did not arrive within {self._timeout_s:g} s."
        return f"the body arrived too slowly: after {GRACE_S:g} s at least {MIN_BYTES_PER_S} bytes a second must arrive."
