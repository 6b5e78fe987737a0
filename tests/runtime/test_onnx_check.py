"""Check of ONNX files: files that edgetl cannot have exported are rejected before an engine reads them."""

from __future__ import annotations

import random
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgetl.core.bundle import Bundle
from edgetl.errors import EngineError
from edgetl.runtime.engine import load_engine
from edgetl.runtime.onnx_check import MAX_NODES, SCHEMAS, check_onnx


def _model() -> onnx.ModelProto:
    """Return a network of one linear layer."""
    weight = numpy_helper.from_array(np.ones((3, 2), np.float32), "weight")
    node = helper.make_node("MatMul", ["input", "weight"], ["logits"])
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size]) for name, size in (("input", 3), ("logits", 2))]
    return helper.make_model(
        helper.make_graph([node], "graph", ends[:1], ends[1:], [weight]), opset_imports=[helper.make_opsetid("", 20)], ir_version=10
    )


def _assert_rejected(model: onnx.ModelProto | bytes, message: str) -> None:
    data = model if isinstance(model, bytes) else model.SerializeToString()
    with pytest.raises(EngineError, match=message):
        load_engine("onnx", [data], threads=1)


def test_a_valid_file_passes_and_runs() -> None:
    check_onnx(_model().SerializeToString())
    engine = load_engine("onnx", [_model().SerializeToString()], threads=1)
    assert engine.run(np.ones((2, 3), np.float32)).tolist() == [[3, 3], [3, 3]]


def test_every_onnx_file_of_a_bundle_passes(bundle: Bundle) -> None:
    for variant in bundle.manifest.variants:
        if variant.format == "onnx":
            check_onnx(bundle.read(variant.files[0]))


@pytest.mark.parametrize(
    "key", [{"location": "../secret"}, {"location": "/etc/passwd"}, {"location": "side.bin", "offset": "-1"}, {"__class__": "x"}, {}]
)
@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("initializer", "'outside' is in another file"),
        ("attribute", "'outside' is in another file"),
        ("sparse", "GraphProto contains an unknown field 15 "),
        ("subgraph", "AttributeProto contains an unknown field 6 "),
    ],
)
def test_a_tensor_in_another_file_is_rejected_in_every_place(key: dict[str, str], place: str, message: str) -> None:
    model = _model()
    outside = TensorProto(name="outside", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for name, value in key.items():
        outside.external_data.add(key=name, value=value)
    node = model.graph.node[0]
    if place == "initializer":
        model.graph.initializer.append(outside)
    elif place == "attribute":
        node.attribute.append(helper.make_attribute("value", outside))
    elif place == "sparse":
        model.graph.sparse_initializer.add().values.CopyFrom(outside)
    else:
        inner = onnx.GraphProto(node=[helper.make_node("Relu", ["a"], ["b"])], initializer=[outside])
        node.attribute.append(helper.make_attribute("body", inner))
    _assert_rejected(model, message)


def _change(change: Callable[[onnx.ModelProto], object]) -> onnx.ModelProto:
    model = _model()
    change(model)
    return model


def _resize(*dims: int) -> Callable[[onnx.ModelProto], object]:
    def change(model: onnx.ModelProto) -> None:
        del model.graph.initializer[0].dims[:]
        model.graph.initializer[0].dims.extend(dims)

    return change


def _foreign(model: onnx.ModelProto) -> None:
    model.graph.node[0].op_type, model.graph.node[0].domain = "MatMulNBits", "com.microsoft"


def _branch(model: onnx.ModelProto) -> None:
    inner = onnx.GraphProto(node=[helper.make_node("Relu", ["a"], ["b"])])
    model.graph.node[0].attribute.append(helper.make_attribute("then_branch", inner))


def _attribute(**fields: object) -> Callable[[onnx.ModelProto], object]:
    return lambda model: model.graph.node[0].attribute.append(onnx.AttributeProto(name="a", **fields))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("message", "change"),
    [
        ("has 24 bytes, expected 24000000000000", _resize(2, 3 * 10**12)),
        ("negative dimension", _resize(-3, 2)),
        (r"shape \[4611686018427387904\]", _resize(2**62)),
        ("has 24 bytes, expected 28", _resize(7)),
        ("operator 'Loop'", lambda model: setattr(model.graph.node[0], "op_type", "Loop")),
        ("operator com.microsoft.'MatMulNBits'", _foreign),
        ("ModelProto contains an unknown field 25 ", lambda model: model.functions.add(name="f")),
        ("ModelProto contains an unknown field 20 ", lambda model: model.training_info.add()),
        ("AttributeProto contains an unknown field 6 ", _branch),
        ("AttributeProto contains an unknown field 21 ", _attribute(ref_attr_name="other", type=2)),
        ("'a' has a value that does not match its type None", _attribute(i=1)),
        ("'a' has a value that does not match its type 1", _attribute(i=1, type=1)),
        ("two attributes of a node MatMul", lambda model: [_attribute(i=1, type=2)(model) for _ in range(2)]),
        ("two initializers have the same name", lambda model: model.graph.initializer.append(model.graph.initializer[0])),
        ("two versions of the operator set ai.onnx", lambda model: model.opset_import.add(domain="ai.onnx", version=1)),
        ("values in float_data and raw_data", lambda model: model.graph.initializer[0].float_data.append(1.0)),
        ("metadata property ort_config", lambda model: model.metadata_props.add(key="ort_config", value="{}")),
        ("metadata properties have the same key", lambda model: [model.metadata_props.add(key="k", value=value) for value in "ab"]),
        ("TypeProto contains an unknown field", lambda model: model.graph.input[0].type.sequence_type.elem_type.tensor_type.SetInParent()),
        ("dimension that is negative", lambda model: setattr(model.graph.input[0].type.tensor_type.shape.dim[1], "dim_value", -3)),
        ("has 0 nodes", lambda model: model.graph.ClearField("node")),
        ("more than a megabyte", lambda model: model.metadata_props.add(key="k", value="x" * 2_000_000)),
        ("operator set 99", lambda model: setattr(model.opset_import[0], "version", 99)),
        ("IR version 99", lambda model: setattr(model, "ir_version", 99)),
        ("unknown type 77", lambda model: setattr(model.graph.initializer[0], "data_type", 77)),
    ],
)
def test_content_that_edgetl_does_not_export_is_rejected(message: str, change: Callable[[onnx.ModelProto], object]) -> None:
    _assert_rejected(_change(change), message)


