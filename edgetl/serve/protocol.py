"""The Open Inference Protocol v2 over HTTP: requests and answers as bytes (kserve/open-inference-protocol, inference_rest.md).

With the binary tensor extension, with encoded images as ``BYTES`` of shape ``[n]`` under the input's own name (as OpenVINO Model Server
takes them), and with top-k labels as Triton's classification extension gives them. Nothing here knows a web framework.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.core.config import load_json
from edgetl.core.preprocess import Batch
from edgetl.errors import RequestError

HEADER_LENGTH = "inference-header-content-length"
MAX_ID_CHARACTERS = 256
MAX_OUTPUTS = 8
# A batch of 16 photographs, nested down to its pixels, has 800,000. Without a limit a body of empty lists takes seconds to read.
MAX_LISTS = 1_000_000
SCORES, LOGITS = "scores", "logits"
_DTYPES: dict[str, np.dtype[Any]] = {"FP32": np.dtype("<f4"), "UINT8": np.dtype("u1")}


@dataclass(frozen=True)
class Port:
    """The model's input: ``shape`` without the batch, ``datatype`` ``FP32`` or ``UINT8``."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Wanted:
    """An output that a request asks for; ``classes`` > 0 asks for so many labels in place of numbers."""

    name: str
    binary: bool = False
    classes: int = 0


@dataclass(frozen=True)
class InferRequest:
    """A request: either a tensor as the model takes it, or encoded images."""

    id: str
    tensor: Batch | None
    images: tuple[bytes, ...]
    outputs: tuple[Wanted, ...]

    @property
    def count(self) -> int:
        """Images in the request."""
        return len(self.images) if self.tensor is None else len(self.tensor)


@dataclass(frozen=True)
class Answered:
    """What a model says to one request: ``scores`` and ``logits`` float32 ``[n, labels]``."""

    model: str
    version: str
    labels: tuple[str, ...]
    scores: NDArray[np.float32]
    logits: NDArray[np.float32]


def read_request(body: bytes, header_length: str | None, port: Port, *, max_batch: int) -> InferRequest:
    """Parse one request.

    Args:
        body: all of it, decompressed.
        header_length: the value of the header ``Inference-Header-Content-Length``, where there is one: the JSON's length in bytes; 0 is a
            body without JSON, which is one tensor or one encoded image.
        port: the model's input.
        max_batch: images in one request, at most.

    Raises:
        RequestError: 400, saying what is wrong.
    """
    if header_length is None:
        header, binary = body, b""
    else:
        length = _length(header_length, len(body))
        if length == 0:
            return _raw(body, port)
        header, binary = body[:length], body[length:]
    value = _json_object(header)
    parameters = _object(value, "parameters")
    given = value.get("inputs")
    if not isinstance(given, list) or len(given) != 1 or not isinstance(given[0], dict):
        raise RequestError(400, f"'inputs' takes exactly one input, called {port.name!r}.")
    tensor, images = _input(given[0], binary, port, max_batch)
    return InferRequest(_id(value), tensor, images, _outputs(value, binary=parameters.get("binary_data_output") is True))


def _length(text: str, total: int) -> int:
    if not is_count(text) or int(text) > total:
        raise RequestError(400, f"the header {HEADER_LENGTH} must be the length of the JSON, at most that of the body ({total}).")
    return int(text)


def is_count(text: str) -> bool:
    """Whether a header's text is a whole number of at most nine digits; Python refuses to read thousands of them."""
    return text.isascii() and text.isdigit() and len(text) <= 9


def _raw(body: bytes, port: Port) -> InferRequest:
    """A body without JSON: the tensor of one image, or else one encoded image; its answer is binary."""
    outputs = (Wanted(SCORES, binary=True),)
    dtype = _DTYPES[port.datatype]
    if len(body) == dtype.itemsize * math.prod(port.shape):
        return InferRequest("", np.frombuffer(body, dtype).reshape(1, *port.shape), (), outputs)
    if not body:
        raise RequestError(400, "the body is empty; it takes one tensor or one encoded image.")
    return InferRequest("", None, (body,), outputs)


def _json_object(data: bytes) -> dict[str, Any]:
    if data.count(b"[") + data.count(b"{") > MAX_LISTS:
        raise RequestError(
            400, f"the request holds more than {MAX_LISTS} lists and objects; write numbers flat, or send them as binary data."
        )
    try:
        value = load_json(data)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)[:200]
        raise RequestError(400, f"the request is not valid JSON: {reason}") from error
    if not isinstance(value, dict):
        raise RequestError(400, "the request must be a JSON object.")
    return value


