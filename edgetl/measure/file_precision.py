"""Precision of a model file, read from its weights and operators instead of its name."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import assert_never

from edgetl.core.config import StrictModel
from edgetl.core.manifest import Format, Precision
from edgetl.runtime.ir_check import check_ir
from edgetl.runtime.onnx_check import SCHEMAS, check_onnx
from edgetl.runtime.wire_format import Message, read_message

# TensorProto.DataType of onnx.proto.
_ONNX_TYPES = {1: "f32", 2: "u8", 3: "i8", 10: "f16", 11: "f64", 16: "bf16", 21: "u4", 22: "i4"}
# Operators that quantize activations: stored ranges, ranges computed at run time, and integer kernels.
_QUANTIZING = frozenset(
    ("QuantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "FakeQuantize")
)
_INTEGERS = frozenset(("i8", "u8", "i4", "u4"))
_IR_CONSTANT = re.compile(rb'<data element_type="(\w+)" shape="([0-9, ]*)"')
_IR_TYPE = re.compile(rb'<layer [^>]*type="(\w+)"')


class FilePrecision(StrictModel):
    """Precision of a model file.

    Attributes:
        precision: ``int8``: integer weights, and operators that quantize activations. ``int8-weights``: integer weights only.
        weights: ratio of the weights of each element type, 0..1, the most frequent first. Constants with fewer than two dimensions, such
            as biases and scales, are not counted.
    """

    precision: Precision
    weights: dict[str, float]


def file_precision(format_: Format, files: Sequence[bytes]) -> FilePrecision:
    """Read the precision of a model from its files.

    Args:
        format_: format of the files.
        files: the ONNX file, or the ``.xml`` and ``.bin`` of the IR.

    Raises:
        EngineError: a file is rejected by the checks before an engine reads it.
    """
    match format_:
        case "onnx":
            weights, operators = _onnx(files[0])
        case "openvino":
            weights, operators = _ir(files[0], files[1])
        case _:
            assert_never(format_)
    total = max(sum(weights.values()), 1)
    ratios = {kind: round(count / total, 4) for kind, count in weights.most_common()}
    most = next(iter(ratios), "f32")
    if most in _INTEGERS:
        return FilePrecision(precision="int8" if operators & _QUANTIZING else "int8-weights", weights=ratios)
    return FilePrecision(precision="fp16" if most in ("f16", "bf16") else "fp32", weights=ratios)


def _onnx(model: bytes) -> tuple[Counter[str], set[str]]:
    """Return the number of weights of each element type, and the operators."""
    operators, weights = set(check_onnx(model)), Counter[str]()
    (graph,) = _read(memoryview(model), "ModelProto").messages("graph")
    fields = _read(graph, "GraphProto")
    tensors = list(fields.messages("initializer"))
    for node in fields.messages("node"):
        for attribute in _read(node, "NodeProto").messages("attribute"):
            tensors += _read(attribute, "AttributeProto").messages("t")
    for data in tensors:
        tensor = _read(data, "TensorProto")
        dims, kind = tensor.numbers("dims"), _ONNX_TYPES.get(tensor.number("data_type") or 0)
        if kind is not None and len(dims) >= 2:
            weights[kind] += math.prod(dims)
    return weights, operators


def _read(data: memoryview, name: str) -> Message:
    return read_message(data, SCHEMAS[name], name=name)


def _ir(xml: bytes, weights_file: bytes) -> tuple[Counter[str], set[str]]:
    """Return the number of weights of each element type, and the operators.

    ``check_ir`` accepts only XML as OpenVINO writes it, without comments and entities. The patterns therefore find elements only.
    """
    check_ir(xml, weights_file)
    weights = Counter[str]()
    for kind, shape in _IR_CONSTANT.findall(xml):
        dims = [int(side) for side in shape.replace(b" ", b"").split(b",") if side]
        if kind.decode() in (*_INTEGERS, "f32", "f16", "bf16", "f64") and len(dims) >= 2:
            weights[kind.decode()] += math.prod(dims)
    return weights, {kind.decode() for kind in _IR_TYPE.findall(xml)}
