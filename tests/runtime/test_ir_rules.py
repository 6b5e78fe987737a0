"""Check of OpenVINO IR files: every limit, at its value and beyond it, in a network of four layers written by hand."""

from __future__ import annotations

import struct

import pytest

from edgetl.errors import EngineError
from edgetl.runtime.ir_check import MAX_ELEMENTS, MAX_LAYERS, MAX_XML_BYTES, check_ir

WEIGHTS = struct.pack("<6f", *range(6)) + struct.pack("<4q", 0, 0, 1, 1) + struct.pack("<4f", 1, 1, 2, 2)


def _port(number: int, *sides: int) -> str:
    return f'<port id="{number}" precision="FP32">{"".join(f"<dim>{side}</dim>" for side in sides)}</port>'


def _layer(number: object, kind: str, inside: str, opset: str = "opset1") -> str:
    return f'<layer id="{number}" name="layer{number}" type="{kind}" version="{opset}">{inside}</layer>'


def _edge(source: str, target: str) -> str:
    (from_layer, from_port), (to_layer, to_port) = source.split("."), target.split(".")
    return f'<edge from-layer="{from_layer}" from-port="{from_port}" to-layer="{to_layer}" to-port="{to_port}"/>'


PARAMETER = _layer(0, "Parameter", f'<data shape="?,3" element_type="f32"/><output>{_port(0, -1, 3)}</output>')
CONSTANT = _layer(1, "Const", f'<data element_type="f32" shape="3, 2" offset="0" size="24"/><output>{_port(0, 3, 2)}</output>')
PRODUCT = _layer(
    2, "MatMul", f'<data transpose_a="false"/><input>{_port(0, -1, 3)}{_port(1, 3, 2)}</input><output>{_port(2, -1, 2)}</output>'
)
RESULT = _layer(3, "Result", f"<input>{_port(0, -1, 2)}</input>")
LAYERS = PARAMETER + CONSTANT + PRODUCT + RESULT
EDGES = _edge("0.0", "2.0") + _edge("1.0", "2.1") + _edge("2.2", "3.0")


def _net(layers: str = LAYERS, edges: str = EDGES, after: str = "", version: str = "11") -> str:
    return f'<?xml version="1.0"?>\n<net name="n" version="{version}">\n<layers>{layers}</layers><edges>{edges}</edges>{after}</net>\n'


def _with(layer: str, edges: str = "") -> str:
    """Return the network with one more layer, 4."""
    return _net(LAYERS + layer, EDGES + edges)


def _data(kind: str, attributes: str) -> str:
    return _with(_layer(4, kind, f"<data {attributes}/>"))


def _constant(attributes: str, number: int = 4, port: str = "") -> str:
    return _layer(number, "Const", f"<data {attributes}/><output>{port}</output>" if port else f"<data {attributes}/>")


def _accept(xml: str, weights: bytes = WEIGHTS) -> None:
    check_ir(xml.encode(), weights)


def _reject(xml: str | bytes, message: str, weights: bytes = WEIGHTS) -> None:
    with pytest.raises(EngineError) as caught:
        check_ir(xml.encode() if isinstance(xml, str) else xml, weights)
    rest = "The model was not loaded. Export the bundle again, or get it from a trusted source."
    assert str(caught.value) == f"the OpenVINO IR is damaged or malicious: {message}. {rest}"


def test_the_network_passes() -> None:
    _accept(_net())
    _accept(_net().replace('<?xml version="1.0"?>', '<?xml version="1.0" encoding="UTF-8" standalone="yes"?>'))
    _accept(_net()[len('<?xml version="1.0"?>\n') :])