def _object(value: dict[str, Any], key: str) -> dict[str, Any]:
    found = value.get(key, {})
    if not isinstance(found, dict):
        raise RequestError(400, f"'{key}' must be an object.")
    return found


def _id(value: dict[str, Any]) -> str:
    found = value.get("id", "")
    if not isinstance(found, str) or len(found) > MAX_ID_CHARACTERS:
        raise RequestError(400, f"'id' must be a text of at most {MAX_ID_CHARACTERS} characters.")
    if any("\ud800" <= character <= "\udfff" for character in found):
        raise RequestError(400, "'id' holds half of a character, which JSON can write and no text has.")
    return found


def _outputs(value: dict[str, Any], *, binary: bool) -> tuple[Wanted, ...]:
    given = value.get("outputs")
    if given is None:
        return (Wanted(SCORES, binary=binary),)
    if not isinstance(given, list) or not 0 < len(given) <= MAX_OUTPUTS:
        raise RequestError(400, f"'outputs' must name 1 to {MAX_OUTPUTS} outputs.")
    wanted = tuple(_wanted(item, binary=binary) for item in given)
    if len({item.name for item in wanted}) != len(wanted):
        raise RequestError(400, "'outputs' names an output twice.")
    return wanted


def _wanted(item: Any, *, binary: bool) -> Wanted:
    if not isinstance(item, dict) or item.get("name") not in (SCORES, LOGITS):
        raise RequestError(400, f"'outputs' may name {SCORES!r} and {LOGITS!r}.")
    parameters = _object(item, "parameters")
    classes = parameters.get("classification", 0)
    if not isinstance(classes, int) or isinstance(classes, bool) or not 0 <= classes <= 1_000_000:
        raise RequestError(400, "'classification' must be the number of labels that are wanted.")
    own = parameters.get("binary_data", binary)
    if not isinstance(own, bool):
        raise RequestError(400, "'binary_data' must be true or false.")
    return Wanted(item["name"], own, classes)


def _input(item: dict[str, Any], binary: bytes, port: Port, max_batch: int) -> tuple[Batch | None, tuple[bytes, ...]]:
    if item.get("name") != port.name:
        raise RequestError(400, f"the model's input is called {port.name!r}.")
    shape = _shape(item.get("shape"), max_batch)
    datatype = item.get("datatype")
    size = _object(item, "parameters").get("binary_data_size")
    if size is not None and "data" in item:
        raise RequestError(400, "an input has either 'data' or 'binary_data_size'.")
    if size is None and binary:
        raise RequestError(400, f"{len(binary)} bytes follow the JSON, and no input has 'binary_data_size'.")
    if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size != len(binary)):
        raise RequestError(400, f"'binary_data_size' must be the number of bytes that follow the JSON, {len(binary)}.")
    if datatype == "BYTES":
        if len(shape) != 1:
            raise RequestError(400, "encoded images are a BYTES tensor of shape [n].")
        images = _packed_images(binary) if size is not None else _base64_images(item.get("data"))
        if len(images) != shape[0]:
            raise RequestError(400, f"the shape says {shape[0]} image(s), and there are {len(images)}.")
        return None, images
    if datatype != port.datatype or shape[1:] != port.shape:
        expected = ", ".join(map(str, (-1, *port.shape)))
        raise RequestError(400, f"the input takes {port.datatype} of shape [{expected}], or BYTES of shape [n].")
    return _tensor(item.get("data"), binary if size is not None else None, shape, port.datatype), ()


def _shape(value: Any, max_batch: int) -> tuple[int, ...]:
    whole = isinstance(value, list) and 0 < len(value) <= 8 and all(isinstance(side, int) and not isinstance(side, bool) for side in value)
    if not whole or min(value) < 1 or max(value) > 2**31:
        raise RequestError(400, "'shape' must be a list of 1 to 8 positive whole numbers.")
    if value[0] > max_batch:
        raise RequestError(400, f"{value[0]} images in one request; at most {max_batch} are taken.")
    return tuple(value)


