from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from edgetl.core.bundle import Bundle
from edgetl.core.system.execution import Choice, ExecutionSetting, Timing, Tuning
from edgetl.core.system.host_state import HostRecord, HostState
from edgetl.errors import BundleError, ConfigError
from edgetl.measure.config import BenchConfig
from edgetl.measure.file_precision import FilePrecision
from edgetl.measure.latency import WarmUp, percentiles, time_calls
from edgetl.measure.stages import bench_subject, invalid_reasons, measure_bundle
from tests.measure.virtual_clock import VirtualClock

FP32 = FilePrecision(precision="fp32", weights={"f32": 1.0})


def test_times_are_in_milliseconds() -> None:
    clock = VirtualClock()
    times = time_calls(lambda: clock.sleep(0.01), runs=40, warm_up=2, clock=clock)
    assert times.tolist() == [10.0] * 40


def test_warm_up_calls_are_not_counted() -> None:
    calls: list[int] = []
    assert len(time_calls(lambda: calls.append(1), runs=7, warm_up=3)) == 7
    assert len(calls) == 10


def test_timing_stops_after_the_maximum_time() -> None:
    clock = VirtualClock()
    assert len(time_calls(lambda: clock.sleep(0.03), runs=10_000, warm_up=0, max_seconds=0.1, clock=clock)) == 4
    assert len(time_calls(lambda: clock.sleep(1.0), runs=10_000, warm_up=0, max_seconds=0.1, clock=clock)) == 1


@pytest.mark.parametrize(("n", "known"), [(9, set()), (10, {50}), (64, {50, 90}), (661, {50, 90}), (662, {50, 90, 99})])
def test_a_percentile_requires_enough_calls(n: int, known: set[int]) -> None:
    found = percentiles(np.linspace(1, 2, n))
    available = {rank for rank, value in ((50, found.p50_ms), (90, found.p90_ms), (99, found.p99_ms)) if value is not None}
    assert available == known and found.n == n


def test_every_variant_is_timed_by_stage_and_from_a_cold_start(bundle: Bundle) -> None:
    report = measure_bundle(
        bundle.path,
        BenchConfig(
            variants=(
                "onnx-int8",
                "openvino-fp32",
            ),
            runs=20,
            max_seconds=10.0,
            threads=1,
        ),
    )
    assert [row.variant for row in report.variants] == ["onnx-int8", "openvino-fp32"]
    for row in report.variants:
        stages = [row.decode.p50_ms, row.preprocess.p50_ms, row.infer.p50_ms]
        assert all(value is not None and value > 0 for value in stages)
        assert row.whole.p50_ms is not None and row.whole.p99_ms is None and row.whole.n == 20
        assert len(row.whole_ns.split()) == len(row.infer_ns.split()) == 20 and row.precision is not None and row.host is not None
        assert 20 < row.cold.peak_rss_mb < 400 and row.cold.first_prediction_ms > row.cold.load_ms > 0
    assert report.host["cores"] and report.versions["edgetl"] and report.threads == 1


def test_invalid_requests_are_errors(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="runs"):
        BenchConfig(runs=0)
    with pytest.raises(BundleError, match="no variant 'x'"):
        measure_bundle(bundle.path, BenchConfig(variants=("x",)))


@pytest.fixture
def tuning(bundle: Bundle) -> Tuning:
    """Tuning of the bundle on this host."""
    choice = Choice(variant="openvino-fp32", threads=1, setting=ExecutionSetting(static_batch=True))
    timing = Timing(**choice.model_dump(), whole_ms=1.0, n=10, golden_difference=0.0)
    return Tuning(
        name="digits", manifest_sha256=bundle.manifest_sha256, max_threads=1, images=4, chosen=choice, timings=(timing,), seconds=1.0
    )


def test_only_the_choice_of_a_tuning_is_measured(bundle: Bundle, tuning: Tuning, tmp_path: Path) -> None:
    path = tmp_path / "tuning.json"
    path.write_text(tuning.model_dump_json())
    subject = bench_subject(bundle.path, BenchConfig(tuning=path))
    assert subject.choices == (tuning.chosen,) and subject.load(tuning.chosen).setting.static_batch
    path.write_text(tuning.model_copy(update={"manifest_sha256": "0" * 64}).model_dump_json())
    with pytest.raises(ConfigError, match=r"does not apply to .* on this host: it belongs to another bundle. Repeat it with `edgetl tune`"):
        bench_subject(bundle.path, BenchConfig(tuning=path))


def test_an_unstable_latency_and_another_precision_are_not_valid(bundle: Bundle) -> None:
    host = HostRecord(before=HostState(), after=HostState())
    warmed = WarmUp(calls=100, seconds=5.0, stable=False, median_ms=1.0)
    found = invalid_reasons(host, warmed, bundle.variant("onnx-int8"), FP32)
    assert found == (
        "the latency was not stable after 5 s of warm-up",
        "the manifest states the precision int8, but the file has fp32",
    )
    assert invalid_reasons(host, warmed.model_copy(update={"stable": True}), bundle.variant("onnx-fp32"), FP32) == ()
