"""Parsing of a request's body: decompression, forms and protocol. It runs in worker processes, never in the event loop."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

from python_multipart import multipart
from python_multipart.exceptions import FormParserError

from edgetl.errors import RequestError
from edgetl.serve.protocol.open_inference import InferRequest, InputPort, ResponseSpec, read_request

_FORM = "curl -F image=@photo.jpg …/predict"
# zlib's window sizes: gzip's header, and zlib's own.
WINDOWS = {"gzip": 31, "deflate": 15}


@dataclass(frozen=True)
class Upload:
    """Request for a model, not parsed yet.

    Attributes:
        body: at most ``max_bytes``, compressed as ``encoding`` states.
        endpoint: ``infer`` or ``predict``.
        encoding: ``identity``, ``gzip`` or ``deflate``.
        content_type: value of the header; a form is recognized by it.
        header_length: value of ``Inference-Header-Content-Length``.
        max_bytes: of the decompressed body.
        max_batch: images in one request.
    """

    body: bytes
    endpoint: str
    encoding: str = "identity"
    content_type: str = ""
    header_length: str | None = None
    max_bytes: int = 16_000_000
    max_batch: int = 16


def read_upload(upload: Upload, port: InputPort) -> InferRequest:
    """Parse one request for the model whose input is ``port``.

    Raises:
        RequestError: 400 malformed; 413 larger than ``max_bytes`` once it is decompressed.
    """
    body = upload.body
    if upload.encoding != "identity":
        body = _decompress(body, WINDOWS[upload.encoding], upload.max_bytes)
    if upload.endpoint == "infer":
        return read_request(body, upload.header_length, port, max_batch=upload.max_batch)
    return InferRequest(ResponseSpec(), None, (_sent_image(body, upload.content_type),))


def _decompress(data: bytes, window: int, max_bytes: int) -> bytes:
    """Never more than ``max_bytes``, however little ``data`` is."""
    machine = zlib.decompressobj(window)
    try:
        result = machine.decompress(data, max_bytes + 1)
    except zlib.error as error:
        raise RequestError(400, f"the body is not in the stated Content-Encoding: {error}.") from error
    if len(result) > max_bytes:
        raise RequestError(413, f"the body may have {max_bytes} bytes when it is decompressed.")
    if not machine.eof or machine.unused_data:
        raise RequestError(400, "the compressed body is not whole, or something follows it.")
    return result


def _sent_image(body: bytes, content_type: str) -> bytes:
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
        raise RequestError(400, "the body is not the form that Content-Type states.") from error
    if len(parts) != 1 or not ended:
        raise RequestError(400, f"a form takes exactly one file, and this one has none that is whole: {_FORM}")
    return bytes(parts[0])
