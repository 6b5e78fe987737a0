"""Open Inference Protocol v2 over HTTP: parse requests and write responses (kserve/open-inference-protocol, inference_rest.md).

Extensions: binary tensors; encoded images as ``BYTES`` of shape ``[n]`` under the name of the model input (as in OpenVINO Model Server);
top-k labels (Triton's classification extension). The module is independent of the web framework.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.core.config import load_json
from edgetl.core.preprocess import Batch
from edgetl.errors import RequestError

HEADER_LENGTH = "inference-header-content-length"
MAX_ID_CHARACTERS = 256
MAX_OUTPUTS = 8
# Limit of values and lists besides the tensor: names, parameters, outputs, encoded images.
MAX_OTHER_VALUES = 4_096
MAX_OBJECTS = 64
# Limit of dimensions of nested lists.
MAX_DEPTH = 8
# Limit of tensor values. Preprocessed images have values below 300. Far larger values make a model compute infinities.
MAX_MAGNITUDE = 1e6
SCORES, LOGITS = "scores", "logits"
_DTYPES: dict[str, np.dtype[Any]] = {"FP32": np.dtype("<f4"), "UINT8": np.dtype("u1")}


@dataclass(frozen=True)
class InputPort:
    """Model input. ``shape`` excludes the batch dimension, and ``datatype`` is ``FP32`` or ``UINT8``."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class RequestedOutput:
    """Requested output. With ``classes`` > 0, the response has this many top labels instead of numbers."""

    name: str
    binary: bool = False
    classes: int = 0


@dataclass(frozen=True)
class ResponseSpec:
    """Requested response: the request's ``id`` and the outputs."""

    id: str = ""
    outputs: tuple[RequestedOutput, ...] = (RequestedOutput(SCORES),)


@dataclass(frozen=True)
class InferRequest:
    """Parsed inference request: either an input tensor or encoded images."""

    response: ResponseSpec
    tensor: Batch | None
    images: tuple[bytes, ...]

    @property
    def count(self) -> int:
        """Number of images in the request."""
        return len(self.images) if self.tensor is None else len(self.tensor)


@dataclass(frozen=True)
class ModelOutputs:
    """Outputs of a model for one request. ``scores`` and ``logits`` are float32 ``[n, labels]``; ``parameters`` of the response."""

    model: str
    version: str
    labels: tuple[str, ...]
    scores: NDArray[np.float32]
    logits: NDArray[np.float32]
    parameters: Mapping[str, str] = field(default_factory=dict)


def read_request(body: bytes, header_length: str | None, port: InputPort, *, max_batch: int) -> InferRequest:
    """Parse one request.

    Args:
        body: complete body, decompressed.
        header_length: value of the header ``Inference-Header-Content-Length``, if present: length of the JSON, bytes. 0 means that the
            body has no JSON and is one tensor or one encoded image.
        port: model input.
        max_batch: limit of images per request.

    Raises:
        RequestError: 400 if the request is invalid.
    """
    if header_length is None:
        header, binary = body, b""
    else:
        length = _length(header_length, len(body))
        if length == 0:
            return _raw(body, port)
        header, binary = body[:length], body[length:]
    value = _json_object(header, max_batch * math.prod(port.shape))
    parameters = _object(value, "parameters")
    given = value.get("inputs")
    if not isinstance(given, list) or len(given) != 1 or not isinstance(given[0], dict):
        raise RequestError(400, f"'inputs' must have exactly one input with the name {port.name!r}.")
    tensor, images = _input(given[0], binary, port, max_batch)
    return InferRequest(ResponseSpec(_id(value), _outputs(value, binary=parameters.get("binary_data_output") is True)), tensor, images)


def _length(text: str, total: int) -> int:
    if not is_count(text) or int(text) > total:
        raise RequestError(400, f"the header {HEADER_LENGTH} must be the length of the JSON, at most the length of the body ({total}).")
    return int(text)


def is_count(text: str) -> bool:
    """Return true if a header value is a whole number of at most nine digits. Python's ``int`` rejects thousands of digits."""
    return text.isascii() and text.isdigit() and len(text) <= 9


def _raw(body: bytes, port: InputPort) -> InferRequest:
    """Parse a body without JSON: the tensor of one image, or one encoded image. Its response is binary."""
    response = ResponseSpec(outputs=(RequestedOutput(SCORES, binary=True),))
    dtype = _DTYPES[port.datatype]
    if len(body) == dtype.itemsize * math.prod(port.shape):
        return InferRequest(response, _tensor(None, body, (1, *port.shape), port.datatype), ())
    if not body:
        raise RequestError(400, "the body is empty. Send one tensor or one encoded image.")
    return InferRequest(response, None, (body,))


