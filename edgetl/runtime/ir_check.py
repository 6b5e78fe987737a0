"""Check of OpenVINO IR files before the engine reads them.

The XML must have the structure that OpenVINO writes: known elements, in their places, with known attributes. The check rejects:

- document types and entities, and also comments and CDATA sections, because XML parsers join them to the surrounding text in different
  ways;
- layer types that are not in ``OPENVINO_OPERATIONS``;
- layers with the same id (OpenVINO uses the last one, other tools the first one), and input ports without an edge or with several;
- constants outside the ``.bin`` or with a size that does not match their shape, and shapes that are too large for a small device;
- steps, padding and resizing that image networks do not have (OpenVINO 2026.4 wrote outside its memory for a dilation of -1, and for
  padding of the batch).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from xml.parsers import expat

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import EngineError
from edgetl.runtime.operators import OPENVINO_OPERATIONS, has_index_out_of_range

VERSION = "11"
OPSETS = frozenset(f"opset{number}" for number in range(1, 17))
MAX_LAYERS = 20_000
MAX_DEPTH = 12
MAX_RANK = 8
MAX_XML_BYTES = 2**26
# Largest number of elements of a tensor, for one image.
MAX_ELEMENTS = 2**28
# Bytes of an element, by its type. The number in the name of a type is its number of bits.
_ITEM_BYTES = {"boolean": 1.0, "bf16": 2.0, "f8e4m3": 1.0, "f8e5m2": 1.0, "nf4": 0.5} | {
    kind: int(kind[1:]) / 8 for kind in "f64 f32 f16 i64 i32 i16 i8 i4 u64 u32 u16 u8 u4 u1".split()
}
# Allowed children of an element, by its place. True if a child may be repeated.
_CHILDREN: dict[tuple[str, ...], dict[str, bool]] = {
    (): {"net": False},
    ("net",): {"layers": False, "edges": False, "rt_info": False},
    ("net", "layers"): {"layer": True},
    ("net", "layers", "layer"): {"data": False, "rt_info": False, "input": False, "output": False},
    ("net", "layers", "layer", "rt_info"): {"attribute": True},
    ("net", "layers", "layer", "input"): {"port": True},
    ("net", "layers", "layer", "output"): {"port": True},
    ("net", "layers", "layer", "input", "port"): {"dim": True, "rt_info": False},
    ("net", "layers", "layer", "output", "port"): {"dim": True, "rt_info": False},
    ("net", "layers", "layer", "input", "port", "rt_info"): {"attribute": True},
    ("net", "layers", "layer", "output", "port", "rt_info"): {"attribute": True},
    ("net", "edges"): {"edge": True},
}
# Allowed attributes, by the name of an element. Other elements may have any attribute.
_ATTRIBUTES: dict[str, frozenset[str]] = {
    "net": frozenset({"name", "version"}),
    "layers": frozenset(),
    "layer": frozenset({"id", "name", "type", "version", "output_names"}),
    "input": frozenset(),
    "output": frozenset(),
    "port": frozenset({"id", "precision", "names"}),
    "dim": frozenset(),
    "edges": frozenset(),
    "edge": frozenset({"from-layer", "from-port", "to-layer", "to-port"}),
}
_CONSTANT_ATTRIBUTES = frozenset({"element_type", "shape", "offset", "size"})
# The only layer type with an attribute ``size`` that is not a place in the weights.
_SIZED = frozenset({"LRN"})
_MODEL_INFO = ("net", "rt_info")
# Largest stride, dilation, kernel size and padding along one axis.
MAX_STEP = 2**10
_SMALLEST_STEP = {"strides": 1, "dilations": 1, "kernel": 1, "pads_begin": 0, "pads_end": 0, "output_padding": 0}
_NUMPY_TYPES = {"f32": "<f4", "f16": "<f2", "i64": "<i8", "i32": "<i4"}


def check_ir(xml: bytes, weights: bytes) -> None:
    """Check that an IR could be an export of edgetl.

    Args:
        xml: content of the ``.xml`` file.
        weights: content of the ``.bin`` file.

    Raises:
        EngineError: the IR is rejected. The message has the reason.
    """
    try:
        _Check(weights).read(xml)
    except (_MalformedError, expat.ExpatError) as error:
        raise EngineError(
            f"the OpenVINO IR is damaged or malicious: {error}. The model was not loaded. "
            f"Export the bundle again, or get it from a trusted source."
        ) from error


class _MalformedError(Exception):
    pass


def _natural(text: str, title: str) -> int:
    """Parse a number in its canonical form, which every reader parses in the same way."""
    if not re.fullmatch(r"0|[1-9][0-9]{0,18}", text):
        raise _MalformedError(f"{title} {text[:40]!r} is not a non-negative integer")
    return int(text)


class _Check:
    """Check of one IR in a single pass over its XML."""

    def __init__(self, weights: bytes) -> None:
        self.weights = weights
        self.path: tuple[str, ...] = ()
        # Names of the children of each open element so far.
        self.seen: list[set[str]] = [set()]
        self.layer, self.kind = "", ""
        # Dimensions of each port by its id, for the inputs and the outputs of each layer; -1 is a dynamic dimension.
        self.ports: dict[tuple[str, str], dict[str, list[int]]] = {}
        self.constant_sides: list[int] = []
        # Types of the layers by id, and the values of constants that may be amounts of padding or resizing.
        self.layers: dict[str, str] = {}
        self.amounts: dict[str, NDArray[np.generic]] = {}
        self.edges: list[dict[str, str]] = []
        self.dims: list[int] = []
        self.text = ""

    def read(self, xml: bytes) -> None:
        if len(xml) > MAX_XML_BYTES:
            raise _MalformedError(f"the XML has more than {MAX_XML_BYTES} bytes")
        if xml[:1] != b"<":
            raise _MalformedError("the XML does not begin with an element")
        # The parser would read it as UTF-16, in spite of the encoding below.
        if b"\0" in xml:
            raise _MalformedError("the XML contains a zero byte")
        # OpenVINO guesses an encoding other than UTF-8 differently from this parser.
        parser = expat.ParserCreate("utf-8")
        parser.XmlDeclHandler = self._declare
        parser.StartDoctypeDeclHandler = self._reject("a document type, which may load or multiply entities")
        parser.CommentHandler = self._reject("a comment")
        parser.StartCdataSectionHandler = self._reject("a CDATA section")
        parser.ProcessingInstructionHandler = self._reject("a processing instruction")
        parser.StartElementHandler = self._begin
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._add_text
        parser.Parse(xml, True)
        if missing := {"Parameter", "Result"} - set(self.layers.values()):
            raise _MalformedError(f"there is no layer {min(missing)}")
        self._check_edges()

    def _declare(self, version: str, encoding: str | None, _standalone: int) -> None:
        if version != "1.0" or (encoding or "utf-8").lower() != "utf-8":
            raise _MalformedError(f"the file is XML {version[:10]} with the encoding {(encoding or 'utf-8')[:20]}, expected XML 1.0, UTF-8")

    @staticmethod
    def _reject(content: str) -> Callable[..., None]:
        def handler(*_: object) -> None:
            raise _MalformedError(f"the XML contains {content}")

        return handler

    def _begin(self, name: str, attributes: dict[str, str]) -> None:
        self._check_place(name)
        self.path, self.text = (*self.path, name), ""
        self.seen.append(set())
        if self.path[:2] == _MODEL_INFO:
            # The names of these elements are keys of the model's metadata, such as the converter's option ``input``.
            return
        if unknown := attributes.keys() - _ATTRIBUTES.get(name, attributes.keys()):
            raise _MalformedError(f"an element {name} has the unknown attribute {min(unknown)[:40]!r}")
        match name:
            case "net":
                if attributes.get("version") != VERSION:
                    raise _MalformedError(f"the format has version {attributes.get('version', 'none')[:20]}, expected {VERSION}")
            case "layer":
                self._begin_layer(attributes)
            case "data":
                self._begin_data(attributes)
            case "port":
                self._begin_port(attributes.get("id", ""))
            case "edge":
                self.edges.append(attributes)
            case _:
                pass

    def _check_place(self, name: str) -> None:
        if len(self.path) >= MAX_DEPTH:
            raise _MalformedError(f"elements are nested more than {MAX_DEPTH} deep")
        if self.path[:2] == _MODEL_INFO:
            return
        allowed = _CHILDREN.get(self.path, {})
        if name not in allowed:
            raise _MalformedError(f"unexpected element {name[:40]!r} in {'/'.join(self.path) or 'the root'}")
        if name in self.seen[-1] and not allowed[name]:
            raise _MalformedError(f"an element {self.path[-1]} has two elements {name!r}")
        self.seen[-1].add(name)

    def _begin_layer(self, attributes: dict[str, str]) -> None:
        self.layer, self.kind, opset = (attributes.get(key, "") for key in ("id", "type", "version"))
        _natural(self.layer, "the layer id")
        if self.layer in self.layers:
            raise _MalformedError(f"two layers have the id {self.layer}")
        self.layers[self.layer] = self.kind
        if len(self.layers) > MAX_LAYERS:
            raise _MalformedError(f"the network has more than {MAX_LAYERS} layers")
        if opset not in OPSETS or self.kind not in OPENVINO_OPERATIONS:
            raise _MalformedError(f"the operation {opset[:40]}.{self.kind[:60]} is not allowed, because edgetl does not export it")

    def _begin_data(self, attributes: dict[str, str]) -> None:
        if self.kind == "Const":
            self._check_constant(attributes)
        # OpenVINO (2026.4) wrote outside its memory for a dilation of 2^62.
        elif self.kind != "Clamp" and any(re.search(r"(?<![0-9.])[0-9]{11,}(?![0-9.eE])", text) for text in attributes.values()):
            raise _MalformedError(f"a layer {self.kind} has an integer of more than ten digits")
        elif attributes.keys() & {"offset", "size"} and self.kind not in _SIZED:
            raise _MalformedError(f"a layer {self.kind} has a place in the weights")
        elif self.kind == "Parameter":
            sides = [side.strip(" ") for side in attributes.get("shape", "").split(",")]
            self._check_shape([1 if side in ("?", "-1") else _natural(side, "the dimension") for side in sides])
        else:
            for name in attributes.keys() & _SMALLEST_STEP.keys():
                self._check_steps(name, [_natural(step.strip(" "), name) for step in attributes[name].split(",") if attributes[name]])

    def _check_steps(self, name: str, steps: list[int]) -> None:
        most = 0 if self.kind == "Interpolate" else MAX_STEP
        if not all(_SMALLEST_STEP[name] <= step <= most for step in steps):
            raise _MalformedError(f"a layer {self.kind} has {name} {steps[:8]}, outside {_SMALLEST_STEP[name]} to {most}")

    def _check_constant(self, attributes: dict[str, str]) -> None:
        # The shape of a port is compared with the data before it.
        if "output" in self.seen[-2]:
            raise _MalformedError("a constant has its data after its port")
        if attributes.keys() != _CONSTANT_ATTRIBUTES:
            raise _MalformedError(f"a constant has the attributes {', '.join(sorted(attributes))[:80]}")
        kind, shape = attributes["element_type"], attributes["shape"]
        self.constant_sides = sides = [_natural(side.strip(" "), "the dimension") for side in shape.split(",")] if shape else []
        offset, size = (_natural(attributes[key], f"the {key} of a constant") for key in ("offset", "size"))
        if kind not in _ITEM_BYTES or len(sides) > MAX_RANK:
            raise _MalformedError(f"a constant has the type {kind[:20]!r} and the shape [{shape[:60]}], which are not allowed")
        wanted = math.ceil(math.prod(sides) * _ITEM_BYTES[kind])
        if size != wanted:
            raise _MalformedError(f"a constant of shape [{shape[:60]}] has {size} bytes, expected {wanted}")
        if offset + size > len(self.weights):
            raise _MalformedError(f"a constant ends at byte {offset + size}, and the weights have {len(self.weights)} bytes")
        # OpenVINO (2026.4) wrote outside its memory for a slice that begins at 2^36.
        if kind in ("i64", "u64") and size and has_index_out_of_range(np.frombuffer(self.weights, "<i8", size // 8, offset)):
            raise _MalformedError("a constant has an index or a size above 2^31")
        if kind in _NUMPY_TYPES and len(sides) == 1 and sides[0] <= MAX_RANK:
            self.amounts[self.layer] = np.frombuffer(self.weights, _NUMPY_TYPES[kind], sides[0], offset)

    def _begin_port(self, number: str) -> None:
        self.dims = []
        _natural(number, "the port id")
        ports = self.ports.setdefault((self.layer, self.path[-2]), {})
        if number in ports:
            raise _MalformedError(f"two ports of layer {self.layer} have the id {number}")
        ports[number] = self.dims

    def _add_text(self, text: str) -> None:
        if self.path[-1:] == ("dim",):
            self.text += text
        elif text.strip():
            raise _MalformedError(f"the element {'/'.join(self.path)} contains text")

    def _end(self, name: str) -> None:
        if self.path[:2] != _MODEL_INFO:
            if name == "dim":
                self.dims.append(-1 if self.text == "-1" else _natural(self.text, "the dimension"))
            elif name == "port":
                self._check_shape(self.dims)
                if self.kind == "Const" and self.dims != self.constant_sides:
                    raise _MalformedError(f"a constant has the shape {self.constant_sides}, and its port the shape {self.dims}")
            elif name == "layer" and self.kind in ("Const", "Parameter") and "data" not in self.seen[-1]:
                raise _MalformedError(f"a layer {self.kind} has no data")
        self.path = self.path[:-1]
        self.seen.pop()

    def _check_shape(self, sides: list[int]) -> None:
        if math.prod(max(1, side) for side in sides) > MAX_ELEMENTS or len(sides) > MAX_RANK:
            raise _MalformedError(f"a tensor of shape {sides[:8]} has more than {MAX_ELEMENTS} elements or {MAX_RANK} dimensions")

    def _check_edges(self) -> None:
        """Check that edges connect existing ports of equal shapes, and that each input port has exactly one edge."""
        reached: set[tuple[str, str]] = set()
        for edge in self.edges:
            source, target = (edge.get("from-layer", ""), "output"), (edge.get("to-layer", ""), "input")
            if edge.get("from-port") not in self.ports.get(source, ()) or edge.get("to-port") not in self.ports.get(target, ()):
                raise _MalformedError(f"an edge from layer {source[0][:20]!r} to layer {target[0][:20]!r} connects ports that do not exist")
            # OpenVINO (2026.4) wrote outside its memory for a MatMul by a vector in place of a matrix.
            shapes = self.ports[source][edge["from-port"]], self.ports[target][edge["to-port"]]
            if shapes[0] != shapes[1]:
                raise _MalformedError(
                    f"an edge from layer {source[0]!r} to layer {target[0]!r} connects the shapes {shapes[0]} and {shapes[1]}"
                )
            end = target[0], edge["to-port"]
            if end in reached:
                raise _MalformedError(f"port {end[1]} of layer {end[0]} has two edges")
            reached.add(end)
            if source[0] in self.amounts:
                self._check_amounts(self.layers[end[0]], end[1], self.amounts[source[0]])
        inputs = {(layer, port) for (layer, side), ports in self.ports.items() if side == "input" for port in ports}
        if missing := inputs - reached:
            raise _MalformedError(f"port {min(missing)[1]} of layer {min(missing)[0]} has no edge")

    @staticmethod
    def _check_amounts(kind: str, port: str, amounts: NDArray[np.generic]) -> None:
        """Check that padding and resizing do not change the batch, and that their amounts are in the range of exported networks."""
        if kind == "Pad" and port in ("1", "2"):
            valid = not amounts[:1].any() and bool((np.abs(amounts) <= MAX_STEP).all())
        elif kind == "Interpolate" and amounts.dtype.kind == "f":
            factors = amounts.astype(np.float64)
            valid = (len(factors) != 4 or factors[0] == 1) and bool(((factors > 0) & (factors <= MAX_STEP)).all())
        else:
            return
        if not valid:
            raise _MalformedError(f"a layer {kind} has the amounts {amounts.tolist()}, which are not allowed")