def _tensor(data: Any, binary: bytes | None, shape: tuple[int, ...], datatype: str) -> Batch:
    dtype, count = _DTYPES[datatype], math.prod(shape)
    if binary is not None:
        if len(binary) != count * dtype.itemsize:
            raise RequestError(400, f"shape {list(shape)} of {datatype} needs {count * dtype.itemsize} bytes, and there are {len(binary)}.")
        values = np.frombuffer(binary, dtype)
    else:
        values = _numbers(data, dtype)
        if values.size != count:
            raise RequestError(400, f"shape {list(shape)} needs {count} numbers, and 'data' has {values.size}.")
    if datatype == "FP32" and not np.isfinite(values).all():
        raise RequestError(400, "the tensor holds numbers that are not finite.")
    result: Batch = values.reshape(shape)
    return result


def _numbers(data: Any, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Nested or flat lists of numbers; nothing else becomes one."""
    try:
        values = np.array(data) if isinstance(data, list) else np.array(None)
    except (ValueError, OverflowError, RecursionError) as error:
        raise RequestError(400, "'data' must be a list of numbers, flat or nested like the shape.") from error
    if values.dtype.kind not in ("iuf" if dtype.kind == "f" else "iu"):
        raise RequestError(400, "'data' must be a list of numbers, flat or nested like the shape.")
    if dtype.kind == "u" and values.size and (values.min() < 0 or values.max() > 255):
        raise RequestError(400, "UINT8 takes whole numbers from 0 to 255.")
    with np.errstate(over="ignore"):  # what does not fit becomes infinite, and is refused as that
        return values.astype(dtype)


def _packed_images(data: bytes) -> tuple[bytes, ...]:
    """Elements of a BYTES tensor: each a length of four bytes, little-endian, and as many bytes."""
    images, start = [], 0
    while start < len(data):
        size = int.from_bytes(data[start : start + 4], "little")
        end = start + 4 + size
        if start + 4 > len(data) or end > len(data):
            raise RequestError(400, "an element of the BYTES tensor is longer than what follows.")
        images.append(data[start + 4 : end])
        start = end
    return tuple(images)


def _base64_images(data: Any) -> tuple[bytes, ...]:
    if not isinstance(data, list) or not all(isinstance(item, str) for item in data):
        raise RequestError(400, "in JSON, 'data' of BYTES is a list of images in base64; send them as binary data to save a third.")
    try:
        return tuple(base64.b64decode(item, validate=True) for item in data)
    except (binascii.Error, ValueError) as error:
        raise RequestError(400, f"'data' of BYTES is not base64: {error}.") from error


def write_answer(request: InferRequest, answered: Answered) -> tuple[bytes, int | None]:
    """The body of an answer, and the length of its JSON where binary data follows it."""
    outputs: list[dict[str, Any]] = []
    blobs: list[bytes] = []
    for wanted in request.outputs:
        values = answered.scores if wanted.name == SCORES else answered.logits
        data: list[Any] = []
        if wanted.classes:
            datatype, shape, data, blob = _top(values, answered.labels, wanted.classes)
        else:
            datatype, shape, blob = "FP32", list(values.shape), values.astype("<f4").tobytes()
            data = [] if wanted.binary else values.ravel().tolist()
        entry: dict[str, Any] = {"name": wanted.name, "datatype": datatype, "shape": shape}
        if wanted.binary:
            entry["parameters"] = {"binary_data_size": len(blob)}
            blobs.append(blob)
        else:
            entry["data"] = data
        outputs.append(entry)
    header = json.dumps(
        {"model_name": answered.model, "model_version": answered.version, **({"id": request.id} if request.id else {}), "outputs": outputs},
        ensure_ascii=False,
    ).encode()
    return (header + b"".join(blobs), len(header)) if blobs else (header, None)


def _top(values: NDArray[np.float32], labels: tuple[str, ...], count: int) -> tuple[str, list[int], list[str], bytes]:
    """The largest ``count`` of each row as texts ``value:index:label``, the largest first."""
    count = min(count, len(labels))
    order = np.argsort(-values, axis=1, kind="stable")[:, :count]
    texts = [f"{values[row, index]:.6f}:{index}:{labels[index]}" for row in range(len(values)) for index in order[row]]
    encoded = [text.encode() for text in texts]
    blob = b"".join(len(item).to_bytes(4, "little") + item for item in encoded)
    return "BYTES", [len(values), count], texts, blob