def _json_object(data: bytes, numbers: int) -> dict[str, Any]:
    """Parse the JSON object of a request. Count separators before parsing, because a tensor has at most ``numbers`` values."""
    max_separators = numbers + MAX_OTHER_VALUES
    if data.count(b",") > max_separators or data.count(b"[") > max_separators or data.count(b"{") > MAX_OBJECTS:
        raise RequestError(
            400,
            f"the request has more lists, objects or values than allowed for this model ({numbers} numbers, {MAX_OBJECTS} objects).",
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
    item = value.get(key, {})
    if not isinstance(item, dict):
        raise RequestError(400, f"'{key}' must be an object.")
    return item


def _id(value: dict[str, Any]) -> str:
    text = value.get("id", "")
    if not isinstance(text, str) or len(text) > MAX_ID_CHARACTERS:
        raise RequestError(400, f"'id' must be a string of at most {MAX_ID_CHARACTERS} characters.")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise RequestError(400, "'id' contains an unpaired surrogate, which is not a valid character.")
    return text


def _outputs(value: dict[str, Any], *, binary: bool) -> tuple[RequestedOutput, ...]:
    given = value.get("outputs")
    if given is None:
        return (RequestedOutput(SCORES, binary=binary),)
    if not isinstance(given, list) or not 0 < len(given) <= MAX_OUTPUTS:
        raise RequestError(400, f"'outputs' must have 1 to {MAX_OUTPUTS} outputs.")
    requested = tuple(_requested_output(item, binary=binary) for item in given)
    if len({item.name for item in requested}) != len(requested):
        raise RequestError(400, "'outputs' contains an output twice.")
    return requested


def _requested_output(item: Any, *, binary: bool) -> RequestedOutput:
    if not isinstance(item, dict) or item.get("name") not in (SCORES, LOGITS):
        raise RequestError(400, f"an output has an unknown name. The outputs are {SCORES!r} and {LOGITS!r}.")
    parameters = _object(item, "parameters")
    classes = parameters.get("classification", 0)
    if not isinstance(classes, int) or isinstance(classes, bool) or not 0 <= classes <= 1_000_000:
        raise RequestError(400, "'classification' must be the number of labels to return, from 0 to 1000000.")
    is_binary = parameters.get("binary_data", binary)
    if not isinstance(is_binary, bool):
        raise RequestError(400, "'binary_data' must be true or false.")
    return RequestedOutput(item["name"], is_binary, classes)


def _input(item: dict[str, Any], binary: bytes, port: InputPort, max_batch: int) -> tuple[Batch | None, tuple[bytes, ...]]:
    if item.get("name") != port.name:
        raise RequestError(400, f"the model input has the name {port.name!r}.")
    shape = _shape(item.get("shape"), max_batch)
    datatype = item.get("datatype")
    size = _object(item, "parameters").get("binary_data_size")
    if size is not None and "data" in item:
        raise RequestError(400, "an input must have either 'data' or 'binary_data_size', not both.")
    if size is None and binary:
        raise RequestError(400, f"{len(binary)} bytes follow the JSON, but no input has 'binary_data_size'.")
    if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size != len(binary)):
        raise RequestError(400, f"'binary_data_size' must be the number of bytes after the JSON, {len(binary)}.")
    if datatype == "BYTES":
        if len(shape) != 1:
            raise RequestError(400, "encoded images must be a BYTES tensor of shape [n].")
        return None, _packed_images(binary, shape[0]) if size is not None else _base64_images(item.get("data"), shape[0])
    if datatype != port.datatype or shape[1:] != port.shape:
        expected = ", ".join(map(str, (-1, *port.shape)))
        raise RequestError(400, f"the input must be {port.datatype} of shape [{expected}], or BYTES of shape [n].")
    return _tensor(item.get("data"), binary if size is not None else None, shape, port.datatype), ()


def _shape(value: Any, max_batch: int) -> tuple[int, ...]:
    is_valid = (
        isinstance(value, list) and 0 < len(value) <= 8 and all(isinstance(side, int) and not isinstance(side, bool) for side in value)
    )
    if not is_valid or min(value) < 1 or max(value) > 2**31:
        raise RequestError(400, "'shape' must be a list of 1 to 8 positive whole numbers.")
    if value[0] > max_batch:
        raise RequestError(400, f"the request has {value[0]} images. The limit is at most {max_batch} per request.")
    return tuple(value)


def _tensor(data: Any, binary: bytes | None, shape: tuple[int, ...], datatype: str) -> Batch:
    if binary is not None:
        dtype, count = _DTYPES[datatype], math.prod(shape)
        if len(binary) != count * dtype.itemsize:
            raise RequestError(
                400, f"shape {list(shape)} of {datatype} needs {count * dtype.itemsize} bytes, but the request has {len(binary)}."
            )
        values = np.frombuffer(binary, dtype)
    else:
        values = _numbers(data, shape, datatype)
    # The comparison is also false for NaN.
    if datatype == "FP32" and not (np.abs(values) <= MAX_MAGNITUDE).all():
        raise RequestError(400, f"the tensor has values that are not finite, or are beyond ±{MAX_MAGNITUDE:g}.")
    result: Batch = values.reshape(shape)
    return result


