"""Check of OpenVINO IR files: IRs that edgetl cannot have exported are rejected before OpenVINO reads them."""

from __future__ import annotations

import random
import re
import time
from pathlib import Path

import numpy as np
import pytest

from edgetl.core.bundle import Bundle
from edgetl.errors import EngineError
from edgetl.runtime.engine import load_engine
from edgetl.runtime.ir_check import check_ir
from tests.runtime.hostile import as_ir
from tests.runtime.seeds import convolutional, transformer


@pytest.fixture(scope="module")
def files(bundle: Bundle) -> tuple[str, bytes]:
    """XML and weights of a quantized network."""
    variant = bundle.variant("openvino-int8")
    xml, weights = (bundle.read(file) for file in variant.files)
    return xml.decode(), weights


def _assert_rejected(xml: str | bytes, weights: bytes, message: str) -> None:
    data = xml.encode() if isinstance(xml, str) else xml
    with pytest.raises(EngineError, match=message):
        load_engine("openvino", [data, weights], threads=1)


def test_every_ir_of_a_bundle_passes_the_check_in_little_cpu_time(bundle: Bundle) -> None:
    for variant in bundle.manifest.variants:
        if variant.format == "openvino":
            begin = time.process_time()
            check_ir(*(bundle.read(file) for file in variant.files))
            assert time.process_time() - begin < 5


@pytest.mark.parametrize(
    "declared",
    [
        '<!DOCTYPE net [<!ENTITY x SYSTEM "file:///etc/passwd">]>',
        '<!DOCTYPE net SYSTEM "http://127.0.0.1/x.dtd">',
        '<!DOCTYPE net [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>',
    ],
)
def test_document_types_and_entities_are_rejected(files: tuple[str, bytes], declared: str) -> None:
    xml, weights = files
    _assert_rejected(xml.replace("<net", f"{declared}<net", 1), weights, "contains a document type")


def _swap(pattern: str, by: str) -> tuple[str, str]:
    return pattern, by


@pytest.mark.parametrize(
    ("message", "change"),
    [
        ("two layers have the id 0", _swap(r'<layer id="1"', '<layer id="0"')),
        ("version 99, expected 11", _swap(r'version="11"', 'version="99"')),
        ("version 10, expected 11", _swap(r'version="11"', 'version="10"')),
        ("operation extension.Foreign", _swap(r'type="Const" version="opset1"', 'type="Foreign" version="extension"')),
        ("operation opset1.Loop", _swap(r'type="Const" version="opset1"', 'type="Loop" version="opset1"')),
        ("has 7 bytes, expected", _swap(r'( offset="\d+" )size="\d+"', r'\1size="7"')),
        ("ends at byte", _swap(r'offset="\d+"', 'offset="999999999999"')),
        ("offset of a constant '-8' is not a non-negative integer", _swap(r'offset="\d+"', 'offset="-8"')),
        ("more than 268435456 elements", _swap(r"<dim>\d+</dim>", "<dim>1000000000000</dim>")),
        ("the type 'string'", _swap(r'element_type="\w+"( shape="[^"]*" offset)', r'element_type="string"\1')),
        ("the dimension 'many' is not a non-negative integer", _swap(r"<dim>\d+</dim>", "<dim>many</dim>")),
        # OpenVINO also accepts these spellings, and read beyond the weights with them.
        ("operation opset1.Constant", _swap(r'type="Const"', 'type="Constant"')),
        ("operation opset1.CONST", _swap(r'type="Const"', 'type="CONST"')),
        ("operation opset1.relu", _swap(r'type="ReLU"', 'type="relu"')),
        ("layer Convolution has a place", _swap(r"<data (?=strides)", '<data offset="0" size="8" ')),
        ("layer Convolution has a place", _swap(r"<data (?=strides)", '<data offset="9999999999" ')),
        # An attribute "value" would replace the bytes of the constant, even with too few bytes.
        ("a constant has the attributes element_type, offset, shape, size, value", _swap(r'( offset="\d+")', r'\1 value="x"')),
        (r"a constant has the attributes element_type, offset, shape\. The model", _swap(r'(offset="\d+") size="\d+"', r"\1")),
        ("layer Convolution has an integer of more than ten", _swap(r'dilations="\d+', 'dilations="4611686018427387904')),
        ("two elements 'data'", _swap(r"(<data [^>]*/>)", r"\1\1")),
        ("two elements 'layers'", _swap(r"(?=<edges>)", "<layers></layers>")),
        ("unexpected element 'body' in net/layers/layer", _swap(r"(<data [^>]*/>)", r"\1<body></body>")),
        ("unexpected element 'Data'", _swap(r"<data ", "<Data ")),
        ("a comment", _swap(r"<dim>3</dim>", "<dim>3<!-- -->00</dim>")),
        ("a CDATA section", _swap(r"<dim>3</dim>", "<dim><![CDATA[3]]></dim>")),
        ("a processing instruction", _swap(r"<dim>3</dim>", "<dim>3<?x?></dim>")),
        ("XML 1.0 with the encoding iso-8859-1", _swap(r'<\?xml version="1.0"\?>', '<?xml version="1.0" encoding="iso-8859-1"?>')),
        ("does not begin with an element", _swap("^", "\ufeff")),
        ("the layer id '01' is not a non-negative integer", _swap(r'<layer id="1"', '<layer id="01"')),
        ("an element layer has the unknown attribute 'ID'", _swap(r'<layer id="1"', '<layer id="1" ID="1"')),
        ("connects ports that do not exist", _swap(r'from-port="0"', 'from-port="7"')),
        ("has no edge", _swap(r"<edge [^>]*/>", "")),
        ("has two edges", _swap(r"(<edge [^>]*/>)", r"\1\1")),
        ("two ports of layer", _swap(r'(<input>\s*<port id="0".*?</port>)', r'\1<port id="0" precision="FP32"></port>')),
    ],
)
def test_content_that_edgetl_does_not_export_is_rejected(files: tuple[str, bytes], message: str, change: tuple[str, str]) -> None:
    xml, weights = files
    changed, count = re.subn(*change, xml, count=1, flags=re.DOTALL)
    assert count == 1
    _assert_rejected(changed, weights, message)