def test_metadata_of_the_model_and_of_ports_may_have_any_names() -> None:
    info = '<rt_info><a><b odd="x"><input value="y"><port/><dim/></input></b></a><layers/><layers/></rt_info>'
    attribute = '<rt_info><attribute name="a" version="0"/><attribute name="b" version="0"/></rt_info>'
    _accept(_net(after=info))
    _accept(_net().replace("</port>", f"{attribute}</port>").replace("</layer>", f"{attribute}</layer>"))


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        (" " + _net(), "the XML does not begin with an element"),
        ("", "the XML does not begin with an element"),
        (_net().replace('"1.0"', '"1.0123456789"'), "the file is XML 1.01234567 with the encoding utf-8, expected XML 1.0, UTF-8"),
        (_net().replace('"1.0"', '"1.1"'), "the file is XML 1.1 with the encoding utf-8, expected XML 1.0, UTF-8"),
        (
            _net().replace('"1.0"', '"1.0" encoding="latin-1"'),
            "the file is XML 1.0 with the encoding latin-1, expected XML 1.0, UTF-8",
        ),
        (
            _net().replace('"1.0"', f'"1.0" encoding="{"x" * 30}"'),
            f"the file is XML 1.0 with the encoding {'x' * 20}, expected XML 1.0, UTF-8",
        ),
        (_net().replace("<net", "<!DOCTYPE net><net"), "the XML contains a document type, which may load or multiply entities"),
        (_net().replace("<layers>", "<!-- x --><layers>"), "the XML contains a comment"),
        (_net().replace("<layers>", "<layers><![CDATA[ ]]>"), "the XML contains a CDATA section"),
        (_net().replace("<layers>", "<?x y?><layers>"), "the XML contains a processing instruction"),
        (_net(version="10"), "the format has version 10, expected 11"),
        (_net().replace(' version="11"', ""), "the format has version none, expected 11"),
        (_net(version="x" * 30), f"the format has version {'x' * 20}, expected 11"),
        ("<other/>", "unexpected element 'other' in the root"),
        (_net(after="<more/>"), "unexpected element 'more' in net"),
        (_net(f"{LAYERS}<{'y' * 50}/>"), f"unexpected element '{'y' * 40}' in net/layers"),
        (_net(after="<edges/>"), "an element net has two elements 'edges'"),
        (_net().replace(' name="n"', ' path="n"'), "an element net has the unknown attribute 'path'"),
        (_net().replace("<layers>", f'<layers {"z" * 50}="1">'), f"an element layers has the unknown attribute '{'z' * 40}'"),
        (_net().replace("<layers>", "<layers>text"), "the element net/layers contains text"),
        (_net().replace("<dim>2</dim>", "<dim>2 </dim>"), "the dimension '2 ' is not a non-negative integer"),
        (_net().replace("<dim>2</dim>", "<dim><x/></dim>", 1), "unexpected element 'x' in net/layers/layer/output/port/dim"),
        (_net().replace("<dim>2</dim>", "<dim></dim>"), "the dimension '' is not a non-negative integer"),
        (_net().replace("<dim>2</dim>", f"<dim>{'9' * 50}</dim>"), f"the dimension '{'9' * 40}' is not a non-negative integer"),
        (_net().replace('id="3"', 'id="03"'), "the layer id '03' is not a non-negative integer"),
        (_net().replace('id="3"', 'id="2"'), "two layers have the id 2"),
        (_net().replace(' id="3"', ""), "the layer id '' is not a non-negative integer"),
        (_net().replace('port id="1"', "port"), "the port id '' is not a non-negative integer"),
        (_net().replace('port id="2"', 'port id="-2"'), "the port id '-2' is not a non-negative integer"),
        (_net().replace('port id="1"', 'port id="0"'), "two ports of layer 2 have the id 0"),
        (
            _net().replace('"MatMul" version="opset1"', '"MatMul" version="opset17"'),
            "the operation opset17.MatMul is not allowed, because edgetl does not export it",
        ),
        (
            _with(_layer(4, "A" * 70, "", "b" * 50)),
            f"the operation {'b' * 40}.{'A' * 60} is not allowed, because edgetl does not export it",
        ),
        (_net(LAYERS.replace("Result", "ReLU")), "there is no layer Result"),
        (_net(LAYERS.replace("Parameter", "ReLU").replace("Result", "ReLU")), "there is no layer Parameter"),
        (_with(_layer(4, "Const", "")), "a layer Const has no data"),
        (_with(_layer(4, "Parameter", "")), "a layer Parameter has no data"),
    ],
)
def test_another_structure_is_rejected(xml: str, message: str) -> None:
    _reject(xml, message)