def _varint(value: int, *, extra: int = 0) -> bytes:
    """Encode a number as a varint, with ``extra`` unnecessary bytes."""
    parts = []
    while True:
        parts.append(value & 0x7F)
        value >>= 7
        if not value:
            break
    parts += [0] * extra
    return bytes([part | 0x80 for part in parts[:-1]] + parts[-1:])


def _field(number: int, value: bytes, *, wire: int = 2, extra: int = 0) -> bytes:
    return _varint(number << 3 | wire, extra=extra) + _varint(len(value)) + value


# Added to a field number, this gives a tag of more than 32 bits. Some parsers truncate it and read the original field.
WIDE = 1 << 29


def _parts() -> tuple[bytes, bytes]:
    """Return a model without its graph, and the graph."""
    model = _model()
    graph = model.graph.SerializeToString()
    model.ClearField("graph")
    return model.SerializeToString(), graph


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ("too many bytes|unknown field 536870919 ", _field(7 + WIDE, b"")),
        ("too many bytes", _field(7, b"", extra=1)),
        ("too many bytes", _varint(1 << 3, extra=2) + b"\x0a"),
        ("too many bytes", _varint(1 << 3) + _varint(10, extra=3)),
        ("too many bytes", _varint(1 << 3) + b"\xff" * 9 + b"\x7f"),
        ("unknown field 0 ", _field(0, b"")),
        (f"unknown field {2**29 - 1} ", _field(2**29 - 1, b"")),
        ("field graph of ModelProto occurs twice", _field(7, b"")),
        ("field ir_version of ModelProto occurs twice", _varint(1 << 3) + b"\x0a"),
        ("field graph with the wire type 0", _varint(7 << 3) + b"\x01"),
        ("field graph with the wire type 3", _varint(7 << 3 | 3) + _varint(7 << 3 | 4)),
        ("field ir_version with the wire type 5", _varint(1 << 3 | 5) + bytes(4)),
        ("field doc_string of ModelProto exceeds its message", _varint(6 << 3 | 2) + _varint(2**63)),
        ("ModelProto is not UTF-8", _field(6, b"\xff")),
        ("truncated within a number", b"\xba"),
    ],
    ids=range(15),
)
def test_ambiguous_bytes_are_rejected(message: str, field: bytes) -> None:
    outer, graph = _parts()
    _assert_rejected(outer + _field(7, graph) + field, message)


