"""IRs that no export of ours could have written are refused before OpenVINO reads them (cases A22, A28)."""

from __future__ import annotations

import random
import re
import time

import pytest

from edgetl.core.bundle import Bundle
from edgetl.errors import EngineError
from edgetl.runtime.engine import load_engine
from edgetl.runtime.ir_check import check_ir


@pytest.fixture(scope="module")
def files(bundle: Bundle) -> tuple[str, bytes]:
    """The XML and the weights of a quantized network."""
    variant = bundle.variant("openvino-int8")
    xml, weights = (bundle.read(file) for file in variant.files)
    return xml.decode(), weights


def _refused(xml: str | bytes, weights: bytes, words: str) -> None:
    data = xml.encode() if isinstance(xml, str) else xml
    with pytest.raises(EngineError, match=words):
        load_engine("openvino", [data, weights], threads=1)


def test_every_ir_of_a_bundle_is_let_through_in_little_time(bundle: Bundle) -> None:
    for variant in bundle.manifest.variants:
        if variant.format == "openvino":
            begin = time.perf_counter()
            check_ir(*(bundle.read(file) for file in variant.files))
            assert time.perf_counter() - begin < 5


@pytest.mark.parametrize(
    "declared",
    [
        '<!DOCTYPE net [<!ENTITY x SYSTEM "file:///etc/passwd">]>',
        '<!DOCTYPE net SYSTEM "http://127.0.0.1/x.dtd">',
        '<!DOCTYPE net [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>',
    ],
)
def test_entities_are_not_even_declared(files: tuple[str, bytes], declared: str) -> None:
    xml, weights = files
    _refused(xml.replace("<net", f"{declared}<net", 1), weights, "declares a document type")


def _swap(pattern: str, by: str) -> tuple[str, str]:
    return pattern, by


@pytest.mark.parametrize(
    ("words", "change"),
    [
        ("two layers have the id 0", _swap(r'<layer id="1"', '<layer id="0"')),
        ("not a net of 10 or 11", _swap(r'version="11"', 'version="99"')),
        ("operation extension.Foreign", _swap(r'type="Const" version="opset1"', 'type="Foreign" version="extension"')),
        ("operation opset1.Loop", _swap(r'type="Const" version="opset1"', 'type="Loop" version="opset1"')),
        ("needs .* bytes and names 7", _swap(r'( offset="\d+" )size="\d+"', r'\1size="7"')),
        ("reaches to byte", _swap(r'offset="\d+"', 'offset="999999999999"')),
        ("reaches to byte", _swap(r'offset="\d+"', 'offset="-8"')),
        ("more than 268435456 elements", _swap(r"<dim>\d+</dim>", "<dim>1000000000000</dim>")),
        ("of type 'string'", _swap(r'element_type="\w+"( shape="[^"]*" offset)', r'element_type="string"\1')),
        ("invalid literal", _swap(r"<dim>\d+</dim>", "<dim>many</dim>")),
    ],
)
def test_what_no_export_writes_is_refused_by_name(files: tuple[str, bytes], words: str, change: tuple[str, str]) -> None:
    xml, weights = files
    changed, count = re.subn(*change, xml, count=1)
    assert count == 1
    _refused(changed, weights, words)


def test_weights_that_are_missing_or_short_are_refused(files: tuple[str, bytes]) -> None:
    xml, weights = files
    for part in (b"", weights[:-1], weights[: len(weights) // 2]):
        _refused(xml, part, "reaches to byte")


def test_files_of_other_kinds_and_damaged_ones_are_refused(files: tuple[str, bytes]) -> None:
    xml, weights = files
    for data in (b"", b"\x80\x04}.", b"<html/>", b"<net version='11'/>", bytes(1000)):
        _refused(data, weights, "damaged or hostile")
    for tenth in range(1, 10):
        _refused(xml[: len(xml) * tenth // 10], weights, "damaged or hostile")
    rng = random.Random(0)
    for _ in range(100):
        with pytest.raises(EngineError):
            check_ir(rng.randbytes(500), weights)
