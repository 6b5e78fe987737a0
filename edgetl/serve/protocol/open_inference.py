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
# Values, lists and objects of a request besides its tensor: names, parameters, outputs, encoded images.
MAX_OTHER_VALUES = 4_096
MAX_OBJECTS = 64
# Dimensions that nested lists may have.
MAX_DEPTH = 8
# Prepared images have values below 300, whatever the preprocessing; from far larger ones a network computes infinities.
MAX_MAGNITUDE = 1e6
SCORES, LOGITS = "scores", "logits"
_DTYPES: dict[str, np.dtype[Any]] = {"FP32": np.dtype("<f4"), "UINT8": np.dtype("u1")}


@dataclass(frozen=True)
class InputPort:
    """The model's input: ``shape`` without the batch, ``datatype`` ``FP32`` or ``UINT8``."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class RequestedOutput:
    """Requested output; with ``classes`` > 0, that many labels in place of numbers."""

    name: str
    binary: bool = False
    classes: int = 0


@dataclass(frozen=True)
class ResponseSpec:
    """Requested response: the ``id`` to repeat, and the outputs."""

    id: str = ""
    outputs: tuple[RequestedOutput, ...] = (RequestedOutput(SCORES),)


@dataclass(frozen=True)
class InferRequest:
    """A request: either a tensor as the model takes it, or encoded images."""

    response: ResponseSpec
    tensor: Batch | None
    images: tuple[bytes, ...]

    @property
    def count(self) -> int:
        """Images in the request."""
        return len(self.images) if self.tensor is None else len(self.tensor)


@dataclass(frozen=True)
class ModelOutputs:
    """Outputs of a model for one request: ``scores`` and ``logits`` float32 ``[n, labels]``."""

    model: str
    version: str
    labels: tuple[str, ...]
    scores: NDArray[np.float32]
    logits: NDArray[np.float32]


def read_request(body: bytes, header_length: str | None, port: InputPort, *, max_batch: int) -> InferRequest:
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
    value = _json_object(header, max_batch * math.prod(port.shape))
    parameters = _object(value, "parameters")
    given = value.get("inputs")
    if not isinstance(given, list) or len(given) != 1 or not isinstance(given[0], dict):
        raise RequestError(400, f"'inputs' takes exactly one input, called {port.name!r}.")
    tensor, images = _input(given[0], binary, port, max_batch)
    return InferRequest(ResponseSpec(_id(value), _outputs(value, binary=parameters.get("binary_data_output") is True)), tensor, images)


def _length(text: str, total: int) -> int:
    if not is_count(text) or int(text) > total:
        raise RequestError(400, f"the header {HEADER_LENGTH} must be the length of the JSON, at most that of the body ({total}).")
    return int(text)


def is_count(text: str) -> bool:
    """Whether a header's text is a whole number of at most nine digits; Python refuses to read thousands of them."""
    return text.isascii() and text.isdigit() and len(text) <= 9


def _raw(body: bytes, port: InputPort) -> InferRequest:
    """A body without JSON: the tensor of one image, or else one encoded image; its answer is binary."""
    response = ResponseSpec(outputs=(RequestedOutput(SCORES, binary=True),))
    dtype = _DTYPES[port.datatype]
    if len(body) == dtype.itemsize * math.prod(port.shape):
        return InferRequest(response, _tensor(None, body, (1, *port.shape), port.datatype), ())
    if not body:
        raise RequestError(400, "the body is empty; it takes one tensor or one encoded image.")
    return InferRequest(response, None, (body,))