def test_elements_are_nested_up_to_12_levels() -> None:
    def info(depth: int) -> str:
        return f"<rt_info>{'<a>' * depth}{'</a>' * depth}</rt_info>"

    _accept(_net(after=info(10)))
    _reject(_net(after=info(11)), "elements are nested more than 12 deep")


def test_the_number_of_layers_and_bytes_is_limited() -> None:
    more = "".join(_layer(number, "ReLU", "") for number in range(4, MAX_LAYERS))
    _accept(_net(LAYERS + more))
    _reject(_net(LAYERS + more + _layer(MAX_LAYERS, "ReLU", "")), f"the network has more than {MAX_LAYERS} layers")
    small = _net().encode()
    check_ir(small + b"\n" * (MAX_XML_BYTES - len(small)), WEIGHTS)
    _reject(small + b"\n" * (MAX_XML_BYTES - len(small) + 1), f"the XML has more than {MAX_XML_BYTES} bytes")


@pytest.mark.parametrize(
    ("kind", "attributes", "message"),
    [
        ("ReLU", 'a="12345678901"', "a layer ReLU has an integer of more than ten digits"),
        ("ReLU", 'a="1,12345678901,2" b="x"', "a layer ReLU has an integer of more than ten digits"),
        ("ReLU", 'a="-12345678901"', "a layer ReLU has an integer of more than ten digits"),
        ("ReLU", 'offset="1"', "a layer ReLU has a place in the weights"),
        ("ReLU", 'size="1"', "a layer ReLU has a place in the weights"),
        ("LRN", 'size="12345678901"', "a layer LRN has an integer of more than ten digits"),
        ("Parameter", 'shape="1, x"', "the dimension 'x' is not a non-negative integer"),
        ("Parameter", 'shape="1,X3"', "the dimension 'X3' is not a non-negative integer"),
        ("Parameter", 'shape="1,&#9;3"', r"the dimension '\t3' is not a non-negative integer"),
        ("Parameter", "", "the dimension '' is not a non-negative integer"),
        (
            "Parameter",
            f'shape="?,{MAX_ELEMENTS + 1}"',
            f"a tensor of shape [1, {MAX_ELEMENTS + 1}] has more than {MAX_ELEMENTS} elements or 8 dimensions",
        ),
        ("Parameter", 'shape="1,1,1,1,1,1,1,1,1"', f"a tensor of shape {[1] * 8} has more than {MAX_ELEMENTS} elements or 8 dimensions"),
        ("Convolution", 'strides="1025, 1"', "a layer Convolution has strides [1025, 1], outside 1 to 1024"),
        ("Convolution", 'strides="0"', "a layer Convolution has strides [0], outside 1 to 1024"),
        ("Convolution", 'dilations="0, 1"', "a layer Convolution has dilations [0, 1], outside 1 to 1024"),
        ("Convolution", 'kernel="0"', "a layer Convolution has kernel [0], outside 1 to 1024"),
        ("Convolution", 'pads_begin="1025"', "a layer Convolution has pads_begin [1025], outside 0 to 1024"),
        ("Convolution", 'pads_begin="x"', "pads_begin 'x' is not a non-negative integer"),
        ("Convolution", 'pads_begin="1X"', "pads_begin '1X' is not a non-negative integer"),
        ("Convolution", 'pads_begin="1&#9;"', r"pads_begin '1\t' is not a non-negative integer"),
        ("Convolution", 'pads_begin="1,,2"', "pads_begin '' is not a non-negative integer"),
        ("Convolution", f'strides="{",".join(["2000"] * 9)}"', f"a layer Convolution has strides {[2000] * 8}, outside 1 to 1024"),
        ("Interpolate", 'pads_end="0, 1"', "a layer Interpolate has pads_end [0, 1], outside 0 to 0"),
    ],
)
def test_attributes_outside_the_range_of_image_networks_are_rejected(kind: str, attributes: str, message: str) -> None:
    _reject(_data(kind, attributes), message)


