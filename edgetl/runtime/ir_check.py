"""What an OpenVINO IR is made of, looked at before the engine reads it.

Refused are what an export of ours never holds: document types and entities, layers that share an id (OpenVINO takes the last, other tools
see the first), control flow, memory and foreign extensions, constants outside the ``.bin`` or of another size than their shape, and
shapes that no small device could hold.
"""

from __future__ import annotations

import math
from xml.parsers import expat

from edgetl.errors import EngineError

VERSIONS = ("10", "11")
OPSETS = frozenset(f"opset{number}" for number in range(1, 17))
REFUSED = frozenset({"TensorIterator", "Loop", "If", "ReadValue", "Assign"})
MAX_LAYERS = 20_000
MAX_DEPTH = 12
# Of one tensor, for one image.
MAX_ELEMENTS = 2**28
_ITEM_BYTES = {
    "f64": 8, "f32": 4, "f16": 2, "bf16": 2, "f8e4m3": 1, "f8e5m2": 1, "i64": 8, "i32": 4, "i16": 2, "i8": 1, "i4": 0.5, "u64": 8,
    "u32": 4, "u16": 2, "u8": 1, "u4": 0.5, "u1": 0.125, "nf4": 0.5, "boolean": 1,
}  # fmt: skip


def check_ir(xml: bytes, weights: bytes) -> None:
    """Refuse an IR that no export of this project could have written.

    Raises:
        EngineError: and what is wrong with it.
    """
    try:
        _Check(len(weights)).read(xml)
    except (_MalformedError, expat.ExpatError, ValueError) as error:
        raise EngineError(f"the OpenVINO IR is damaged or hostile: {error}. Nothing was loaded.") from error


class _MalformedError(Exception):
    pass


class _Check:
    """One pass over the XML."""

    def __init__(self, weights: int) -> None:
        self.weights = weights
        self.path: list[str] = []
        self.ids: set[str] = set()
        self.layer = ""
        self.dims: list[int] = []
        self.text = ""

    def read(self, xml: bytes) -> None:
        parser = expat.ParserCreate()
        parser.StartDoctypeDeclHandler = self._refuse_doctype
        parser.StartElementHandler = self._begin
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._hear
        parser.Parse(xml, True)
        if not self.ids:
            raise _MalformedError("it holds no layers")

    def _refuse_doctype(self, *_: object) -> None:
        raise _MalformedError("it declares a document type, which may fetch or multiply entities")

    def _begin(self, name: str, attributes: dict[str, str]) -> None:
        if not self.path and (name != "net" or attributes.get("version") not in VERSIONS):
            raise _MalformedError(f"its root is {name[:40]!r} of version {attributes.get('version', 'none')[:20]}, not a net of 10 or 11")
        self.path.append(name)
        if len(self.path) > MAX_DEPTH:
            raise _MalformedError(f"elements more than {MAX_DEPTH} deep")
        self.text = ""
        if self.path == ["net", "layers", "layer"]:
            self._begin_layer(attributes)
        elif name == "port":
            self.dims = []
        elif name == "data" and self.layer == "Const":
            self._check_constant(attributes)
        elif name == "body":
            raise _MalformedError("it holds a body of control flow")

    def _begin_layer(self, attributes: dict[str, str]) -> None:
        number, self.layer, opset = (attributes.get(key, "") for key in ("id", "type", "version"))
        if number in self.ids:
            raise _MalformedError(f"two layers have the id {number[:20]}")
        self.ids.add(number)
        if len(self.ids) > MAX_LAYERS:
            raise _MalformedError(f"more than {MAX_LAYERS} layers")
        if opset not in OPSETS or self.layer in REFUSED:
            raise _MalformedError(f"the operation {opset[:40]}.{self.layer[:60]}, which no export of ours uses")

    def _check_constant(self, attributes: dict[str, str]) -> None:
        kind, shape = attributes.get("element_type", ""), attributes.get("shape", "")
        sides = [int(side) for side in shape.split(",") if side.strip()]
        offset, size = int(attributes.get("offset", "-1")), int(attributes.get("size", "-1"))
        if kind not in _ITEM_BYTES or any(side < 0 for side in sides):
            raise _MalformedError(f"a constant of type {kind[:20]!r} and shape [{shape[:60]}]")
        wanted = math.ceil(math.prod(sides) * _ITEM_BYTES[kind])
        if size != wanted:
            raise _MalformedError(f"a constant of shape [{shape[:60]}] needs {wanted} bytes and names {size}")
        if offset < 0 or offset + size > self.weights:
            raise _MalformedError(f"a constant reaches to byte {offset + size} of weights that have {self.weights}")

    def _hear(self, text: str) -> None:
        if self.path[-1:] == ["dim"]:
            self.text += text

    def _end(self, name: str) -> None:
        self.path.pop()
        if name == "dim":
            self.dims.append(int(self.text))
        elif name == "port" and math.prod(max(1, side) for side in self.dims) > MAX_ELEMENTS:
            raise _MalformedError(f"a tensor of shape {self.dims[:8]}, more than {MAX_ELEMENTS} elements")