def _json_object(data: bytes, numbers: int) -> dict[str, Any]:
    """The request's JSON object; before it is parsed, its separators are counted: a tensor has at most ``numbers``."""
    most = numbers + MAX_OTHER_VALUES
    if data.count(b",") > most or data.count(b"[") > most or data.count(b"{") > MAX_OBJECTS:
        raise RequestError(
            400,
            f"the request has more lists, objects or values than any request for this model ({numbers} numbers, {MAX_OBJECTS} objects).",
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


def _outputs(value: dict[str, Any], *, binary: bool) -> tuple[RequestedOutput, ...]:
    given = value.get("outputs")
    if given is None:
        return (RequestedOutput(SCORES, binary=binary),)
    if not isinstance(given, list) or not 0 < len(given) <= MAX_OUTPUTS:
        raise RequestError(400, f"'outputs' must name 1 to {MAX_OUTPUTS} outputs.")
    wanted = tuple(_wanted(item, binary=binary) for item in given)
    if len({item.name for item in wanted}) != len(wanted):
        raise RequestError(400, "'outputs' names an output twice.")
    return wanted


def _wanted(item: Any, *, binary: bool) -> RequestedOutput:
    if not isinstance(item, dict) or item.get("name") not in (SCORES, LOGITS):
        raise RequestError(400, f"'outputs' may name {SCORES!r} and {LOGITS!r}.")
    parameters = _object(item, "parameters")
    classes = parameters.get("classification", 0)
    if not isinstance(classes, int) or isinstance(classes, bool) or not 0 <= classes <= 1_000_000:
        raise RequestError(400, "'classification' must be the number of labels that are wanted.")
    own = parameters.get("binary_data", binary)
    if not isinstance(own, bool):
        raise RequestError(400, "'binary_data' must be true or false.")
    return RequestedOutput(item["name"], own, classes)


def _input(item: dict[str, Any], binary: bytes, port: InputPort, max_batch: int) -> tuple[Batch | None, tuple[bytes, ...]]:
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
        return None, _packed_images(binary, shape[0]) if size is not None else _base64_images(item.get("data"), shape[0])
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
    if binary is not None:
        dtype, count = _DTYPES[datatype], math.prod(shape)
        if len(binary) != count * dtype.itemsize:
            raise RequestError(400, f"shape {list(shape)} of {datatype} needs {count * dtype.itemsize} bytes, and there are {len(binary)}.")
        values = np.frombuffer(binary, dtype)
    else:
        values = _numbers(data, shape, datatype)
    # Also false for NaN.
    if datatype == "FP32" and not (np.abs(values) <= MAX_MAGNITUDE).all():
        raise RequestError(400, f"the tensor holds numbers that are not finite, or beyond ±{MAX_MAGNITUDE:g}.")
    result: Batch = values.reshape(shape)
    return result


def _numbers(data: Any, shape: tuple[int, ...], datatype: str) -> NDArray[Any]:
    """Flat or nested lists of numbers; their count and their types are checked before anything is converted."""
    numbers, count = _flat(data), math.prod(shape)
    if len(numbers) != count:
        raise RequestError(400, f"shape {list(shape)} needs {count} numbers, and 'data' has {len(numbers)}.")
    allowed = {int, float} if datatype == "FP32" else {int}
    # Exactly these: a bool is an int to isinstance.
    if not set(map(type, numbers)) <= allowed:
        raise RequestError(
            400, f"'data' must be a list of {'numbers' if float in allowed else 'whole numbers'}, flat or nested like the shape."
        )
    try:
        values = np.array(numbers, np.float64 if datatype == "FP32" else np.int64)
    except OverflowError as error:
        raise RequestError(400, "'data' must be a list of numbers that fit the datatype, and one is too large.") from error
    if datatype == "UINT8" and values.size and (values.min() < 0 or values.max() > 255):
        raise RequestError(400, "UINT8 takes whole numbers from 0 to 255.")
    with np.errstate(over="ignore"):  # what does not fit becomes infinite, and is refused as that
        return values.astype(_DTYPES[datatype])


def _flat(data: Any) -> list[Any]:
    """The elements of nested lists whose lists of one level have one length."""
    level = data
    for _ in range(MAX_DEPTH if type(data) is list else 0):
        if not level or type(level[0]) is not list:
            return list(level)
        if set(map(type, level)) != {list} or len(set(map(len, level))) != 1:
            break
        level = list(chain.from_iterable(level))
    raise RequestError(400, "'data' must be a list of numbers, flat or nested like the shape.")


def _packed_images(data: bytes, count: int) -> tuple[bytes, ...]:
    """Elements of a BYTES tensor: each a length of four bytes, little-endian, and as many bytes."""
    images: list[bytes] = []
    start = 0
    while start < len(data) and len(images) < count:
        size = int.from_bytes(data[start : start + 4], "little")
        end = start + 4 + size
        if start + 4 > len(data) or end > len(data):
            raise RequestError(400, "an element of the BYTES tensor is longer than what follows.")
        images.append(data[start + 4 : end])
        start = end
    if len(images) != count or start != len(data):
        raise RequestError(400, f"the shape states {count} image(s), and there are {'more' if start < len(data) else len(images)}.")
    return tuple(images)


def _base64_images(data: Any, count: int) -> tuple[bytes, ...]:
    if not isinstance(data, list) or not all(isinstance(item, str) for item in data):
        raise RequestError(400, "in JSON, 'data' of BYTES is a list of images in base64; send them as binary data to save a third.")
    if len(data) != count:
        raise RequestError(400, f"the shape states {count} image(s), and there are {len(data)}.")
    try:
        return tuple(base64.b64decode(item, validate=True) for item in data)
    except (binascii.Error, ValueError) as error:
        raise RequestError(400, f"'data' of BYTES is not base64: {error}.") from error


def write_response(spec: ResponseSpec, outputs: ModelOutputs) -> tuple[bytes, int | None]:
    """Body of a response, and the length of its JSON where binary data follows it."""
    entries: list[dict[str, Any]] = []
    blobs: list[bytes] = []
    for wanted in spec.outputs:
        values = outputs.scores if wanted.name == SCORES else outputs.logits
        data: list[Any] = []
        if wanted.classes:
            datatype, shape, data, blob = _top(values, outputs.labels, wanted.classes)
        else:
            datatype, shape, blob = "FP32", list(values.shape), values.astype("<f4").tobytes()
            data = [] if wanted.binary else values.ravel().tolist()
        entry: dict[str, Any] = {"name": wanted.name, "datatype": datatype, "shape": shape}
        if wanted.binary:
            entry["parameters"] = {"binary_data_size": len(blob)}
            blobs.append(blob)
        else:
            entry["data"] = data
        entries.append(entry)
    header = json.dumps(
        {"model_name": outputs.model, "model_version": outputs.version, **({"id": spec.id} if spec.id else {}), "outputs": entries},
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
