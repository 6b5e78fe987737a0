"""Request body parser: decompression, forms, inference protocol. It runs in worker processes, never in the event loop."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

from python_multipart import multipart
from python_multipart.exceptions import FormParserError

from edgetl.errors import RequestError
from edgetl.serve.protocol.open_inference import InferRequest, InputPort, ResponseSpec, read_request

_FORM_EXAMPLE = "curl -F image=@photo.jpg …/predict"
# Bytes that `curl -d @FILE` removes. Every JPEG, PNG, WebP and BMP file has some of them. `curl --data-binary` sends the same content type.
_REMOVED_BY_CURL = b"\0\r\n"
# Values of zlib's ``wbits`` for the formats gzip and zlib.
WINDOWS = {"gzip": 31, "deflate": 15}


@dataclass(frozen=True)
class Upload:
    """Request body that is not parsed yet, with the headers that describe it.

    Attributes:
        body: at most ``max_bytes``, compressed according to ``encoding``.
        endpoint: ``infer`` or ``predict``.
        encoding: ``identity``, ``gzip`` or ``deflate``.
        content_type: value of ``Content-Type``, which identifies a form.
        header_length: value of ``Inference-Header-Content-Length``.
        max_bytes: limit of the decompressed body, bytes.
        max_batch: limit of images per request.
    """

    body: bytes
    endpoint: str
    encoding: str = "identity"
    content_type: str = ""
    header_length: str | None = None
    max_bytes: int = 16_000_000
    max_batch: int = 16


def read_upload(upload: Upload, port: InputPort) -> InferRequest:
    """Decompress and parse one request for a model with the input ``port``.

    Raises:
        RequestError: 400 if the request is malformed. 413 if the decompressed body is larger than ``max_bytes``.
    """
    body = upload.body
    if upload.encoding != "identity":
        body = _decompress(body, WINDOWS[upload.encoding], upload.max_bytes)
    if upload.endpoint == "infer":
        return read_request(body, upload.header_length, port, max_batch=upload.max_batch)
    return InferRequest(ResponseSpec(), None, (_encoded_image(body, upload.content_type),))


def _decompress(data: bytes, window: int, max_bytes: int) -> bytes:
    """Decompress at most ``max_bytes``. A small compressed body can be very large when decompressed."""
    decompressor = zlib.decompressobj(window)
    try:
        result = decompressor.decompress(data, max_bytes + 1)
    except zlib.error as error:
        raise RequestError(400, f"the body does not match its Content-Encoding: {error}.") from error
    if len(result) > max_bytes:
        raise RequestError(413, f"the decompressed body is larger than {max_bytes} bytes (--max-body-mb).")
    if not decompressor.eof or decompressor.unused_data:
        raise RequestError(400, "the compressed body is truncated, or has extra bytes at its end.")
    return result


def _encoded_image(body: bytes, content_type: str) -> bytes:
    """Return the encoded image of ``POST /predict``: the body itself, or the only file of a form.

    Raises:
        RequestError: 400 if the image is empty, or has no byte that ``curl -d`` removes, or the form does not have exactly one file.
    """
    media_type, options = multipart.parse_options_header(content_type)
    image = _single_file(body, options.get(b"boundary", b"")) if media_type == b"multipart/form-data" else body
    if not image:
        raise RequestError(400, "the request has no image. Example: curl --data-binary @photo.jpg …/predict")
    if media_type == b"application/x-www-form-urlencoded" and not any(byte in image for byte in _REMOVED_BY_CURL):
        raise RequestError(
            400,
            "the body is no image file, because it has no null bytes and no line breaks. `curl -d @FILE` removes them. Send the file "
            "unchanged: curl --data-binary @photo.jpg …/predict",
        )
    return image


def _single_file(body: bytes, boundary: bytes) -> bytes:
    """Return the only part of a form. The name of the part does not matter."""
    parts: list[bytearray] = []

    def begin_part() -> None:
        parts.append(bytearray())
        if len(parts) > 1:
            raise RequestError(400, f"the form has more than one file. Send exactly one file: {_FORM_EXAMPLE}")

    callbacks: multipart.MultipartCallbacks = {
        "on_part_begin": begin_part,
        "on_part_data": lambda data, start, end: parts[-1].extend(data[start:end]),
    }
    ended: list[bool] = []
    callbacks["on_end"] = lambda: ended.append(True)
    try:
        parser = multipart.MultipartParser(boundary, callbacks)
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise RequestError(400, "the body is not a valid form of the type in Content-Type.") from error
    if len(parts) != 1 or not ended:
        raise RequestError(400, f"the form has no complete file. Send exactly one file: {_FORM_EXAMPLE}")
    return bytes(parts[0])