@pytest.mark.parametrize("number", [1, 5, 15], ids=["node", "initializer", "sparse initializer"])
def test_a_field_with_a_tag_of_more_than_32_bits_is_rejected(number: int) -> None:
    """The engine reads such a field as an operator or as a tensor in another file."""
    outer, graph = _parts()
    hidden = helper.make_node("Loop", ["logits"], ["other"]).SerializeToString() if number == 1 else b""
    _assert_rejected(outer + _field(7, graph + _field(number + WIDE, hidden)), "GraphProto contains an unknown field")


@pytest.mark.parametrize("form", ["producer", "flatbuffer"])
def test_a_file_in_the_format_of_onnx_runtime_is_rejected(form: str) -> None:
    """ONNX Runtime recognizes its format by four bytes, which may also be part of a name."""
    rest = _model().SerializeToString()[2:]
    _assert_rejected(b"\x08\x0a\x12\x04ORTM" + rest if form == "producer" else b"\x18\x00\x00\x00ORTM" + bytes(200), "own format")


def test_the_engine_loads_onnx_only() -> None:
    from edgetl.runtime.ort import OrtEngine

    with pytest.raises(EngineError, match=r"(?i)protobuf"):
        OrtEngine(b"\x18\x00\x00\x00ORTM" + bytes(200), threads=1)


def test_packed_numbers_are_counted() -> None:
    model = _model()
    tensor = helper.make_tensor("weight", TensorProto.FLOAT, [3, 2], [1.0] * 6)
    model.graph.initializer[0].CopyFrom(tensor)
    assert check_onnx(model.SerializeToString()) == ("MatMul",)
    del tensor.float_data[5:]
    model.graph.initializer[0].CopyFrom(tensor)
    _assert_rejected(model, "has 5 numbers, expected 6")
    shape = helper.make_tensor("shape", TensorProto.INT64, [2], [300, -1])
    model.graph.initializer[0].CopyFrom(helper.make_tensor("weight", TensorProto.FLOAT, [3, 2], [1.0] * 6))
    model.graph.initializer.append(shape)
    assert check_onnx(model.SerializeToString()) == ("MatMul",)
    data = model.SerializeToString()
    packed = _field(7, _varint(300) + _varint(2**64 - 1))
    assert data.count(packed) == 1
    # Lists of the same length in bytes: a number of more than 64 bits in ten bytes, and numbers that do not end.
    for other in (_varint(300) + b"\xff" * 9 + b"\x02", _varint(300) + b"\xff" * 10, b"\xac\x80" + b"\xff" * 9 + b"\x01"):
        wrong = data.replace(packed, _field(7, other[: len(packed) - 2]))
        _assert_rejected(wrong, "truncated within a number|too many bytes|numbers, expected 2")


def test_the_schemas_equal_those_of_onnx() -> None:
    # Keys are values of FieldDescriptorProto.Type in descriptor.proto.
    kinds = {1: "double", 2: "float", 3: "number", 4: "number", 5: "number", 9: "text", 11: "bytes", 12: "bytes", 14: "number"}
    messages = {name: getattr(onnx, name).DESCRIPTOR for name in SCHEMAS if hasattr(onnx, name)}
    messages |= {"Tensor": onnx.TypeProto.Tensor.DESCRIPTOR, "Dimension": onnx.TensorShapeProto.Dimension.DESCRIPTOR}
    assert messages.keys() == SCHEMAS.keys()
    for name, schema in SCHEMAS.items():
        for tag, (field, kind, repeated, _) in schema.items():
            known = messages[name].fields_by_number[tag >> 3]
            assert (field, kind, repeated) == (known.name, kinds[known.type], known.is_repeated), name


def test_too_many_nodes_are_rejected() -> None:
    _assert_rejected(_change(lambda model: model.graph.node.extend([model.graph.node[0]] * MAX_NODES)), f"{MAX_NODES + 1} nodes")


def _zipped() -> bytes:
    with zipfile.ZipFile(target := BytesIO(), "w") as file:
        file.writestr("a", "b")
    return target.getvalue()


