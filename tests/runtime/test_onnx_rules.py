"""Check of ONNX files: every limit, at its value and beyond it, with the complete message."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgetl.errors import EngineError
from edgetl.runtime.onnx_check import MAX_NODES, MAX_PROPERTY_BYTES, check_onnx


def _model(**changes: Any) -> onnx.ModelProto:
    weight = numpy_helper.from_array(np.ones((3, 2), np.float32), "weight")
    node = helper.make_node("MatMul", ["input", "weight"], ["logits"])
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size]) for name, size in (("input", 3), ("logits", 2))]
    settings = {"opset_imports": [helper.make_opsetid("", 20)], "ir_version": 10, **changes}
    return helper.make_model(helper.make_graph([node], "graph", ends[:1], ends[1:], [weight]), **settings)


_Change = Callable[[onnx.ModelProto], Any]


def _changed(change: _Change) -> bytes:
    model = _model()
    change(model)
    return model.SerializeToString()


def _accept(change: _Change) -> None:
    assert check_onnx(_changed(change))[0] == "MatMul"


def _reject(change: _Change | bytes, message: str) -> None:
    with pytest.raises(EngineError) as caught:
        check_onnx(change if isinstance(change, bytes) else _changed(change))
    rest = "The model was not loaded. Export the bundle again, or get it from a trusted source."
    assert str(caught.value) == f"the ONNX file is damaged or malicious: {message}. {rest}"


def _set(**fields: Any) -> _Change:
    """Set fields of the only initializer."""

    def change(model: onnx.ModelProto) -> None:
        tensor = model.graph.initializer[0]
        for name, value in fields.items():
            tensor.ClearField(name)
            if isinstance(value, list):
                getattr(tensor, name).extend(value)
            elif value is not None:
                setattr(tensor, name, value)

    return change


def _attribute(**fields: Any) -> _Change:
    return lambda model: model.graph.node[0].attribute.append(onnx.AttributeProto(**{"name": "a", **fields}))


def test_the_operators_of_the_nodes_are_returned_in_order() -> None:
    model = _model()
    model.graph.node.append(helper.make_node("Relu", ["logits"], ["more"], domain="ai.onnx"))
    assert check_onnx(model.SerializeToString()) == ("MatMul", "Relu")


@pytest.mark.parametrize(("ir_version", "opset"), [(3, 20), (14, 20), (10, 1), (10, 27)])
def test_the_range_of_versions_is_accepted(ir_version: int, opset: int) -> None:
    model = _model(opset_imports=[helper.make_opsetid("ai.onnx", opset)], ir_version=ir_version)
    assert check_onnx(model.SerializeToString()) == ("MatMul",)


@pytest.mark.parametrize(("ir_version", "opset"), [(2, 20), (15, 20), (10, 0), (10, 28)])
def test_other_versions_are_rejected(ir_version: int, opset: int) -> None:
    model = _model(opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
    _reject(
        model.SerializeToString(),
        f"it has IR version {ir_version} and operator set {opset}, which this version of edgetl does not support",
    )


BEYOND: list[tuple[_Change, str]] = [
    (
        lambda model: model.ClearField("ir_version"),
        "it has IR version None and operator set 20, which this version of edgetl does not support",
    ),
    (
        lambda model: model.ClearField("opset_import"),
        "it has IR version 10 and operator set None, which this version of edgetl does not support",
    ),
    (
        lambda model: model.opset_import[0].ClearField("version"),
        "it has IR version 10 and operator set None, which this version of edgetl does not support",
    ),
    (lambda model: model.ClearField("graph"), "it has no graph"),
    (lambda model: model.opset_import.add(domain="ai.onnx", version=1), "it has two versions of the operator set ai.onnx"),
    (
        lambda model: [model.opset_import.add(domain="d" * 70, version=1) for _ in range(2)],
        f"it has two versions of the operator set {'d' * 60}",
    ),
    (
        lambda model: model.metadata_props.add(key="ort_config", value="{}"),
        "it has the metadata property ort_config, which changes the engine's settings",
    ),
    (lambda model: [model.metadata_props.add(key="k", value=v) for v in "ab"], "two metadata properties have the same key"),
    (lambda model: [model.graph.metadata_props.add(key="k", value=v) for v in "ab"], "two metadata properties have the same key"),
    (
        lambda model: [model.graph.node[0].metadata_props.add(key="k", value=v) for v in "ab"],
        "two metadata properties have the same key",
    ),
    (
        lambda model: [model.graph.input[0].metadata_props.add(key="k", value=v) for v in "ab"],
        "two metadata properties have the same key",
    ),
    (
        lambda model: [model.graph.initializer[0].metadata_props.add(key="k", value=v) for v in "ab"],
        "two metadata properties have the same key",
    ),
    (lambda model: model.metadata_props.add(key="k", value="x" * MAX_PROPERTY_BYTES), "a metadata property has more than a megabyte"),
    (lambda model: model.graph.ClearField("node"), f"the graph has 0 nodes (limit 1 to {MAX_NODES})"),
    (
        lambda model: model.graph.node.extend([model.graph.node[0]] * MAX_NODES),
        f"the graph has {MAX_NODES + 1} nodes (limit 1 to {MAX_NODES})",
    ),
    (lambda model: model.graph.initializer.append(model.graph.initializer[0]), "two initializers have the same name"),
    (
        lambda model: setattr(model.graph.node[0], "op_type", "L" * 70),
        f"the operator {'L' * 60!r} is not allowed, because edgetl does not export it",
    ),
    (
        lambda model: setattr(model.graph.node[0], "domain", "m" * 70),
        f"the operator {'m' * 60}.'MatMul' is not allowed, because edgetl does not export it",
    ),
    (lambda model: [_attribute(i=1, type=2)(model) for _ in range(2)], "two attributes of a node MatMul have the same name"),
    (_attribute(i=1), "the attribute 'a' has a value that does not match its type None"),
    (_attribute(name="n" * 70, i=1, type=1), f"the attribute {'n' * 60!r} has a value that does not match its type 1"),
    (_attribute(i=1, f=1.0, type=2), "the attribute 'a' has a value that does not match its type 2"),
    (_attribute(type=5), "the attribute 'a' has a value that does not match its type 5"),
    (_attribute(name="n" * 70, s=b"a\n", type=3), f"the attribute {'n' * 60!r} has text that is not printable ASCII"),
    (_attribute(s=b"\xe9", type=3), "the attribute 'a' has text that is not printable ASCII"),
    (_attribute(strings=[b"x", b"\0"], type=8), "the attribute 'a' has text that is not printable ASCII"),
    (_attribute(name="n" * 70, i=2**31, type=2), f"the attribute {'n' * 60!r} has a size or an index beyond 2^31"),
    (_attribute(ints=[1, 2**40], type=7), "the attribute 'a' has a size or an index beyond 2^31"),
    (_attribute(t=TensorProto(name="t", data_type=77), type=4), "the tensor 't' has the unknown type 77"),
    (lambda model: setattr(model.graph.input[0].type.tensor_type, "elem_type", 77), "the tensor 'input' has the unknown type 77"),
    (lambda model: setattr(model.graph.output[0].type.tensor_type, "elem_type", 77), "the tensor 'logits' has the unknown type 77"),
    (
        lambda model: model.graph.value_info.append(helper.make_tensor_value_info("v" * 70, 77, [1])),
        f"the tensor {'v' * 60!r} has the unknown type 77",
    ),
    (
        lambda model: model.graph.value_info.append(helper.make_tensor_value_info("v" * 70, 1, [2**31])),
        f"the tensor {'v' * 60!r} has a dimension that is negative, above 2^31, or ambiguous",
    ),
    (
        lambda model: model.graph.value_info.append(helper.make_tensor_value_info("v", 1, [1, -1])),
        "the tensor 'v' has a dimension that is negative, above 2^31, or ambiguous",
    ),
    (_set(data_location=1), "the tensor 'weight' is in another file"),
    (_set(name="w" * 70, data_location=1), f"the tensor {'w' * 60!r} is in another file"),
    (lambda model: model.graph.initializer[0].external_data.add(key="a"), "the tensor 'weight' is in another file"),
    (_set(data_type=8), "the tensor 'weight' has the unknown type 8"),
    (_set(data_type=None), "the tensor 'weight' has the unknown type None"),
    (_set(dims=[1] * 7 + [3, 2]), "the tensor 'weight' has a negative dimension, or more than 8 dimensions"),
    (_set(dims=[-3, -2]), "the tensor 'weight' has a negative dimension, or more than 8 dimensions"),
    (_set(float_data=[1.0]), "the tensor 'weight' has its values in float_data and raw_data"),
    (_set(raw_data=None, double_data=[1.0]), "the tensor 'weight' has its values in double_data"),
    (_set(raw_data=None), "the tensor 'weight' of shape [3, 2] has 0 bytes, expected 24"),
    (_set(raw_data=bytes(25)), "the tensor 'weight' of shape [3, 2] has 25 bytes, expected 24"),
    (_set(raw_data=None, float_data=[1.0] * 5), "the tensor 'weight' of shape [3, 2] has 5 numbers, expected 6"),
    (_set(data_type=21, dims=[5], raw_data=bytes(2)), "the tensor 'weight' of shape [5] has 2 bytes, expected 3"),
    (_set(data_type=21, dims=[5], raw_data=None, int32_data=[1, 2]), "the tensor 'weight' of shape [5] has 2 numbers, expected 3"),
    (
        _set(data_type=7, dims=[2], raw_data=np.array([0, 2**40], "<i8").tobytes()),
        "the tensor 'weight' has a size or an index beyond 2^31",
    ),
    (_set(data_type=7, dims=[2], raw_data=None, int64_data=[0, 2**40]), "the tensor 'weight' has a size or an index beyond 2^31"),
    (_set(data_type=13, dims=[2], raw_data=None, uint64_data=[0, 2**40]), "the tensor 'weight' has a size or an index beyond 2^31"),
]


@pytest.mark.parametrize(("change", "message"), BEYOND, ids=range(len(BEYOND)))
def test_content_beyond_a_limit_is_rejected_with_the_rule(change: _Change, message: str) -> None:
    _reject(change, message)


def test_a_dimension_with_a_number_and_a_name_is_rejected() -> None:
    """The name of seven bytes becomes a number (field 1) and a name of three bytes."""
    data = _changed(lambda model: model.graph.value_info.append(helper.make_tensor_value_info("v", 1, ["batch"])))
    assert data.count(b"\x12\x05batch") == 1
    message = "the tensor 'v' has a dimension that is negative, above 2^31, or ambiguous"
    _reject(data.replace(b"\x12\x05batch", b"\x08\x01\x12\x03abc"), message)


def test_the_format_of_onnx_runtime_is_rejected() -> None:
    _reject(b"\x10\0\0\0ORTM" + bytes(40), "it has ONNX Runtime's own format")


AT_LIMIT: list[_Change] = [
    lambda model: model.metadata_props.add(key="k", value="x" * (MAX_PROPERTY_BYTES - 7)),
    lambda model: [model.metadata_props.add(key=key, value="x") for key in "ab"],
    lambda model: model.graph.node.extend([model.graph.node[0]] * (MAX_NODES - 1)),
    lambda model: model.opset_import.add(domain="other", version=99),
    _attribute(i=2**31 - 1, type=2),
    _attribute(i=-(2**31), type=2),
    _attribute(ints=[0, -1, 7], type=7),
    _attribute(s=b"bilinear ~", type=3),
    _attribute(floats=[1.0, 2.0], type=6),
    _attribute(t=numpy_helper.from_array(np.ones(2, np.float32), "t"), type=4),
    lambda model: model.graph.value_info.append(helper.make_tensor_value_info("v", 1, [0, 2**31 - 1, "n", None])),
    _set(data_location=0),
    _set(dims=[1] * 6 + [3, 2]),
    _set(dims=[0], raw_data=None),
    _set(dims=[0], raw_data=b""),
    _set(dims=[], raw_data=bytes(4)),
    _set(data_type=21, dims=[5], raw_data=bytes(3)),
    _set(data_type=21, dims=[5], raw_data=None, int32_data=[1, 2, 3]),
    _set(data_type=10, dims=[2], raw_data=None, int32_data=[1, 2]),
    _set(data_type=10, dims=[2], raw_data=bytes(4)),
    _set(data_type=11, dims=[2], raw_data=None, double_data=[1.0, 2.0]),
    _set(data_type=12, dims=[1], raw_data=None, uint64_data=[5]),
    _set(data_type=7, dims=[2], raw_data=None, int64_data=[2**31 - 1, -(2**31)]),
    _set(data_type=6, dims=[1], raw_data=np.array([2**31 - 1], "<i4").tobytes()),
]


@pytest.mark.parametrize("change", AT_LIMIT, ids=range(len(AT_LIMIT)))
def test_content_at_a_limit_passes(change: _Change) -> None:
    _accept(change)


def test_a_packed_list_of_floats_has_four_bytes_for_each() -> None:
    """A text attribute of 8 bytes becomes a list of two floats (field 7, type 6), then of 5 bytes in an attribute with a longer name."""
    floats = np.array([-1.0, 2.0], "<f4").tobytes()
    data = _changed(_attribute(name="abc", type=3, s=b"12345678"))
    text, kind = b"\x0a\x03abc\x22\x0812345678", b"\xa0\x01\x03"
    assert data.count(text + kind) == 1
    assert check_onnx(data.replace(text + kind, b"\x0a\x03abc\x3a\x08" + floats + b"\xa0\x01\x06")) == ("MatMul",)
    wrong = data.replace(text + kind, b"\x0a\x06abcdef\x3a\x05" + bytes(5) + b"\xa0\x01\x06")
    _reject(wrong, "a list of numbers is truncated within a number")
