"""What an ONNX file is made of, looked at before an engine reads it: an engine that parses a hostile file may crash or read others.

The file is walked as protocol-buffer fields (https://protobuf.dev/programming-guides/encoding/, field numbers of onnx.proto) without any
library of ONNX. Refused are what an export of ours never holds: files outside (CVE-2022-25882, CVE-2024-27318, CVE-2026-34445 and their
kin), functions, control flow, foreign operators, tensors whose size is not that of their shape.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TypeAlias

from edgetl.errors import EngineError
from edgetl.runtime.operators import ONNX_OPERATORS

MAX_NODES = 20_000
MAX_GRAPHS_DEEP = 4
MAX_PROPERTY_BYTES = 1_000_000
OLDEST_IR, NEWEST_IR, NEWEST_OPSET = 3, 14, 27

_Value: TypeAlias = int | memoryview
# Bytes of one element by TensorProto.DataType; strings have none. Two 4-bit numbers share a byte.
_ITEM_BYTES = {1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 12: 4, 13: 8, 16: 2, 21: 0.5, 22: 0.5}


def check_onnx(model: bytes) -> None:
    """Refuse a file that no export of this project could have written.

    Raises:
        EngineError: and what is wrong with it.
    """
    try:
        _check_model(memoryview(model))
    except (_MalformedError, RecursionError, UnicodeDecodeError) as error:
        raise EngineError(f"the ONNX file is damaged or hostile: {error}. Nothing was loaded.") from error


class _MalformedError(Exception):
    pass


def _fields(data: memoryview) -> Iterator[tuple[int, _Value]]:
    """Number and value of each field of one message, in their order."""
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, place = _varint(data, place)
            yield number, value
            continue
        if kind == 2:
            length, place = _varint(data, place)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise _MalformedError(f"a field of kind {kind}")
        if number == 0 or place + length > len(data):
            raise _MalformedError("a field reaches beyond its message")
        yield number, data[place : place + length]
        place += length


def _varint(data: memoryview, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(data):
            raise _MalformedError("it ends within a number")
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise _MalformedError("a number of more than ten bytes")


def _message(value: _Value) -> memoryview:
    if isinstance(value, int):
        raise _MalformedError("a number stands where a message must")
    return value


def _text(value: _Value) -> str:
    return str(_message(value), "utf-8")


def _number(value: _Value) -> int:
    """A signed 64-bit number."""
    if not isinstance(value, int):
        raise _MalformedError("a message stands where a number must")
    return value - 2**64 if value >= 2**63 else value


def _check_model(model: memoryview) -> None:
    graphs, ir_version, opset = [], None, None
    for number, value in _fields(model):
        if number == 1:
            ir_version = _number(value)
        elif number == 7:
            graphs.append(_message(value))
        elif number == 8:
            found = dict(_fields(_message(value)))
            if not bytes(_message(found.get(1, memoryview(b"")))):
                opset = _number(found.get(2, 0))
        elif number == 14 and len(_message(value)) > MAX_PROPERTY_BYTES:
            raise _MalformedError("a metadata property of more than a megabyte")
        elif number in (20, 25):
            raise _MalformedError("it holds functions or training graphs")
    if len(graphs) != 1:
        raise _MalformedError(f"it holds {len(graphs)} graphs and not one")
    if ir_version is None or not OLDEST_IR <= ir_version <= NEWEST_IR or opset is None or not 1 <= opset <= NEWEST_OPSET:
        raise _MalformedError(f"IR version {ir_version} with operator set {opset}, which this edgetl does not know")
    _check_graph(graphs[0], depth=1)


def _check_graph(graph: memoryview, *, depth: int) -> None:
    if depth > MAX_GRAPHS_DEEP:
        raise _MalformedError(f"graphs within graphs, more than {MAX_GRAPHS_DEEP} deep")
    nodes = 0
    for number, value in _fields(graph):
        if number == 1:
            nodes += 1
            _check_node(_message(value), depth=depth)
        elif number == 5:
            _check_tensor(_message(value))
        elif number == 15:
            _check_sparse(_message(value))
    if not 0 < nodes <= MAX_NODES:
        raise _MalformedError(f"a graph of {nodes} nodes (at most {MAX_NODES})")


def _check_node(node: memoryview, *, depth: int) -> None:
    operator, domain = "", ""
    for number, value in _fields(node):
        if number == 4:
            operator = _text(value)
        elif number == 7:
            domain = _text(value)
        elif number == 5:
            _check_attribute(_message(value), depth=depth)
    if domain not in ("", "ai.onnx") or operator not in ONNX_OPERATORS:
        raise _MalformedError(f"the operator {domain[:60]}{'.' if domain else ''}{operator[:60]!r}, which no export of ours uses")


def _check_attribute(attribute: memoryview, *, depth: int) -> None:
    for number, value in _fields(attribute):
        if number in (5, 10):
            _check_tensor(_message(value))
        elif number in (6, 11):
            _check_graph(_message(value), depth=depth + 1)
        elif number in (22, 23):
            _check_sparse(_message(value))


def _check_sparse(sparse: memoryview) -> None:
    for number, value in _fields(sparse):
        if number in (1, 2):
            _check_tensor(_message(value))


def _check_tensor(tensor: memoryview) -> None:
    dims: list[int] = []
    kind, raw, name = 0, None, ""
    for number, value in _fields(tensor):
        if number == 1:
            dims += [_number(value)] if isinstance(value, int) else _packed(value)
        elif number == 2:
            kind = _number(value)
        elif number == 8:
            name = _text(value)[:60]
        elif number == 9:
            raw = len(_message(value))
        elif number == 13 or (number == 14 and value != 0):
            raise _MalformedError(f"the tensor {name!r} lies in another file")
    if any(side < 0 for side in dims):
        raise _MalformedError(f"the tensor {name!r} has a negative side")
    if kind == 8:
        return
    if kind not in _ITEM_BYTES:
        raise _MalformedError(f"the tensor {name!r} has the unknown type {kind}")
    wanted = math.ceil(math.prod(dims) * _ITEM_BYTES[kind])
    if (raw is not None and raw != wanted) or (raw is None and wanted > len(tensor) * 8):
        held = "less" if raw is None else f"{raw} bytes"
        raise _MalformedError(f"the tensor {name!r} of shape {dims[:8]} needs {wanted} bytes and holds {held}")


def _packed(value: memoryview) -> list[int]:
    found, place = [], 0
    while place < len(value):
        item, place = _varint(value, place)
        found.append(_number(item))
    return found
