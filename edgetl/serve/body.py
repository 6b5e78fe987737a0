"""Reading a request's body within limits: its length, its time, and what it becomes when it is decompressed."""

from __future__ import annotations

import asyncio
import zlib

from starlette.requests import ClientDisconnect, Request

from edgetl.errors import RequestError

# zlib's window sizes: gzip's header, and zlib's own.
_WINDOWS = {"gzip": 31, "deflate": 15}


async def read_body(request: Request, *, max_bytes: int, timeout_s: float) -> bytes:
    """The body, decompressed.

    Raises:
        RequestError: 400 malformed, 408 too slow, 413 too large (also once it is decompressed), 415 an unknown encoding.
    """
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", *_WINDOWS):
        raise RequestError(415, "Content-Encoding may be gzip, deflate, or none.")
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > max_bytes:
        raise RequestError(413, f"the body may have {max_bytes} bytes.")
    try:
        data = await asyncio.wait_for(_receive(request, max_bytes), timeout_s)
    except TimeoutError as error:
        raise RequestError(408, f"the body did not arrive within {timeout_s:g} s.") from error
    except ClientDisconnect as error:
        raise RequestError(400, "the client went away.") from error
    return data if encoding == "identity" else _decompress(data, _WINDOWS[encoding], max_bytes)


async def _receive(request: Request, max_bytes: int) -> bytes:
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > max_bytes:
            raise RequestError(413, f"the body may have {max_bytes} bytes.")
    return bytes(data)


def _decompress(data: bytes, window: int, max_bytes: int) -> bytes:
    """Never more than ``max_bytes``, however little ``data`` is."""
    machine = zlib.decompressobj(window)
    try:
        result = machine.decompress(data, max_bytes + 1)
    except zlib.error as error:
        raise RequestError(400, f"the body is not what Content-Encoding says: {error}.") from error
    if len(result) > max_bytes:
        raise RequestError(413, f"the body may have {max_bytes} bytes when it is decompressed.")
    if not machine.eof or machine.unused_data:
        raise RequestError(400, "the compressed body is not whole, or something follows it.")
    return result