@pytest.mark.parametrize("data", [b"", b"<html></html>", b"\x80\x04}.", _zipped(), b"<?xml version='1.0'?><net/>", bytes(1000)])
def test_files_of_other_formats_are_rejected(data: bytes) -> None:
    _assert_rejected(data, "damaged or malicious|cannot load")


def test_truncated_and_random_files_are_rejected(bundle: Bundle) -> None:
    whole = bundle.read(next(item for item in bundle.manifest.variants if item.name == "onnx-int8").files[0])
    for tenth in range(1, 10):
        _assert_rejected(whole[: len(whole) * tenth // 10], "damaged or malicious")
    rng = random.Random(0)
    for _ in range(300):
        noise = bytearray(whole[:3000])
        for _ in range(5):
            noise[rng.randrange(len(noise))] = rng.randrange(256)
        with pytest.raises(EngineError):
            check_onnx(bytes(noise))
        with pytest.raises(EngineError):
            check_onnx(rng.randbytes(1000))


def test_a_graph_without_inputs_is_rejected() -> None:
    constant = helper.make_node("Constant", [], ["logits"], value_floats=[1.0])
    ends = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1])]
    graph = helper.make_graph([constant], "graph", [], ends)
    _assert_rejected(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), "no input or no output")


def test_the_engine_rejects_inconsistent_graphs(tmp_path: Path) -> None:
    cyclic = _change(lambda model: model.graph.node.append(helper.make_node("Relu", ["b"], ["b"])))
    dangling = _change(lambda model: model.graph.ClearField("initializer"))
    for model in (cyclic, dangling):
        _assert_rejected(model, "ONNX Runtime .* cannot load the model")


def _padded(*numbers: int, typed: bool) -> onnx.ModelProto:
    """Return a network with a padding by constant amounts."""
    kind, values = TensorProto.INT64, np.array(numbers, np.int64)
    amounts = helper.make_tensor("amounts", kind, [len(numbers)], numbers) if typed else numpy_helper.from_array(values, "amounts")
    nodes = [helper.make_node("Pad", ["input", "amounts"], ["wide"]), helper.make_node("MatMul", ["wide", "weight"], ["logits"])]

    def change(model: onnx.ModelProto) -> None:
        del model.graph.node[:]
        model.graph.node.extend(nodes)
        model.graph.initializer.append(amounts)

    return _change(change)


@pytest.mark.parametrize("typed", [False, True], ids=["raw", "typed"])
def test_sizes_and_indices_beyond_2_to_the_31_are_rejected(typed: bool) -> None:
    for number in (2**31, 858_993_459_200, -(2**31) - 1, 2**62 - 1, 2**62, 2**63 - 2):
        _assert_rejected(_padded(0, 0, number, 0, typed=typed), "'amounts' has a size or an index beyond 2")
    for name, value in (("pads", [0, 2**40]), ("axis", -(2**33))):
        attribute = helper.make_attribute(name, value)
        _assert_rejected(_change(lambda model, it=attribute: model.graph.node[0].attribute.append(it)), f"'{name}' has a size")  # type: ignore[misc]
    # These ends of a slice mean "to the end", in both directions.
    check_onnx(_padded(2**63 - 1, -(2**63), 2**31 - 1, -1, typed=typed).SerializeToString())
    check_onnx(_padded(typed=typed).SerializeToString())


@pytest.mark.parametrize("equation", [b"bc,kc\xe0\xcc->bk", b"bc,kc\x00->bk", b"bc,kc\n->bk", "bc,kcä->bk".encode()])
def test_a_text_attribute_that_is_not_printable_ascii_is_rejected(equation: bytes) -> None:
    model = _model()
    node = model.graph.node[0]
    node.op_type = "Einsum"
    node.attribute.append(helper.make_attribute("equation", equation))
    _assert_rejected(model, "'equation' has text that is not printable ASCII")


def test_an_einsum_equation_in_ascii_runs() -> None:
    model = _model()
    node = model.graph.node[0]
    node.op_type = "Einsum"
    node.attribute.append(helper.make_attribute("equation", "bc,ck->bk"))
    assert load_engine("onnx", [model.SerializeToString()], threads=1).run(np.ones((2, 3), np.float32)).tolist() == [[3, 3], [3, 3]]
