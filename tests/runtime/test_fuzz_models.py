"""Mutated model files: none that passes the check harms the engine, and the check reads what the libraries read."""

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
def test_no_mutated_file_that_passes_the_check_harms_the_engine(format_: Format) -> None:
    found = fuzz(format_, 300, seed=0)
    assert [result for result, _ in found.harmful] == []
    # Otherwise the test covers too little.
    assert found.seen["ran"] > 10 and found.seen["engine refused"] > 3 and found.seen["refused"] > 10


@pytest.mark.slow
@pytest.mark.parametrize("format_", FORMATS)
def test_none_of_20000_mutated_files_that_passes_the_check_harms_the_engine(bundle: Bundle, format_: Format) -> None:
    found = fuzz(format_, 20_000, seed=1, bundle=bundle.path)
    assert [result for result, _ in found.harmful] == []
    # Errors within the limits, not harm; more of them would mean that the check lets a kind of size through.
    assert found.seen["out of memory"] <= 20


def _operators(graph: onnx.GraphProto) -> list[str]:
    """All that the library of ONNX finds, also in graphs within graphs."""
    found = []
    for node in graph.node:
        found.append(node.op_type)
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                found += _operators(inner)
    return found


def _compare(count: int, bundle: Path | None = None) -> None:
    """Until ``count`` mutated files passed the check."""
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
        # Nothing was skipped as unknown: the same content comes out.
        assert model.ByteSize() == len(data)
        passed += 1
        if passed == count:
            return
    raise AssertionError(f"only {passed} files passed")


def test_the_check_sees_the_operators_that_the_library_of_onnx_sees() -> None:
    _compare(200)


@pytest.mark.slow
def test_the_check_sees_the_operators_that_the_library_of_onnx_sees_in_5000_files(bundle: Bundle) -> None:
    _compare(5000, bundle.path)