@pytest.mark.parametrize(
    ("kind", "attributes"),
    [
        ("ReLU", 'a="1234567890" b="0.12345678901" c="12345678901.5" d="12345678901e3" e="12345678901E3"'),
        ("Clamp", 'min="0" max="123456789012"'),
        ("LRN", 'size="5"'),
        ("Parameter", 'shape=" 1 , ? ,-1, 3"'),
        ("Parameter", f'shape="{MAX_ELEMENTS}"'),
        ("Parameter", 'shape="1,1,1,1,1,1,1,1"'),
        ("Parameter", 'shape="0,3"'),
        ("Convolution", 'strides="1024, 1" dilations="1,1024" kernel="1" pads_begin="0, 1024" pads_end="0" output_padding="0"'),
        ("Convolution", 'pads_begin=""'),
        ("Interpolate", 'pads_end="0, 0" pads_begin="0"'),
    ],
)
def test_attributes_in_the_range_of_image_networks_pass(kind: str, attributes: str) -> None:
    _accept(_data(kind, attributes))


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ('element_type="f32" shape="2" offset="0"', "a constant has the attributes element_type, offset, shape"),
        (
            'element_type="f32" shape="2" offset="0" size="8" value="1"',
            "a constant has the attributes element_type, offset, shape, size, value",
        ),
        (f'element_type="f32" {"a" * 90}="1"', f"a constant has the attributes {'a' * 80}"),
        ('element_type="f32" shape="x" offset="0" size="8"', "the dimension 'x' is not a non-negative integer"),
        ('element_type="f32" shape="X2" offset="0" size="8"', "the dimension 'X2' is not a non-negative integer"),
        ('element_type="f32" shape="2&#9;" offset="0" size="8"', r"the dimension '2\t' is not a non-negative integer"),
        ('element_type="f32" shape="2" offset="-1" size="8"', "the offset of a constant '-1' is not a non-negative integer"),
        ('element_type="f32" shape="2" offset="0" size="8.0"', "the size of a constant '8.0' is not a non-negative integer"),
        (
            'element_type="string" shape="2" offset="0" size="8"',
            "a constant has the type 'string' and the shape [2], which are not allowed",
        ),
        (
            f'element_type="{"t" * 30}" shape="{",".join("1" * 40)}" offset="0" size="8"',
            f"a constant has the type '{'t' * 20}' and the shape [{('1,' * 40)[:60]}], which are not allowed",
        ),
        (
            'element_type="f32" shape="1,1,1,1,1,1,1,1,1" offset="0" size="4"',
            "a constant has the type 'f32' and the shape [1,1,1,1,1,1,1,1,1], which are not allowed",
        ),
        ('element_type="f32" shape="2" offset="0" size="7"', "a constant of shape [2] has 7 bytes, expected 8"),
        (
            f'element_type="u8" shape="{"1000000000," * 7}0" offset="0" size="1"',
            f"a constant of shape [{('1000000000,' * 7)[:60]}] has 1 bytes, expected 0",
        ),
        ('element_type="f64" shape="2,2" offset="0" size="33"', "a constant of shape [2,2] has 33 bytes, expected 32"),
        ('element_type="u4" shape="3" offset="0" size="1"', "a constant of shape [3] has 1 bytes, expected 2"),
        ('element_type="u1" shape="9" offset="0" size="1"', "a constant of shape [9] has 1 bytes, expected 2"),
        ('element_type="f32" shape="" offset="0" size="0"', "a constant of shape [] has 0 bytes, expected 4"),
        (
            f'element_type="u8" shape="2" offset="{len(WEIGHTS) - 1}" size="2"',
            f"a constant ends at byte {len(WEIGHTS) + 1}, and the weights have {len(WEIGHTS)} bytes",
        ),
    ],
)
def test_constants_with_another_size_or_place_are_rejected(attributes: str, message: str) -> None:
    _reject(_with(_constant(attributes)), message)


