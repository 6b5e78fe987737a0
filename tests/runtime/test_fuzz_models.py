"""Fuzzing of model files: files that pass the check do not harm the engine, and the check agrees with the ONNX library."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from edgetl.core.bundle import Bundle
from edgetl.core.manifest import Format
from edgetl.errors import EngineError
from edgetl.runtime.onnx_check import check_onnx
from tests.runtime.fuzz import fuzz, mutations

FORMATS: tuple[Format, ...] = ("onnx", "openvino")


@pytest.mark.parametrize("format_", FORMATS)
def test_mutated_files_that_pass_the_check_do_not_harm_the_engine(format_: Format) -> None:
    found = fuzz(format_, 300, seed=0)
    assert [result for result, _ in found.harmful] == []
    # With fewer files of each kind, the test covers too little.
    assert found.seen["ran"] > 10 and found.seen["rejected by the engine"] > 2 and found.seen["rejected"] > 10


@pytest.mark.slow
@pytest.mark.parametrize("format_", FORMATS)
def test_20000_mutated_files_that_pass_the_check_do_not_harm_the_engine(bundle: Bundle, format_: Format) -> None:
    found = fuzz(format_, 20_000, seed=1, bundle=bundle.path)
    assert [result for result, _ in found.harmful] == []
    # These are errors within the limits and not harmful. A larger number would mean that the check misses a kind of size.
    assert found.seen["out of memory"] <= 20 and found.seen["assertion"] <= 5


def _operators(graph: onnx.GraphProto) -> list[str]:
    """Return the operators that the ONNX library finds, also in nested graphs."""
    found = []
    for node in graph.node:
        found.append(node.op_type)
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                found += _operators(inner)
    return found


def _compare(count: int, bundle: Path | None = None) -> None:
    """Compare the check with the ONNX library, until ``count`` mutated files have passed the check."""
    passed = 0
    for (data,) in mutations("onnx", 100 * count, seed=2, bundle=bundle):
        try:
            operators = check_onnx(data)
        except EngineError:
            continue
        model = onnx.load_model_from_string(data)
        assert list(operators) == _operators(model.graph)
        assert not model.functions and not model.training_info
        assert not any(tensor.external_data or tensor.data_location for tensor in model.graph.initializer)
        # An equal size means that the library skipped no unknown field.
        assert model.ByteSize() == len(data)
        passed += 1
        if passed == count:
            return
    raise AssertionError(f"only {passed} files passed")


def test_the_check_and_the_onnx_library_read_the_same_operators() -> None:
    _compare(200)


@pytest.mark.slow
def test_the_check_and_the_onnx_library_read_the_same_operators_in_5000_files(bundle: Bundle) -> None:
    _compare(5000, bundle.path)
