"""Check of ONNX files before an engine reads them, because a malicious file may crash the engine or make it read other files.

``wire_format`` parses the file as messages of onnx.proto, without an ONNX library. The check rejects:

- external files (CVE-2022-25882, CVE-2024-27318, CVE-2026-34445 and similar);
- functions, nested graphs, sparse tensors, and operators that are not in ``ONNX_OPERATORS``;
- tensors with a size that does not match their shape;
- sizes and indices beyond 2^31;
- text attributes with bytes that are not printable ASCII (ONNX Runtime 1.32 never returned from an Einsum equation with such a byte);
- ambiguous bytes, which two parsers could read differently.

The check does not compute shapes. A small file may still need more memory than available, for instance by a padding of 2^20. It may also
end the process by an assertion of ONNX Runtime: a pooling window that is larger than its input gives a negative size. Only a trial
(``edgetl.runtime.trial``) protects against both.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import EngineError
from edgetl.runtime.operators import ONNX_OPERATORS, has_index_out_of_range
from edgetl.runtime.wire_format import Kind, Message, Schema, WireFormatError, count, read_message, schema

MAX_NODES = 20_000
MAX_PROPERTY_BYTES = 1_000_000
MAX_RANK = 8
OLDEST_IR, NEWEST_IR, NEWEST_OPSET = 3, 14, 27
# ONNX Runtime reads a file with these bytes at this place in its own format, for every file name.
_ORT_FORMAT = slice(4, 8), b"ORTM"
# ONNX Runtime can read settings of the engine from these metadata properties of a model.
_FORBIDDEN_PROPERTIES = frozenset({"ort_config"})

# For each field that may hold the values instead of raw_data: bytes of an element by TensorProto.DataType. Two 4-bit numbers share a byte.
_ELEMENT_BYTES: dict[str, dict[int, float]] = {
    "float_data": {1: 4},
    "int32_data": {2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 9: 1, 10: 2, 16: 2, 21: 0.5, 22: 0.5},
    "int64_data": {7: 8},
    "double_data": {11: 8},
    "uint64_data": {12: 4, 13: 8},
}
_DATA_TYPES = {code: (size, field) for field, sizes in _ELEMENT_BYTES.items() for code, size in sizes.items()}
_TYPED_DATA: dict[str, Kind] = {**dict.fromkeys(_ELEMENT_BYTES, "number"), "float_data": "float", "double_data": "double"}
# Field with the value of an attribute, by AttributeProto.AttributeType.
_ATTRIBUTE_TYPES = {1: "f", 2: "i", 3: "s", 4: "t", 6: "floats", 7: "ints", 8: "strings"}
_ATTRIBUTE_FIELDS = frozenset(_ATTRIBUTE_TYPES.values())

# Fields of onnx.proto that edgetl exports: number, name, kind, * if repeated.
_PROPERTY = schema("1 key text, 2 value text")
_OPERATOR_SET = schema("1 domain text, 2 version number")
_MODEL = schema(
    "1 ir_version number, 2 producer_name text, 3 producer_version text, 4 domain text, 5 model_version number, 6 doc_string text, 7 "
    "graph bytes, 8 opset_import bytes*, 14 metadata_props bytes*"
)
_GRAPH = schema(
    "1 node bytes*, 2 name text, 5 initializer bytes*, 10 doc_string text, 11 input bytes*, 12 output bytes*, 13 value_info bytes*, "
    "16 metadata_props bytes*"
)
_NODE = schema(
    "1 input text*, 2 output text*, 3 name text, 4 op_type text, 5 attribute bytes*, 6 doc_string text, 7 domain text, 9 "
    "metadata_props bytes*"
)
_ATTRIBUTE = schema(
    "1 name text, 2 f float, 3 i number, 4 s bytes, 5 t bytes, 7 floats float*, 8 ints number*, 9 strings bytes*, 13 doc_string text, "
    "20 type number"
)
_TENSOR = schema(
    "1 dims number*, 2 data_type number, 4 float_data float*, 5 int32_data number*, 7 int64_data number*, 8 name text, 9 raw_data "
    "bytes, 10 double_data double*, 11 uint64_data number*, 12 doc_string text, 13 external_data bytes*, 14 data_location number, 16 "
    "metadata_props bytes*"
)
_VALUE = schema("1 name text, 2 type bytes, 3 doc_string text, 4 metadata_props bytes*")
_TYPE = schema("1 tensor_type bytes, 6 denotation text")
_TENSOR_TYPE = schema("1 elem_type number, 2 shape bytes")
_SHAPE = schema("1 dim bytes*")
_DIMENSION = schema("1 dim_value number, 2 dim_param text, 3 denotation text")
# Schemas by the name of the message in onnx.proto. A test compares them with onnx.proto.
SCHEMAS: dict[str, Schema] = {
    "StringStringEntryProto": _PROPERTY,
    "OperatorSetIdProto": _OPERATOR_SET,
    "ModelProto": _MODEL,
    "GraphProto": _GRAPH,
    "NodeProto": _NODE,
    "AttributeProto": _ATTRIBUTE,
    "TensorProto": _TENSOR,
    "ValueInfoProto": _VALUE,
    "TypeProto": _TYPE,
    "Tensor": _TENSOR_TYPE,
    "TensorShapeProto": _SHAPE,
    "Dimension": _DIMENSION,
}


def check_onnx(model: bytes) -> tuple[str, ...]:
    """Check that an ONNX file could be an export of edgetl.

    Args:
        model: content of the file.

    Returns:
        the operator of each node.

    Raises:
        EngineError: the file is rejected. The message has the reason.
    """
    try:
        return _check_model(memoryview(model))
    except (_MalformedError, WireFormatError) as error:
        raise EngineError(
            f"the ONNX file is damaged or malicious: {error}. The model was not loaded. "
            f"Export the bundle again, or get it from a trusted source."
        ) from error


class _MalformedError(Exception):
    pass


def _read(data: memoryview, name: str) -> Message:
    return read_message(data, SCHEMAS[name], name=name)


def _check_model(data: memoryview) -> tuple[str, ...]:
    place, marker = _ORT_FORMAT
    if data[place] == marker:
        raise _MalformedError("it has ONNX Runtime's own format")
    model = _read(data, "ModelProto")
    graphs = model.messages("graph")
    if not graphs:
        raise _MalformedError("it has no graph")
    ir_version, opset = model.number("ir_version"), _operator_sets(model).get("")
    if ir_version is None or not OLDEST_IR <= ir_version <= NEWEST_IR or opset is None or not 1 <= opset <= NEWEST_OPSET:
        raise _MalformedError(f"it has IR version {ir_version} and operator set {opset}, which this version of edgetl does not support")
    if forbidden := _FORBIDDEN_PROPERTIES & set(_properties(model)):
        raise _MalformedError(f"it has the metadata property {min(forbidden)}, which changes the engine's settings")
    return _check_graph(graphs[0])


def _operator_sets(model: Message) -> dict[str, int | None]:
    found: dict[str, int | None] = {}
    for data in model.messages("opset_import"):
        entry = _read(data, "OperatorSetIdProto")
        domain = entry.text("domain")
        domain = "" if domain == "ai.onnx" else domain
        if domain in found:
            raise _MalformedError(f"it has two versions of the operator set {domain[:60] or 'ai.onnx'}")
        found[domain] = entry.number("version")
    return found


def _properties(message: Message) -> list[str]:
    """Return the keys of ``metadata_props``."""
    keys = []
    for data in message.messages("metadata_props"):
        if len(data) > MAX_PROPERTY_BYTES:
            raise _MalformedError("a metadata property has more than a megabyte")
        keys.append(_read(data, "StringStringEntryProto").text("key"))
    if len(set(keys)) != len(keys):
        raise _MalformedError("two metadata properties have the same key")
    return keys


def _check_graph(data: memoryview) -> tuple[str, ...]:
    graph = _read(data, "GraphProto")
    nodes = graph.messages("node")
    if not 0 < len(nodes) <= MAX_NODES:
        raise _MalformedError(f"the graph has {len(nodes)} nodes (limit 1 to {MAX_NODES})")
    _properties(graph)
    for title in ("input", "output", "value_info"):
        for value in graph.messages(title):
            _check_value(value)
    names = [_check_tensor(tensor) for tensor in graph.messages("initializer")]
    if len(set(names)) != len(names):
        raise _MalformedError("two initializers have the same name")
    return tuple(_check_node(node) for node in nodes)


def _check_node(data: memoryview) -> str:
    node = _read(data, "NodeProto")
    operator, domain = node.text("op_type"), node.text("domain")
    if domain not in ("", "ai.onnx") or operator not in ONNX_OPERATORS:
        title = f"{domain[:60]}{'.' if domain else ''}{operator[:60]!r}"
        raise _MalformedError(f"the operator {title} is not allowed, because edgetl does not export it")
    names = [_check_attribute(attribute) for attribute in node.messages("attribute")]
    if len(set(names)) != len(names):
        raise _MalformedError(f"two attributes of a node {operator} have the same name")
    _properties(node)
    return operator


def _check_attribute(data: memoryview) -> str:
    attribute = _read(data, "AttributeProto")
    name, kind = attribute.text("name"), attribute.number("type")
    if kind not in _ATTRIBUTE_TYPES or _ATTRIBUTE_FIELDS & set(attribute) - {_ATTRIBUTE_TYPES[kind]}:
        raise _MalformedError(f"the attribute {name[:60]!r} has a value that does not match its type {kind}")
    for tensor in attribute.messages("t"):
        _check_tensor(tensor)
    if any(not _is_printable(bytes(text)) for field in ("s", "strings") for text in attribute.messages(field)):
        raise _MalformedError(f"the attribute {name[:60]!r} has text that is not printable ASCII")
    if has_index_out_of_range(np.array([*attribute.numbers("ints"), *attribute.numbers("i")], np.int64)):
        raise _MalformedError(f"the attribute {name[:60]!r} has a size or an index beyond 2^31")
    count(attribute.get("floats", ()), "float")
    return name


def _is_printable(text: bytes) -> bool:
    return text.isascii() and text.decode("ascii").isprintable()


def _check_value(data: memoryview) -> None:
    value = _read(data, "ValueInfoProto")
    _properties(value)
    for kind in value.messages("type"):
        for tensor in _read(kind, "TypeProto").messages("tensor_type"):
            _check_tensor_type(tensor, value.text("name"))


def _check_tensor_type(data: memoryview, name: str) -> None:
    tensor = _read(data, "Tensor")
    if tensor.number("elem_type") not in _DATA_TYPES:
        raise _MalformedError(f"the tensor {name[:60]!r} has the unknown type {tensor.number('elem_type')}")
    for shape in tensor.messages("shape"):
        for side in _read(shape, "TensorShapeProto").messages("dim"):
            dimension = _read(side, "Dimension")
            sides = dimension.numbers("dim_value")
            if (sides and "dim_param" in dimension) or any(not 0 <= size < 2**31 for size in sides):
                raise _MalformedError(f"the tensor {name[:60]!r} has a dimension that is negative, above 2^31, or ambiguous")


def _check_tensor(data: memoryview) -> str:
    """Check that a tensor has one value for each element of its shape, and return its name."""
    tensor = _read(data, "TensorProto")
    name, dims, kind = tensor.text("name"), tensor.numbers("dims"), tensor.number("data_type")
    title = f"the tensor {name[:60]!r}"
    if "external_data" in tensor or tensor.number("data_location", 0) != 0:
        raise _MalformedError(f"{title} is in another file")
    if kind not in _DATA_TYPES:
        raise _MalformedError(f"{title} has the unknown type {kind}")
    if len(dims) > MAX_RANK or any(side < 0 for side in dims):
        raise _MalformedError(f"{title} has a negative dimension, or more than {MAX_RANK} dimensions")
    item_bytes, typed = _DATA_TYPES[kind]
    fields = [field for field in (*_TYPED_DATA, "raw_data") if field in tensor]
    if fields not in ([], [typed], ["raw_data"]):
        raise _MalformedError(f"{title} has its values in {' and '.join(fields)}")
    elements = math.prod(dims)
    if fields == [typed]:
        wanted, found, unit = math.ceil(elements * min(item_bytes, 1)), count(tensor[typed], _TYPED_DATA[typed]), "numbers"
    else:
        wanted, found, unit = math.ceil(elements * item_bytes), sum(map(len, tensor.messages("raw_data"))), "bytes"
    if found != wanted:
        raise _MalformedError(f"{title} of shape {dims} has {found} {unit}, expected {wanted}")
    if typed in ("int64_data", "uint64_data") and any(map(has_index_out_of_range, _whole_numbers(tensor, typed))):
        raise _MalformedError(f"{title} has a size or an index beyond 2^31")
    _properties(tensor)
    return name


def _whole_numbers(tensor: Message, field: str) -> list[NDArray[np.int64]]:
    """Return the 64-bit values, one array for each field of the file."""
    return [np.array(tensor.numbers(field), np.int64), *(np.frombuffer(data, "<i8") for data in tensor.messages("raw_data"))]
