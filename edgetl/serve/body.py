"""Reading a request's body within limits: its length, its time, and what it becomes when it is decompressed."""

from __future__ import annotations

import asyncio
import zlib

from python_multipart import multipart
from python_multipart.exceptions import FormParserError
from starlette.requests import ClientDisconnect, Request

from edgetl.errors import RequestError

_FORM = "curl -F image=@photo.jpg …/predict"
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
        async with asyncio.timeout(timeout_s):
            data = await _receive(request, max_bytes)
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


def sent_image(body: bytes, content_type: str) -> bytes:
    """The encoded image that ``POST /predict`` was sent: the body itself, or the only file of a form.

    Raises:
        RequestError: 400, it is empty, or not a form with one file.
    """
    kind, options = multipart.parse_options_header(content_type)
    image = _only_file(body, options.get(b"boundary", b"")) if kind == b"multipart/form-data" else body
    if not image:
        raise RequestError(400, "there is no image; send one: curl --data-binary @photo.jpg …/predict")
    return image


def _only_file(body: bytes, boundary: bytes) -> bytes:
    """The bytes of the form's one part; whatever it is called."""
    parts: list[bytearray] = []

    def begin() -> None:
        parts.append(bytearray())
        if len(parts) > 1:
            raise RequestError(400, f"a form takes exactly one file, and this one has more: {_FORM}")

    callbacks: multipart.MultipartCallbacks = {
        "on_part_begin": begin,
        "on_part_data": lambda data, start, end: parts[-1].extend(data[start:end]),
    }
    ended: list[bool] = []
    callbacks["on_end"] = lambda: ended.append(True)
    try:
        parser = multipart.MultipartParser(boundary, callbacks)
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise RequestError(400, "the body is not the form that Content-Type says.") from error
    if len(parts) != 1 or not ended:
        raise RequestError(400, f"a form takes exactly one file, and this one has none that is whole: {_FORM}")
    return bytes(parts[0])
