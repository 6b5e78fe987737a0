"""Export: conversion to each format, quantization, and the export of a whole bundle with its accuracy gate."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.suites.variants import EXPORT
from edgetl.core.manifest import Format
from edgetl.core.progress import silent

if TYPE_CHECKING:
    from edgetl.export.context import ExportContext
    from edgetl.train.artifacts.run import Run

pytestmark = pytest.mark.benchmark(group="export")


@pytest.fixture(scope="module")
def context(run: Run, tmp_path_factory: pytest.TempPathFactory) -> ExportContext:
    """Context of an export, with the fp32 ONNX file."""
    from edgetl.export.context import prepare

    prepared = prepare(run, EXPORT, tmp_path_factory.mktemp("export"), silent)
    prepared.write_source()
    return prepared


def test_conversion_to_onnx(benchmark: BenchmarkFixture, context: ExportContext) -> None:
    benchmark.pedantic(context.write_source, rounds=2)


def test_conversion_to_openvino(benchmark: BenchmarkFixture, context: ExportContext, tmp_path: Path) -> None:
    from edgetl.export.convert.to_openvino import to_openvino

    benchmark.pedantic(to_openvino, (context.source, tmp_path / "model.xml"), rounds=5, warmup_rounds=1)


@pytest.mark.parametrize("format_", ["onnx", "openvino"])
def test_quantization(benchmark: BenchmarkFixture, context: ExportContext, tmp_path: Path, format_: Format) -> None:
    """Quantization search: calibration, conversion to int8 and accuracy gate."""
    from edgetl.export.variants import quantize

    found = benchmark.pedantic(quantize, (context, format_, tmp_path), rounds=2)
    benchmark.extra_info["attempts"] = len(found.attempts)


def test_bundle_export(benchmark: BenchmarkFixture, run: Run, tmp_path: Path) -> None:
    """Export of four variants, as ``edgetl export`` does."""
    from edgetl.export.package import export_bundle

    folders = (tmp_path / str(number) for number in count())
    benchmark.pedantic(lambda: export_bundle(run.path, EXPORT, next(folders)), rounds=1)
