"""Request body parser: decompression, forms and encoded images."""

from __future__ import annotations

import gzip
import json
import tracemalloc
import zlib
from typing import Any

import pytest

from edgetl.errors import RequestError
from edgetl.serve.protocol.content import Upload, read_upload
from edgetl.serve.protocol.open_inference import InferRequest, InputPort, ResponseSpec

PORT = InputPort("input", "FP32", (3, 1, 1))
IMAGE = b"\xff\xd8 an image"
FORM = "multipart/form-data; boundary=xyz"
ONE_FILE = "Send exactly one file: curl -F image=@photo.jpg …/predict"


def _read(body: bytes, endpoint: str = "predict", **fields: Any) -> InferRequest:
    return read_upload(Upload(body, endpoint, **fields), PORT)


def _error(body: bytes, endpoint: str = "predict", **fields: Any) -> tuple[int, str]:
    with pytest.raises(RequestError) as caught:
        _read(body, endpoint, **fields)
    return caught.value.status, str(caught.value)


def _part(data: bytes) -> bytes:
    return b'--xyz\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n' + data + b"\r\n"


@pytest.mark.parametrize("content_type", ["", "image/jpeg", "application/octet-stream", "text/plain; boundary=xyz"])
def test_the_body_of_predict_is_an_encoded_image(content_type: str) -> None:
    assert _read(IMAGE, content_type=content_type) == InferRequest(ResponseSpec(), None, (IMAGE,))


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_a_compressed_body_is_decompressed_up_to_the_limit(encoding: str, pack: Any) -> None:
    assert _read(pack(IMAGE), encoding=encoding, max_bytes=len(IMAGE)).images == (IMAGE,)
    assert _error(pack(IMAGE), encoding=encoding, max_bytes=len(IMAGE) - 1) == (
        413,
        f"the decompressed body is larger than {len(IMAGE) - 1} bytes (--max-body-mb).",
    )
    broken = "the compressed body is truncated, or has extra bytes at its end."
    assert _error(pack(IMAGE)[:-1], encoding=encoding) == (400, broken)
    assert _error(pack(IMAGE) + b"x", encoding=encoding) == (400, broken)


def test_a_body_is_not_decompressed_beyond_the_limit() -> None:
    bomb = gzip.compress(bytes(50_000_000))
    tracemalloc.start()
    try:
        assert _error(bomb, encoding="gzip", max_bytes=1000)[0] == 413
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_a_body_that_does_not_match_its_encoding_gets_400() -> None:
    for encoding, data in (("gzip", zlib.compress(IMAGE)), ("deflate", gzip.compress(IMAGE)), ("gzip", IMAGE)):
        status, text = _error(data, encoding=encoding)
        assert status == 400 and text.startswith("the body does not match its Content-Encoding: Error -3")


def test_an_inference_request_is_parsed_with_the_header_length_and_the_batch_limit() -> None:
    tensor = {"inputs": [{"name": "input", "datatype": "FP32", "shape": [2, 3, 1, 1], "data": [0, 1, 2, 3, 4, 5]}]}
    body = json.dumps(tensor).encode()
    for found in (_read(body, "infer", max_batch=2), _read(gzip.compress(body), "infer", encoding="gzip", max_batch=2)):
        assert found.tensor is not None and found.tensor.ravel().tolist() == [0, 1, 2, 3, 4, 5]
    assert _error(body, "infer", max_batch=1)[1].endswith("at most 1 per request.")
    assert _read(IMAGE, "infer", header_length="0").images == (IMAGE,)


def test_the_only_file_of_a_form_is_the_image() -> None:
    body = _part(IMAGE) + b"--xyz--\r\n"
    for content_type in (FORM, 'Multipart/Form-Data; boundary="xyz"'):
        assert _read(body, content_type=content_type) == InferRequest(ResponseSpec(), None, (IMAGE,))
    long = bytes(range(256)) * 300 + b"\r\n--xy"
    assert _read(_part(long) + b"--xyz--\r\n", content_type=FORM).images == (long,)


@pytest.mark.parametrize(
    ("body", "content_type", "message"),
    [
        (_part(IMAGE) * 2 + b"--xyz--\r\n", FORM, f"the form has more than one file. {ONE_FILE}"),
        (_part(IMAGE), FORM, f"the form has no complete file. {ONE_FILE}"),
        (b"", FORM, f"the form has no complete file. {ONE_FILE}"),
        (b"--other--\r\n", FORM, "the body is not a valid form of the type in Content-Type."),
        (_part(IMAGE) + b"--xyz--\r\n", "multipart/form-data", "the body is not a valid form of the type in Content-Type."),
        (_part(b"") + b"--xyz--\r\n", FORM, "the request has no image. Example: curl --data-binary @photo.jpg …/predict"),
        (b"", "", "the request has no image. Example: curl --data-binary @photo.jpg …/predict"),
        (
            b"\xff\xd8\xff\xe0\x10JFIF",
            "application/x-www-form-urlencoded",
            "the body is no image file, because it has no null bytes and no line breaks. `curl -d @FILE` removes them. Send the file "
            "unchanged: curl --data-binary @photo.jpg …/predict",
        ),
    ],
    ids=["two files", "no end", "empty form", "other boundary", "no boundary", "empty file", "empty body", "curl -d"],
)
def test_a_body_without_exactly_one_image_gets_400(body: bytes, content_type: str, message: str) -> None:
    assert _error(body, content_type=content_type) == (400, message)


def test_an_unchanged_image_is_accepted_with_the_content_type_of_curl() -> None:
    """``curl --data-binary`` sends the content type of a form too."""
    for body in (b"\x89PNG\r", b"BM\n", b"RIFF\0"):
        assert _read(body, content_type="application/x-www-form-urlencoded").images == (body,)
    assert _read(b"JFIF", content_type="image/jpeg").images == (b"JFIF",)


def test_an_upload_has_no_encoding_and_16_megabytes_by_default() -> None:
    upload = Upload(b"", "infer")
    assert (upload.encoding, upload.content_type, upload.header_length) == ("identity", "", None)
    assert (upload.max_bytes, upload.max_batch) == (16_000_000, 16)
