from __future__ import annotations

import pytest

from edgetl.core.bundle import Bundle
from edgetl.errors import EngineError
from edgetl.measure.file_precision import file_precision
from edgetl.measure.stages import BenchSubject
from edgetl.runtime.engine import read_variant


def test_the_precision_of_each_variant_is_read_from_its_files(bundle: Bundle) -> None:
    for variant in bundle.manifest.variants:
        found = file_precision(variant.format, read_variant(bundle, variant))
        assert found.precision == variant.precision
        assert max(found.weights, key=lambda kind: found.weights[kind]) == {"fp32": "f32", "fp16": "f16", "int8": "i8"}[variant.precision]


def test_a_measurement_reads_the_file_and_not_the_name(bundle: Bundle) -> None:
    int8 = bundle.variant("onnx-int8")
    renamed = bundle.variant("onnx-fp32").model_copy(update={"files": int8.files})
    assert BenchSubject(bundle, (), (), [], "", 0.0).precision(renamed).precision == "int8"


def test_a_damaged_file_has_no_precision() -> None:
    with pytest.raises(EngineError, match="damaged or malicious"):
        file_precision("onnx", [b"\x08\x07damaged"])