@pytest.mark.parametrize(
    "attributes",
    [
        f'element_type="u8" shape="2" offset="{len(WEIGHTS) - 2}" size="2"',
        'element_type="f32" shape="" offset="4" size="4"',
        'element_type="u4" shape="3" offset="0" size="2"',
        'element_type="nf4" shape="3" offset="0" size="2"',
        'element_type="f16" shape="1,1,1,1,1,1,1,2" offset="0" size="4"',
        'element_type="i64" shape="0" offset="0" size="0"',
        'element_type="boolean" shape="3" offset="0" size="3"',
    ],
)
def test_constants_within_the_weights_pass(attributes: str) -> None:
    _accept(_with(_constant(attributes)))


@pytest.mark.parametrize("kind", ["i64", "u64"])
def test_indices_above_2_to_the_31_are_rejected_at_their_place(kind: str) -> None:
    weights = WEIGHTS + struct.pack("<3q", 2**31 - 1, 2**36, 7)

    def constant(offset: int, count: int) -> str:
        place = len(WEIGHTS) + offset
        return _with(_constant(f'element_type="{kind}" shape="{count}" offset="{place}" size="{8 * count}"'))

    _accept(constant(0, 1), weights)
    _accept(constant(16, 1), weights)
    for offset, count in ((0, 2), (8, 1), (8, 2), (0, 3)):
        _reject(constant(offset, count), "a constant has an index or a size above 2^31", weights)


def test_a_constant_and_its_port_have_one_shape() -> None:
    _accept(_with(_constant('element_type="f32" shape="3,2" offset="0" size="24"', port=_port(0, 3, 2))))
    _reject(
        _with(_constant('element_type="f32" shape="3,2" offset="0" size="24"', port=_port(0, 2, 3))),
        "a constant has the shape [3, 2], and its port the shape [2, 3]",
    )


def test_a_constant_with_its_port_before_its_data_is_rejected() -> None:
    """The port has the shape of the constant before it, or of none."""
    data = '<data element_type="f32" shape="2" offset="0" size="8"/>'
    after = _layer(4, "Const", f"<output>{_port(0, 3, 2)}</output>{data}")
    _reject(_net(LAYERS + after), "a constant has its data after its port")
    first = _layer(4, "Const", f"<output>{_port(0)}</output>{data}")
    _reject(_net(first + LAYERS), "a constant has its data after its port")


def test_a_dimension_is_read_with_its_character_references() -> None:
    xml = _net().replace("<dim>2</dim>", "<dim>1&#50;</dim>", 1)
    _reject(xml, "a constant has the shape [3, 2], and its port the shape [3, 12]")


def test_an_ir_without_its_end_or_in_another_encoding_is_rejected() -> None:
    text = _net()[len('<?xml version="1.0"?>\n') :]
    with pytest.raises(EngineError, match="no element found"):
        check_ir(text.removesuffix("</net>\n").encode(), WEIGHTS)
    for encoding in ("utf-16-le", "utf-32-le"):
        _reject(text.encode(encoding), "the XML contains a zero byte")


def test_the_elements_of_a_port_are_limited() -> None:
    def port(*sides: int) -> str:
        return _with(_layer(4, "ReLU", f"<output>{_port(0, *sides)}</output>"))

    _accept(port(-1, MAX_ELEMENTS))
    _accept(port(*[1] * 8))
    for sides in ((2, MAX_ELEMENTS), (1,) * 9):
        shown = list(sides[:8])
        _reject(port(*sides), f"a tensor of shape {shown} has more than {MAX_ELEMENTS} elements or 8 dimensions")