def _numbers(data: Any, shape: tuple[int, ...], datatype: str) -> NDArray[Any]:
    """Convert flat or nested lists of numbers. Check their count and types before the conversion."""
    numbers, count = _flat(data), math.prod(shape)
    if len(numbers) != count:
        raise RequestError(400, f"shape {list(shape)} needs {count} numbers, but 'data' has {len(numbers)}.")
    allowed = {int, float} if datatype == "FP32" else {int}
    # Compare exact types, because bool is a subclass of int.
    if not set(map(type, numbers)) <= allowed:
        raise RequestError(
            400, f"'data' must be a list of {'numbers' if float in allowed else 'whole numbers'}, flat or nested like the shape."
        )
    try:
        values = np.array(numbers, np.float64 if datatype == "FP32" else np.int64)
    except OverflowError as error:
        raise RequestError(400, "'data' must be a list of numbers that fit the datatype. One number is too large.") from error
    if datatype == "UINT8" and values.size and (values.min() < 0 or values.max() > 255):
        raise RequestError(400, "UINT8 values must be whole numbers from 0 to 255.")
    with np.errstate(over="ignore"):  # numbers beyond float32 become infinite, and `_tensor` rejects them
        return values.astype(_DTYPES[datatype])


def _flat(data: Any) -> list[Any]:
    """Flatten nested lists. All lists of a level must have the same length."""
    level = data
    for _ in range(MAX_DEPTH if type(data) is list else 0):
        if not level or type(level[0]) is not list:
            return list(level)
        if set(map(type, level)) != {list} or len(set(map(len, level))) != 1:
            break
        level = list(chain.from_iterable(level))
    raise RequestError(400, "'data' must be a list of numbers, flat or nested like the shape.")


def _packed_images(data: bytes, count: int) -> tuple[bytes, ...]:
    """Split a BYTES tensor into its elements. Each element is a length (four bytes, little-endian) and its data."""
    images: list[bytes] = []
    start = 0
    while start < len(data) and len(images) < count:
        size = int.from_bytes(data[start : start + 4], "little")
        end = start + 4 + size
        if end > len(data):
            raise RequestError(400, "an element of the BYTES tensor is longer than the remaining body.")
        images.append(data[start + 4 : end])
        start = end
    if len(images) != count or start != len(data):
        raise RequestError(400, f"the shape has {count} image(s), but the request has {'more' if start < len(data) else len(images)}.")
    return tuple(images)


def _base64_images(data: Any, count: int) -> tuple[bytes, ...]:
    if not isinstance(data, list) or not all(isinstance(item, str) for item in data):
        raise RequestError(400, "in JSON, 'data' of BYTES must be a list of images in base64. Binary data is smaller by a quarter.")
    if len(data) != count:
        raise RequestError(400, f"the shape has {count} image(s), but the request has {len(data)}.")
    try:
        return tuple(base64.b64decode(item, validate=True) for item in data)
    except (binascii.Error, ValueError) as error:
        raise RequestError(400, f"'data' of BYTES is not base64: {error}.") from error


def write_response(spec: ResponseSpec, outputs: ModelOutputs) -> tuple[bytes, int | None]:
    """Return the body of a response, and the length of its JSON in bytes if binary data follows it."""
    entries: list[dict[str, Any]] = []
    blobs: list[bytes] = []
    for requested in spec.outputs:
        values = outputs.scores if requested.name == SCORES else outputs.logits
        data: list[Any]
        if requested.classes:
            datatype, shape, data, blob = _top_labels(values, outputs.labels, requested.classes)
        else:
            datatype, shape, blob = "FP32", list(values.shape), values.astype("<f4").tobytes()
            data = [] if requested.binary else values.ravel().tolist()
        entry: dict[str, Any] = {"name": requested.name, "datatype": datatype, "shape": shape}
        if requested.binary:
            entry["parameters"] = {"binary_data_size": len(blob)}
            blobs.append(blob)
        else:
            entry["data"] = data
        entries.append(entry)
    names = {"model_name": outputs.model, "model_version": outputs.version, **({"id": spec.id} if spec.id else {})}
    parameters = {"parameters": dict(outputs.parameters)} if outputs.parameters else {}
    header = json.dumps({**names, **parameters, "outputs": entries}, ensure_ascii=False).encode()
    return (header + b"".join(blobs), len(header)) if blobs else (header, None)


def _top_labels(values: NDArray[np.float32], labels: tuple[str, ...], count: int) -> tuple[str, list[int], list[str], bytes]:
    """Return the ``count`` largest values of each row as strings ``value:index:label``, the largest first."""
    if values.shape[1] != len(labels):  # the positions of a heat map
        labels = tuple(map(str, range(values.shape[1])))
    count = min(count, len(labels))
    order = np.argsort(-values, axis=1, kind="stable")[:, :count]
    strings = [f"{values[row, index]:.6f}:{index}:{labels[index]}" for row in range(len(values)) for index in order[row]]
    encoded = [text.encode() for text in strings]
    blob = b"".join(len(item).to_bytes(4, "little") + item for item in encoded)
    return "BYTES", [len(values), count], strings, blob
