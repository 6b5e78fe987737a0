"""Open Inference Protocol: parsing of requests and writing of responses."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetl.errors import RequestError
from edgetl.serve.protocol.open_inference import InputPort, ModelOutputs, read_request, write_response

PORT = InputPort("input", "FP32", (3, 2, 2))
LABELS = ("a", "b", "c")


def _read(value: object, binary: bytes = b"", port: InputPort = PORT) -> Any:
    header = json.dumps(value).encode()
    return read_request(header + binary, str(len(header)) if binary else None, port, max_batch=4)


def _input(**changes: object) -> dict[str, Any]:
    whole = {"name": "input", "shape": [1, 3, 2, 2], "datatype": "FP32", "data": list(range(12))}
    merged = {**whole, **changes}
    return {"inputs": [{key: value for key, value in merged.items() if value is not None}]}


def test_nested_and_flat_numbers_give_the_same_tensor() -> None:
    flat = _read(_input()).tensor
    nested = _read(_input(data=np.arange(12.0).reshape(1, 3, 2, 2).tolist())).tensor
    assert flat.shape == (1, 3, 2, 2) and np.array_equal(flat, nested) and flat.dtype == np.float32


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "must be a JSON object"),
        ({}, "exactly one input"),
        ({"inputs": [{}, {}]}, "exactly one input"),
        (_input(name="other"), "has the name 'input'"),
        (_input(shape=[1, 3, 2]), "shape \\[-1, 3, 2, 2\\]"),
        (_input(shape=[5, 3, 2, 2]), "at most 4"),
        (_input(shape=[0, 3, 2, 2]), "positive whole numbers"),
        (_input(shape=[1.0, 3, 2, 2]), "positive whole numbers"),
        (_input(shape=[True, 3, 2, 2]), "positive whole numbers"),
        (_input(shape=[2**63, 3, 2, 2]), "positive whole numbers"),
        (_input(shape=[1] * 100), "positive whole numbers"),
        (_input(data=[1, 2]), "needs 12 numbers, but 'data' has 2"),
        (_input(data=[True] * 12), "a list of numbers"),
        (_input(data=["1"] * 12), "a list of numbers"),
        (_input(data=[[1], [1, 2]]), "a list of numbers"),
        (_input(data=[10**400] * 12), "a list of numbers"),
        (_input(data=[1e39] * 12), "not finite"),
        (_input(data=None), "a list of numbers"),
        (_input(datatype="FP16"), "must be FP32"),
        (_input(parameters={"binary_data_size": 48}), "either 'data' or"),
        (_input(parameters=[]), "must be an object"),
        (_input(datatype="BYTES", shape=[1], data=["%"]), "not base64"),
        (_input(datatype="BYTES", shape=[2], data=["aaaa"]), "shape has 2 image"),
        ({**_input(), "id": 7}, "'id' must be a string"),
        ({**_input(), "id": "x" * 300}, "'id' must be a string"),
        ({**_input(), "outputs": []}, "1 to 8 outputs"),
        ({**_input(), "outputs": [{"name": "other"}]}, "unknown name"),
        ({**_input(), "outputs": [{"name": "scores"}] * 2}, "twice"),
        ({**_input(), "outputs": [{"name": "scores", "parameters": {"classification": -1}}]}, "classification"),
        ({**_input(), "outputs": [{"name": "scores", "parameters": {"binary_data": 1}}]}, "binary_data"),
    ],
)
def test_invalid_request_is_rejected(value: object, message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        _read(value)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("parameters", "binary", "message"),
    [
        ({}, bytes(48), "no input has 'binary_data_size'"),
        ({"binary_data_size": 40}, bytes(48), "must be the number of bytes after the JSON, 48"),
        ({"binary_data_size": -1}, bytes(48), "must be the number of bytes"),
        ({"binary_data_size": 44}, bytes(44), "needs 48 bytes, but the request has 44"),
        ({"binary_data_size": 48}, np.full(12, np.nan, "<f4").tobytes(), "not finite"),
    ],
)
def test_invalid_binary_data_is_rejected(parameters: dict[str, int], binary: bytes, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        _read(_input(data=None, parameters=parameters), binary)


def _peak_bytes(body: bytes, header_length: str | None = None) -> int:
    """Return the peak memory of reading a request, which must be rejected, bytes."""
    tracemalloc.start()
    try:
        with pytest.raises(RequestError):
            read_request(body, header_length, PORT, max_batch=4)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "data",
    [
        ["a" * 100_000] + ["b"] * 4000,
        ["a" * 100_000] + ["b"] * 11,
        [["a" * 100_000], *[["b"]] * 11],
        [0.5] * 11 + ["a" * 1_000_000],
        [True] * 11 + [0.5],
        [0.5] * 11 + [None],
        [0.5] * 11 + [[0.5]],
        [[0.5]] * 11 + [0.5],
        [10**300] * 11 + [{}],
    ],
    ids=["strings", "strings of the right count", "nested", "one string", "bool", "null", "list last", "number last", "object"],
)
def test_data_of_other_types_is_rejected_before_conversion(data: list[Any]) -> None:
    body = json.dumps(_input(data=data)).encode()
    assert _peak_bytes(body) < 4_000_000


@pytest.mark.parametrize("unit", [b"[],", b"0,", b"{},", b"[[0],0],", b'{"a":0},', b"["])
def test_too_many_values_are_rejected_before_parsing(unit: bytes) -> None:
    body = b'{"inputs": [{"name": "input", "data": [' + unit * 100_000 + b"0]}]}"
    assert _peak_bytes(body) < 100_000


def test_many_empty_elements_are_not_unpacked() -> None:
    header = json.dumps(_input(datatype="BYTES", shape=[1], data=None, parameters={"binary_data_size": 4_000_000})).encode()
    assert _peak_bytes(header + bytes(4_000_000), str(len(header))) < 9_000_000


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
def test_raw_tensor_with_invalid_values_is_rejected(value: float) -> None:
    with pytest.raises(RequestError, match="not finite, or are beyond"):
        read_request(np.full(12, value, "<f4").tobytes(), "0", PORT, max_batch=4)


def test_integers_and_floats_may_be_mixed() -> None:
    assert _read(_input(data=[1, 0.5] * 6)).tensor.ravel().tolist() == [1.0, 0.5] * 6


def test_bytes_elements_must_fill_the_body() -> None:
    one = (3).to_bytes(4, "little") + b"abc"
    whole = _read(_input(datatype="BYTES", shape=[2], data=None, parameters={"binary_data_size": 14}), one * 2)
    assert whole.images == (b"abc", b"abc") and whole.count == 2
    with pytest.raises(RequestError, match="longer than the remaining body"):
        _read(_input(datatype="BYTES", shape=[2], data=None, parameters={"binary_data_size": 13}), (one * 2)[:-1])


def test_uint8_values_must_be_whole_numbers_up_to_255() -> None:
    port = InputPort("input", "UINT8", (2, 2, 3))
    request = _read(_input(datatype="UINT8", shape=[1, 2, 2, 3], data=[255] * 12), port=port)
    assert request.tensor.dtype == np.uint8
    for data in ([256] * 12, [-1] * 12, [0.5] * 12):
        with pytest.raises(RequestError):
            _read(_input(datatype="UINT8", shape=[1, 2, 2, 3], data=data), port=port)


def test_response_contains_numbers_labels_or_bytes() -> None:
    scores = np.array([[0.1, 0.7, 0.2]], np.float32)
    result = ModelOutputs("m", "3", LABELS, scores, scores)
    outputs = [{"name": "scores"}, {"name": "logits", "parameters": {"binary_data": True, "classification": 2}}]
    body, length = write_response(_read({**_input(), "id": "é", "outputs": outputs}).response, result)
    assert length is not None
    header = json.loads(body[:length])
    assert header["id"] == "é" and header["model_version"] == "3"
    assert header["outputs"][0]["data"] == pytest.approx([0.1, 0.7, 0.2])
    top = header["outputs"][1]
    assert top["datatype"] == "BYTES" and top["shape"] == [1, 2] and len(body) - length == top["parameters"]["binary_data_size"]
    assert body[length + 4 :].startswith(b"0.700000:1:b")


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.one_of(st.none(), st.text(max_size=6)))
def test_any_bytes_are_parsed_or_rejected(body: bytes, header_length: str | None) -> None:
    try:
        read_request(body, header_length, PORT, max_batch=4)
    except RequestError as error:
        assert error.status == 400


_VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=5), inner, max_size=4)),
    max_leaves=10,
)


@settings(max_examples=200, deadline=None)
@given(st.fixed_dictionaries({}, optional=dict.fromkeys(("name", "shape", "datatype", "data", "parameters"), _VALUES)), _VALUES, _VALUES)
def test_any_json_is_parsed_or_rejected(item: dict[str, Any], outputs: object, parameters: object) -> None:
    value = {"inputs": [{"name": "input", **item}], "outputs": outputs, "parameters": parameters}
    try:
        _read(value)
    except RequestError as error:
        assert error.status == 400