@pytest.mark.parametrize(
    ("edges", "message"),
    [
        (EDGES.replace('from-port="2"', 'from-port="1"'), "an edge from layer '2' to layer '3' connects ports that do not exist"),
        (EDGES.replace('to-port="1"', 'to-port="2"'), "an edge from layer '1' to layer '2' connects ports that do not exist"),
        (EDGES.replace('from-layer="1"', 'from-layer="9"'), "an edge from layer '9' to layer '2' connects ports that do not exist"),
        (
            EDGES.replace('from-layer="1"', f'from-layer="{"7" * 30}"'),
            f"an edge from layer '{'7' * 20}' to layer '2' connects ports that do not exist",
        ),
        (
            EDGES.replace('to-layer="3"', f'to-layer="{"8" * 30}"'),
            f"an edge from layer '2' to layer '{'8' * 20}' connects ports that do not exist",
        ),
        ("<edge/>", "an edge from layer '' to layer '' connects ports that do not exist"),
        (
            EDGES.replace('from-layer="0"', 'from-layer="2"').replace('from-port="0"', 'from-port="2"', 1),
            "an edge from layer '2' to layer '2' connects the shapes [-1, 2] and [-1, 3]",
        ),
        (EDGES + _edge("2.2", "3.0"), "port 0 of layer 3 has two edges"),
        (_edge("0.0", "2.0") + _edge("2.2", "3.0"), "port 1 of layer 2 has no edge"),
        (_edge("0.0", "2.0"), "port 1 of layer 2 has no edge"),
    ],
)
def test_edges_that_do_not_connect_each_port_once_are_rejected(edges: str, message: str) -> None:
    _reject(_net(edges=edges), message)


def _amounts(kind: str, port: int, numbers: tuple[float, ...], code: str) -> tuple[str, bytes]:
    """Return a network with a layer ``kind``; ``numbers`` are a constant at its input ``port``. Also return the weights."""
    data = struct.pack(f"<{len(numbers)}{code}", *numbers)
    element = {"q": "i64", "i": "i32", "f": "f32", "e": "f16"}[code]
    constant = _constant(
        f'element_type="{element}" shape="{len(numbers)}" offset="{len(WEIGHTS)}" size="{len(data)}"', 4, _port(0, len(numbers))
    )
    layer = _layer(5, kind, f"<input>{_port(port, len(numbers))}</input>")
    return _net(LAYERS + constant + layer, EDGES + _edge("4.0", f"5.{port}")), WEIGHTS + data


@pytest.mark.parametrize("port", [1, 2])
@pytest.mark.parametrize("code", ["q", "i"])
def test_padding_keeps_the_batch_and_adds_at_most_1024(port: int, code: str) -> None:
    _accept(*_amounts("Pad", port, (0, 0, 1024, -1024), code))
    _accept(*_amounts("Pad", port, (0, 3, 1, 1), code))
    for numbers in ((1, 0, 1, 1), (0, 0, 1025, 1), (0, 0, 1, -1025), (0, 2000, 1, 1), (5,) * 8):
        xml, weights = _amounts("Pad", port, numbers, code)
        _reject(xml, f"a layer Pad has the amounts {list(numbers)}, which are not allowed", weights)


def test_only_the_amounts_of_padding_and_resizing_are_limited() -> None:
    _accept(*_amounts("Pad", 0, (5, 0, 2000, 1), "q"))
    _accept(*_amounts("Pad", 3, (5, 0, 2000, 1), "q"))
    _accept(*_amounts("ReLU", 1, (5, 0, 2000, 1), "q"))
    _accept(*_amounts("Interpolate", 1, (5, 0, 2000, 1), "q"))


@pytest.mark.parametrize("code", ["f", "e"])
def test_resizing_keeps_the_batch_and_has_factors_above_0_up_to_1024(code: str) -> None:
    for numbers in ((1.0, 5.0, 1024.0, 0.5), (2.0, 2.0), (1024.0,)):
        _accept(*_amounts("Interpolate", 2, numbers, code))
    for numbers in ((2.0, 1.0, 1.0, 1.0), (1.0, 1.0, 0.0, 1.0), (1.0, 1.0, -2.0, 1.0), (1.0, 1.0, 1025.0, 1.0), (0.0,)):
        xml, weights = _amounts("Interpolate", 2, numbers, code)
        _reject(xml, f"a layer Interpolate has the amounts {list(numbers)}, which are not allowed", weights)
