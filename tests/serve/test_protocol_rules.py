"""Open Inference Protocol: limits, complete error messages, and bytes of responses (inference_rest.md and its binary extension)."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import numpy as np
import pytest

from edgetl.errors import RequestError
from edgetl.serve.protocol.open_inference import (
    MAX_OBJECTS,
    MAX_OTHER_VALUES,
    InferRequest,
    InputPort,
    ModelOutputs,
    RequestedOutput,
    ResponseSpec,
    is_count,
    read_request,
    write_response,
)

PORT = InputPort("input", "FP32", (3, 2, 2))
PIXELS = InputPort("input", "UINT8", (2, 2, 3))
NUMBERS = list(range(12))


def _read(value: object, binary: bytes = b"", port: InputPort = PORT, max_batch: int = 4) -> InferRequest:
    header = json.dumps(value).encode()
    return read_request(header + binary, str(len(header)) if binary else None, port, max_batch=max_batch)


def _error(value: object, binary: bytes = b"", port: InputPort = PORT) -> str:
    with pytest.raises(RequestError) as caught:
        _read(value, binary, port)
    assert caught.value.status == 400
    return str(caught.value)


def _input(**changes: object) -> dict[str, Any]:
    whole = {"name": "input", "shape": [1, 3, 2, 2], "datatype": "FP32", "data": NUMBERS, **changes}
    return {"inputs": [{key: value for key, value in whole.items() if value is not None}]}


def _binary(size: object, **changes: object) -> dict[str, Any]:
    return _input(data=None, parameters={"binary_data_size": size}, **changes)


def _floats(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


EXPECTED = "the input must be FP32 of shape [-1, 3, 2, 2], or BYTES of shape [n]."
LISTS = "'data' must be a list of numbers, flat or nested like the shape."
SHAPE = "'shape' must be a list of 1 to 8 positive whole numbers."
ONE_INPUT = "'inputs' must have exactly one input with the name 'input'."
BASE64 = "in JSON, 'data' of BYTES must be a list of images in base64. Binary data is smaller by a quarter."
CLASSES = "'classification' must be the number of labels to return, from 0 to 1000000."
FLOAT_LIMIT = "the tensor has values that are not finite, or are beyond ±1e+06."


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1], "the request must be a JSON object."),
        ({}, ONE_INPUT),
        ({"inputs": {}}, ONE_INPUT),
        ({"inputs": []}, ONE_INPUT),
        ({"inputs": [7]}, ONE_INPUT),
        ({"inputs": [_input()["inputs"][0]] * 2}, ONE_INPUT),
        ({**_input(), "parameters": []}, "'parameters' must be an object."),
        (_input(parameters=3), "'parameters' must be an object."),
        (_input(name="other"), "the model input has the name 'input'."),
        (_input(shape={}), SHAPE),
        (_input(shape=[]), SHAPE),
        (_input(shape=[1] * 9), SHAPE),
        (_input(shape=[1, 3, 2, 2.0]), SHAPE),
        (_input(shape=[True, 3, 2, 2]), SHAPE),
        (_input(shape=[0, 3, 2, 2]), SHAPE),
        (_input(shape=[1, 3, 2, 2**31 + 1]), SHAPE),
        (_input(shape=[1] * 8), EXPECTED),
        (_input(shape=[1, 3, 2, 2**31]), EXPECTED),
        (_input(shape=[1]), EXPECTED),
        (_input(datatype="FP16"), EXPECTED),
        (_input(shape=[5, 3, 2, 2]), "the request has 5 images. The limit is at most 4 per request."),
        (_input(data=[0] * 11), "shape [1, 3, 2, 2] needs 12 numbers, but 'data' has 11."),
        (_input(data=[0] * 13), "shape [1, 3, 2, 2] needs 12 numbers, but 'data' has 13."),
        (_input(data=[True] * 12), LISTS),
        (_input(data=["1"] * 12), LISTS),
        (_input(data="x" * 12), LISTS),
        (_input(data=None), LISTS),
        (_input(data=[[0] * 6, [0] * 5, [0]]), LISTS),
        (_input(data=[[0] * 6, 0]), LISTS),
        (_input(data=[10**400] * 12), "'data' must be a list of numbers that fit the datatype. One number is too large."),
        (_input(data=[1e39] * 12), FLOAT_LIMIT),
        (_input(data=[-1.1e6] + [0] * 11), FLOAT_LIMIT),
        (_input(parameters={"binary_data_size": 48}), "an input must have either 'data' or 'binary_data_size', not both."),
        (_input(datatype="BYTES", shape=[1, 1], data=["aaaa"]), "encoded images must be a BYTES tensor of shape [n]."),
        (_input(datatype="BYTES", shape=[1], data="aaaa"), BASE64),
        (_input(datatype="BYTES", shape=[1], data=[7]), BASE64),
        (_input(datatype="BYTES", shape=[1], data=None), BASE64),
        (_input(datatype="BYTES", shape=[2], data=["aaaa"]), "the shape has 2 image(s), but the request has 1."),
        (_input(datatype="BYTES", shape=[1], data=["aaaa", "bbbb"]), "the shape has 1 image(s), but the request has 2."),
        (_input(datatype="BYTES", shape=[1], data=["aaa"]), "'data' of BYTES is not base64: Incorrect padding."),
        ({**_input(), "id": 7}, "'id' must be a string of at most 256 characters."),
        ({**_input(), "id": "x" * 257}, "'id' must be a string of at most 256 characters."),
        ({**_input(), "id": "a\ud800"}, "'id' contains an unpaired surrogate, which is not a valid character."),
        ({**_input(), "id": "\udfff"}, "'id' contains an unpaired surrogate, which is not a valid character."),
        ({**_input(), "outputs": []}, "'outputs' must have 1 to 8 outputs."),
        ({**_input(), "outputs": {}}, "'outputs' must have 1 to 8 outputs."),
        ({**_input(), "outputs": [{"name": "scores"}] * 9}, "'outputs' must have 1 to 8 outputs."),
        ({**_input(), "outputs": [{"name": "scores"}] * 8}, "'outputs' contains an output twice."),
        ({**_input(), "outputs": ["scores"]}, "an output has an unknown name. The outputs are 'scores' and 'logits'."),
        ({**_input(), "outputs": [{"name": "other"}]}, "an output has an unknown name. The outputs are 'scores' and 'logits'."),
        ({**_input(), "outputs": [{"name": "scores", "parameters": 1}]}, "'parameters' must be an object."),
        ({**_input(), "outputs": [{"name": "scores", "parameters": {"classification": -1}}]}, CLASSES),
        ({**_input(), "outputs": [{"name": "scores", "parameters": {"classification": 1_000_001}}]}, CLASSES),
        ({**_input(), "outputs": [{"name": "scores", "parameters": {"classification": True}}]}, CLASSES),
        ({**_input(), "outputs": [{"name": "scores", "parameters": {"classification": 2.0}}]}, CLASSES),
        ({**_input(), "outputs": [{"name": "scores", "parameters": {"binary_data": 1}}]}, "'binary_data' must be true or false."),
    ],
)
def test_invalid_request_gets_a_message_with_the_rule(value: object, message: str) -> None:
    assert _error(value) == message


@pytest.mark.parametrize(
    ("value", "binary", "message"),
    [
        (_input(), b"x", "1 bytes follow the JSON, but no input has 'binary_data_size'."),
        (_binary(47), bytes(48), "'binary_data_size' must be the number of bytes after the JSON, 48."),
        (_binary(48.0), bytes(48), "'binary_data_size' must be the number of bytes after the JSON, 48."),
        (_binary(True), b"x", "'binary_data_size' must be the number of bytes after the JSON, 1."),
        (_binary(44), bytes(44), "shape [1, 3, 2, 2] of FP32 needs 48 bytes, but the request has 44."),
        (_binary(52), bytes(52), "shape [1, 3, 2, 2] of FP32 needs 48 bytes, but the request has 52."),
        (_binary(48), _floats(*[0.0] * 11, float("nan")), FLOAT_LIMIT),
        (_binary(3, datatype="BYTES", shape=[1]), b"abc", "an element of the BYTES tensor is longer than the remaining body."),
        (_binary(5, datatype="BYTES", shape=[1]), b"\2\0\0\0a", "an element of the BYTES tensor is longer than the remaining body."),
        (_binary(5, datatype="BYTES", shape=[2]), b"\1\0\0\0a", "the shape has 2 image(s), but the request has 1."),
        (_binary(6, datatype="BYTES", shape=[1]), b"\1\0\0\0ab", "the shape has 1 image(s), but the request has more."),
    ],
)
def test_invalid_binary_data_gets_a_message_with_the_rule(value: object, binary: bytes, message: str) -> None:
    assert _error(value, binary) == message


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([256] + [0] * 11, "UINT8 values must be whole numbers from 0 to 255."),
        ([-1] + [0] * 11, "UINT8 values must be whole numbers from 0 to 255."),
        ([0.0] * 12, "'data' must be a list of whole numbers, flat or nested like the shape."),
        ([2**63] * 12, "'data' must be a list of numbers that fit the datatype. One number is too large."),
    ],
)
def test_invalid_pixels_get_a_message_with_the_rule(data: list[float], message: str) -> None:
    assert _error(_input(datatype="UINT8", shape=[1, 2, 2, 3], data=data), port=PIXELS) == message


@pytest.mark.parametrize("text", ["x", "", "-1", "1.0", "٣", "1000000000", "13"])
def test_a_header_length_that_is_no_length_gets_400(text: str) -> None:
    with pytest.raises(RequestError) as caught:
        read_request(b"{}" + bytes(10), text, PORT, max_batch=4)
    assert (caught.value.status, str(caught.value)) == (
        400,
        "the header inference-header-content-length must be the length of the JSON, at most the length of the body (12).",
    )


def test_a_count_has_at_most_nine_digits() -> None:
    assert is_count("999999999") and is_count("0") and not is_count("1234567890") and not is_count("²") and not is_count("")


def test_the_header_length_may_be_the_whole_body() -> None:
    body = json.dumps(_input()).encode()
    assert read_request(body, str(len(body)), PORT, max_batch=4).count == 1


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "the request is not valid JSON: Expecting property name enclosed in double quotes"),
        (b'{"a": 1, "a": 2}', "the request is not valid JSON: an object has a duplicate key"),
        (b"\xff", "the request is not valid JSON: "),
        (b"[" * 4000 + b"]" * 4000, "the request is not valid JSON: it is nested too deeply"),
    ],
)
def test_a_body_that_is_not_json_gets_400(body: bytes, message: str) -> None:
    with pytest.raises(RequestError) as caught:
        read_request(body, None, PORT, max_batch=4)
    assert caught.value.status == 400 and str(caught.value).startswith(message) and len(str(caught.value)) <= len(message) + 200


@pytest.mark.parametrize(("separator", "count"), [(b",", 48 + MAX_OTHER_VALUES), (b"[", 48 + MAX_OTHER_VALUES), (b"{", MAX_OBJECTS)])
def test_values_lists_and_objects_are_counted_before_parsing(separator: bytes, count: int) -> None:
    """A batch of 4 images of 12 numbers may have 48 values besides the limits."""
    large = "the request has more lists, objects or values than allowed for this model (48 numbers, 64 objects)."
    for number, is_large in ((count, False), (count + 1, True)):
        with pytest.raises(RequestError) as caught:
            read_request(separator * number, None, PORT, max_batch=4)
        assert caught.value.status == 400 and (str(caught.value) == large) == is_large


def test_a_body_without_json_is_one_tensor_or_one_image() -> None:
    spec = ResponseSpec("", (RequestedOutput("scores", binary=True, classes=0),))
    tensor = read_request(_floats(*NUMBERS), "0", PORT, max_batch=4)
    assert tensor.response == spec and tensor.images == () and tensor.count == 1
    assert tensor.tensor is not None and tensor.tensor.tolist() == np.arange(12.0).reshape(1, 3, 2, 2).tolist()
    assert read_request(b"image", "0", PORT, max_batch=4) == InferRequest(spec, None, (b"image",))
    pixels = read_request(bytes(range(12)), "0", PIXELS, max_batch=4)
    assert pixels.tensor is not None and pixels.tensor.dtype == np.uint8 and pixels.tensor.shape == (1, 2, 2, 3)
    with pytest.raises(RequestError) as caught:
        read_request(b"", "0", PORT, max_batch=4)
    assert (caught.value.status, str(caught.value)) == (400, "the body is empty. Send one tensor or one encoded image.")


def test_binary_and_json_tensors_are_equal() -> None:
    plain, packed = _read(_input()), _read(_binary(48), _floats(*NUMBERS))
    assert plain.tensor is not None and packed.tensor is not None and np.array_equal(plain.tensor, packed.tensor)
    assert plain.images == packed.images == () and plain.tensor.dtype == packed.tensor.dtype == np.float32
    two = _read(_input(shape=[2, 3, 2, 2], data=NUMBERS * 2))
    assert two.count == 2 and two.tensor is not None and two.tensor[1].ravel().tolist() == NUMBERS
    pixels = _read(_input(datatype="UINT8", shape=[1, 2, 2, 3], data=[0, 255] * 6), port=PIXELS)
    assert pixels.tensor is not None and pixels.tensor.ravel().tolist() == [0, 255] * 6 and pixels.tensor.dtype == np.uint8


def test_values_up_to_a_million_are_accepted() -> None:
    tensor = _read(_input(data=[1e6, -1e6] * 6)).tensor
    assert tensor is not None and tensor.ravel().tolist() == [1e6, -1e6] * 6


def test_the_largest_batch_is_accepted() -> None:
    assert _read(_input(shape=[4, 3, 2, 2], data=NUMBERS * 4)).count == 4


def test_lists_may_be_nested_up_to_eight_levels() -> None:
    nested: Any = [NUMBERS]
    for _ in range(6):
        nested = [nested]
    assert _read(_input(data=nested)).count == 1
    assert _error(_input(data=[nested])) == LISTS


def test_encoded_images_are_base64_or_elements_with_their_length() -> None:
    images = (b"first image", b"", b"3")
    text = _read(_input(datatype="BYTES", shape=[3], data=[base64.b64encode(image).decode() for image in images]))
    packed = b"".join(struct.pack("<I", len(image)) + image for image in images)
    binary = _read(_binary(len(packed), datatype="BYTES", shape=[3]), packed)
    assert text.images == binary.images == images and text.tensor is binary.tensor is None and text.count == 3
    long = struct.pack("<I", 70_000) + bytes(70_000)
    assert _read(_binary(len(long), datatype="BYTES", shape=[1]), long).images == (bytes(70_000),)


def test_the_response_spec_has_id_and_outputs_of_the_request() -> None:
    assert _read(_input()).response == ResponseSpec("", (RequestedOutput("scores", False, 0),))
    assert _read({**_input(), "parameters": {"binary_data_output": True}}).response.outputs == (RequestedOutput("scores", True, 0),)
    assert _read({**_input(), "parameters": {"binary_data_output": 1}}).response.outputs == (RequestedOutput("scores", False, 0),)
    outputs = [{"name": "logits", "parameters": {"classification": 1_000_000, "binary_data": False}}, {"name": "scores"}]
    request = {**_input(), "id": "x" * 256, "outputs": outputs, "parameters": {"binary_data_output": True}}
    assert _read(request).response == ResponseSpec(
        "x" * 256, (RequestedOutput("logits", False, 1_000_000), RequestedOutput("scores", True, 0))
    )
    assert _read({**_input(), "id": "\ud7ff\ue000"}).response.id == "\ud7ff\ue000"


SCORES = np.array([[0.25, 0.5, 0.25], [0.0, 0.125, 0.875]], np.float32)
LOGITS = np.array([[1.0, 2.0, 1.0], [-9.0, 0.5, 3.0]], np.float32)
OUTPUTS = ModelOutputs("model", "3", ("a", "é", "c"), SCORES, LOGITS)


def test_a_response_has_numbers_in_json() -> None:
    body, length = write_response(ResponseSpec("é", (RequestedOutput("scores"), RequestedOutput("logits"))), OUTPUTS)
    assert length is None and "é".encode() in body
    assert json.loads(body) == {
        "model_name": "model",
        "model_version": "3",
        "id": "é",
        "outputs": [
            {"name": "scores", "datatype": "FP32", "shape": [2, 3], "data": [0.25, 0.5, 0.25, 0.0, 0.125, 0.875]},
            {"name": "logits", "datatype": "FP32", "shape": [2, 3], "data": [1.0, 2.0, 1.0, -9.0, 0.5, 3.0]},
        ],
    }


def test_a_response_has_binary_data_after_the_json() -> None:
    body, length = write_response(ResponseSpec("", (RequestedOutput("logits", binary=True), RequestedOutput("scores"))), OUTPUTS)
    assert length is not None and body[length:] == LOGITS.astype("<f4").tobytes()
    assert json.loads(body[:length]) == {
        "model_name": "model",
        "model_version": "3",
        "outputs": [
            {"name": "logits", "datatype": "FP32", "shape": [2, 3], "parameters": {"binary_data_size": 24}},
            {"name": "scores", "datatype": "FP32", "shape": [2, 3], "data": SCORES.ravel().tolist()},
        ],
    }


def test_binary_outputs_follow_each_other_without_a_gap() -> None:
    body, length = write_response(ResponseSpec("", tuple(RequestedOutput(name, binary=True) for name in ("scores", "logits"))), OUTPUTS)
    assert length is not None and body[length:] == SCORES.astype("<f4").tobytes() + LOGITS.astype("<f4").tobytes()


def test_many_equal_scores_keep_the_order_of_the_labels() -> None:
    """NumPy's default sort keeps the order of equal values in short arrays only."""
    labels = tuple(f"label {index}" for index in range(200))
    values = np.tile(np.array([0.25, 0.5], np.float32), 100)[None]
    body, _ = write_response(
        ResponseSpec("", (RequestedOutput("scores", classes=200),)), ModelOutputs("model", "1", labels, values, values)
    )
    order = [*range(1, 200, 2), *range(0, 200, 2)]
    assert [int(text.split(":")[1]) for text in json.loads(body)["outputs"][0]["data"]] == order


def test_top_labels_have_value_index_and_label_and_ties_keep_the_order() -> None:
    body, length = write_response(ResponseSpec("", (RequestedOutput("scores", classes=2),)), OUTPUTS)
    (output,) = json.loads(body)["outputs"]
    texts = ["0.500000:1:é", "0.250000:0:a", "0.875000:2:c", "0.125000:1:é"]
    assert length is None and output == {"name": "scores", "datatype": "BYTES", "shape": [2, 2], "data": texts}
    body, length = write_response(ResponseSpec("", (RequestedOutput("scores", binary=True, classes=9),)), OUTPUTS)
    assert length is not None
    (output,) = json.loads(body[:length])["outputs"]
    texts = ["0.500000:1:é", "0.250000:0:a", "0.250000:2:c", "0.875000:2:c", "0.125000:1:é", "0.000000:0:a"]
    blob = b"".join(struct.pack("<I", len(text.encode())) + text.encode() for text in texts)
    assert output == {"name": "scores", "datatype": "BYTES", "shape": [2, 3], "parameters": {"binary_data_size": len(blob)}}
    assert body[length:] == blob