@pytest.mark.parametrize(
    ("value", "rejected"),
    [
        (2**36, True),
        (-(2**40), True),
        (2**62, True),
        (0x4A << 56, True),
        (2**63 - 2, True),
        (2**63 - 1, False),
        (-(2**63), False),
        (7, False),
    ],
)
def test_indices_beyond_2_to_the_31_are_rejected(value: int, rejected: bool) -> None:
    """Found by fuzzing: OpenVINO wrote outside its memory for a slice that begins at 2^36, and crashed at a later file."""
    xml = (
        '<net version="11"><layers><layer id="0" name="c" type="Const" version="opset1">'
        '<data element_type="i64" shape="1" offset="0" size="8"/></layer>'
        '<layer id="1" name="p" type="Parameter" version="opset1"><data shape="1" element_type="f32"/></layer>'
        '<layer id="2" name="r" type="Result" version="opset1"/></layers><edges></edges></net>'
    )
    if rejected:
        _assert_rejected(xml, value.to_bytes(8, "little", signed=True), "a constant has an index or a size above")
    else:
        check_ir(xml.encode(), value.to_bytes(8, "little", signed=True))


def test_missing_and_truncated_weights_are_rejected(files: tuple[str, bytes]) -> None:
    xml, weights = files
    for part in (b"", weights[:-1], weights[: len(weights) // 2]):
        _assert_rejected(xml, part, "ends at byte")


def test_an_edge_between_ports_of_different_shapes_is_rejected(tmp_path: Path) -> None:
    """Found by fuzzing: OpenVINO wrote outside its memory for a MatMul by a vector, and crashed at a later file."""
    xml, weights = as_ir(transformer(), tmp_path)
    text = xml.decode()
    layers = {kind: re.findall(rf'<layer id="(\d+)" name="{kind}"', text) for kind in ("shift", "qkv")}
    (vector,), (matrix,) = layers["shift"], layers["qkv"]
    edge = f'<edge from-layer="{matrix}"'
    assert text.count(edge) == 1
    changed = text.replace(edge, f'<edge from-layer="{vector}"')
    _assert_rejected(changed, weights, r"connects the shapes \[12\] and \[12, 36\]")


def test_a_constant_and_its_port_with_different_shapes_are_rejected(tmp_path: Path) -> None:
    xml, weights = as_ir(transformer(), tmp_path)
    text, count = re.subn(
        r'(type="Const" version="opset1">\s*<data element_type="f32" shape=")12, 36"', r'\g<1>36, 12"', xml.decode(), count=1
    )
    assert count == 1
    _assert_rejected(text, weights, r"a constant has the shape \[36, 12\], and its port the shape \[12, 36\]")


def test_files_of_other_formats_and_damaged_files_are_rejected(files: tuple[str, bytes]) -> None:
    xml, weights = files
    for data in (b"", b"\x80\x04}.", b"<html/>", b"<net version='11'/>", bytes(1000)):
        _assert_rejected(data, weights, "damaged or malicious")
    for tenth in range(1, 10):
        _assert_rejected(xml[: len(xml) * tenth // 10], weights, "damaged or malicious")
    rng = random.Random(0)
    for _ in range(100):
        with pytest.raises(EngineError):
            check_ir(rng.randbytes(500), weights)


@pytest.mark.parametrize(
    ("message", "change"),
    [
        ("dilations '-1' is not a non-negative integer", ('dilations="1', 'dilations="-1')),
        (r"Convolution has dilations \[0, 1\]", ('dilations="1', 'dilations="0')),
        (r"Convolution has strides \[4096, ", ('strides="2', 'strides="4096')),
        (r"Interpolate has pads_end \[25, 0, 0, 0\]", ('pads_end="0, 0, 0, 0"', 'pads_end="25, 0, 0, 0"')),
        ("no layer Result", ('type="Result"', 'type="Identity"')),
    ],
)
def test_steps_outside_the_range_of_image_networks_are_rejected(tmp_path: Path, message: str, change: tuple[str, str]) -> None:
    """Found by fuzzing: OpenVINO wrote outside its memory for a dilation of -1 and for padding in a resize."""
    xml, weights = as_ir(convolutional(), tmp_path)
    check_ir(xml, weights)
    text = xml.decode()
    assert change[0] in text
    _assert_rejected(text.replace(*change, 1), weights, message)


@pytest.mark.parametrize(("name", "values"), [("pads", [61696, 0, 1, 1]), ("pads", [0, 0, 2000, 1]), ("factors", [-2e-25, 1, 2, 2])])
def test_padding_and_resizing_outside_the_range_of_image_networks_are_rejected(tmp_path: Path, name: str, values: list[float]) -> None:
    """OpenVINO crashed at a later file, after padding of the batch and after a resize to size 0."""
    xml, weights = as_ir(convolutional(), tmp_path)
    before, kind = ([0, 0, 1, 1], "<i8") if name == "pads" else ([1, 1, 2, 2], "<f4")
    old, new = (np.array(numbers, kind).tobytes() for numbers in (before, values))
    assert weights.count(old) == 1
    _assert_rejected(xml, weights.replace(old, new), "a layer (Pad|Interpolate) has the amounts ")
