from __future__ import annotations

import io
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgetl.cli.commands.bench import show_report
from edgetl.core.bundle import Bundle
from edgetl.core.system.host import available_cores
from edgetl.errors import ConfigError, EngineError, MissingExtraError
from edgetl.measure.config import BenchConfig, Scenario
from edgetl.measure.latency import MIN_CALLS, largest_over_latency, query_percentiles, warm_up
from edgetl.measure.scenarios import mlperf
from edgetl.measure.scenarios.generator import Limits, arrivals_ns, run_scenario
from edgetl.measure.scenarios.measurement import measure_scenarios
from edgetl.measure.scenarios.mlperf import run_loadgen
from edgetl.measure.scenarios.workload import Workload, workload
from tests.measure.predictors import SleepingEngine, sleeping_predictor
from tests.measure.virtual_clock import VirtualClock

LOADGEN = "mlperf_loadgen"


def _jpegs(count: int = 3) -> list[bytes]:
    found = []
    for index in range(count):
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8), (index * 40, 0, 0)).save(buffer, "JPEG")
        found.append(buffer.getvalue())
    return found


def _config(*scenarios: Scenario, **limits: object) -> BenchConfig:
    return BenchConfig.model_validate({"scenarios": scenarios or ("single-stream",), "min_seconds": 1.0, "min_queries": 100} | limits)


@pytest.mark.parametrize("scenario", ["single-stream", "multi-stream", "offline", "server"])
def test_an_injected_sleep_is_the_measured_latency(scenario: Scenario) -> None:
    clock = VirtualClock()
    work = workload(sleeping_predictor(SleepingEngine(clock.sleep, 0.01)), _jpegs(), "infer")
    # At 10 queries/s of 10 ms, most queries find an idle predictor.
    found = run_scenario(scenario, work, _config(), qps=10.0, clock=clock)
    assert float(np.median(found.latencies_ns)) / 1e6 == pytest.approx(10.0, rel=0.02)


def test_a_stall_delays_the_queries_that_arrive_meanwhile() -> None:
    clock = VirtualClock()
    predictor = sleeping_predictor(SleepingEngine(clock.sleep, 0.001, stall_every=1000))
    config = _config(min_queries=10_000)
    opened = query_percentiles(run_scenario("server", workload(predictor, _jpegs(), "infer"), config, qps=300.0, clock=clock).latencies_ns)
    closed = query_percentiles(run_scenario("single-stream", workload(predictor, _jpegs(), "infer"), config, clock=clock).latencies_ns)
    by_rank = {item.rank: item.ms or 0.0 for item in opened}
    assert by_rank[99.9] > 950 and by_rank[99] > 700, "latency counts from the scheduled arrival"
    assert {item.rank: item.ms for item in closed}[99] == pytest.approx(1.0), "a closed loop hides the stall"


def test_a_query_of_a_scenario_has_its_number_of_images() -> None:
    clock = VirtualClock()
    engine = SleepingEngine(clock.sleep, 0.01)
    for part in ("whole", "infer"):
        work = workload(sleeping_predictor(engine), _jpegs(), part)
        sizes: dict[Scenario, int] = {"single-stream": 1, "multi-stream": 4, "offline": 16, "server": 1}
        for scenario, images in sizes.items():
            engine.batches.clear()
            found = run_scenario(scenario, work, _config(samples_per_query=4), qps=50.0, clock=clock)
            assert set(engine.batches) == {images} and found.per_query == images
            assert len(found.latencies_ns) * found.per_query >= 100 and found.seconds >= 1.0


def test_arrivals_are_a_fixed_poisson_process() -> None:
    times = arrivals_ns(100.0, Limits(seconds=20.0, queries=10)) / 1e9
    assert times[-1] >= 20.0 > times[-2] and len(times) == pytest.approx(2000, rel=0.1)
    intervals = np.diff(times)
    assert intervals.std() == pytest.approx(intervals.mean(), rel=0.1), "exponential intervals"
    assert np.array_equal(times, arrivals_ns(100.0, Limits(seconds=20.0, queries=10)) / 1e9)
    assert len(arrivals_ns(100.0, Limits(seconds=0.1, queries=5000))) == 5000


def test_a_rate_above_the_capacity_uses_the_predictor_all_the_time() -> None:
    clock = VirtualClock()
    work = workload(sleeping_predictor(SleepingEngine(clock.sleep, 0.01)), _jpegs(), "infer")
    assert run_scenario("server", work, _config(), qps=200.0, clock=clock).utilization > 0.98
    assert run_scenario("server", work, _config(), qps=50.0, clock=clock).utilization == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(("rank", "least"), [(rank, least) for rank, least in MIN_CALLS.items() if rank >= 90])
def test_a_percentile_with_too_few_queries_has_the_number_that_it_needs(rank: float, least: int) -> None:
    assert largest_over_latency(least - 1, rank) == 0 and largest_over_latency(least, rank) == 1
    for n, known in ((least - 1, False), (least, True)):
        (found,) = (item for item in query_percentiles(np.arange(n)) if item.rank == rank)
        assert (found.ms is not None) == (found.upper_ms is not None) == known and found.least == least


def test_the_early_stopping_estimate_equals_that_of_loadgen() -> None:
    # LoadGen 6.0 for 145 single-stream queries: "Would discard 5 highest latency queries", so that the sixth largest is the estimate.
    assert largest_over_latency(145, 90) == 6
    found = {item.rank: item for item in query_percentiles(np.arange(1, 146) * 1_000_000)}
    assert found[90].upper_ms == 140.0 and found[90].ms == 131.0
    assert found[99].ms is None and found[99].least == 662


def test_warm_up_ends_when_the_latency_is_stable() -> None:
    clock, times = VirtualClock(), [0.1] * 5 + [0.02] * 40
    found = warm_up(lambda number: clock.sleep(times[number] if number < len(times) else 0.01), max_seconds=60.0, clock=clock)
    assert found.stable and found.median_ms == pytest.approx(10.0) and 80 <= found.calls <= 120


def test_warm_up_without_a_stable_latency_ends_after_its_time() -> None:
    clock = VirtualClock()
    found = warm_up(lambda number: clock.sleep(0.01 * (1 + number // 10)), max_seconds=20.0, clock=clock)
    assert not found.stable and 20.0 <= found.seconds < 25.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"qps": 5.0}, "--qps: no effect without --scenario. Add --scenario"),
        ({"scenarios": "offline", "runs": 5}, "--runs: no effect with --scenario. Use --min-seconds and --min-queries"),
        ({"scenarios": "offline", "qps": 5.0}, "--qps: no effect without --scenario server"),
        ({"scenarios": "offline", "samples_per_query": 2}, "--samples-per-query: no effect without --scenario multi-stream"),
        ({"tuning": Path("t.json"), "threads": 1}, "--tuning contains the variant and the threads"),
        ({"against": "onnx-fp32", "scenarios": "offline"}, "--against cannot be combined with --scenario or --compare"),
        ({"against": "onnx-fp32", "variants": ("a", "b")}, "--against compares one variant with a reference"),
    ],
)
def test_options_without_effect_are_errors(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BenchConfig.model_validate(options).check()


def test_a_bundle_is_measured_in_a_scenario(bundle: Bundle, capfd: pytest.CaptureFixture[str]) -> None:
    config = _config("server", variants=("onnx-int8",), threads=1, min_seconds=0.05, min_queries=80, qps=100.0)
    report = measure_scenarios(bundle.path, config)
    assert [(row.scenario, row.part, row.target_qps) for row in report.scenarios] == [
        ("server", "whole", 100.0),
        ("server", "infer", 100.0),
    ]
    for row in report.scenarios:
        assert row.queries == len(row.latencies_ns.split()) >= 80 and row.precision is not None and row.precision.precision == "int8"
    assert report.model_validate_json(report.model_dump_json()) == report
    show_report(report)
    shown = capfd.readouterr().out
    assert "server at 100.0/s whole" in shown and "n<6636" in shown


def test_loadgen_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlperf, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"mlcommons-loadgen is not installed. Leave out --loadgen .*loadgen"):
        mlperf.need_loadgen()


@pytest.mark.parametrize("scenario", ["single-stream", "multi-stream", "offline", "server"])
def test_loadgen_drives_a_predictor(scenario: Scenario) -> None:
    pytest.importorskip(LOADGEN)
    engine = SleepingEngine(time.sleep, 0.0005)
    work = workload(sleeping_predictor(engine), _jpegs(), "infer")
    found = run_loadgen(scenario, work, _config(min_seconds=0.1, min_queries=20, samples_per_query=4), expected_ms=0.5, qps=500.0)
    assert sum(engine.batches) >= len(found.latencies_ns) and found.per_query == engine.batches[0]
    assert len(found.latencies_ns) * found.per_query >= 20 and found.latencies_ns.min() >= 500_000
    assert found.loadgen_result in ("VALID", "INVALID")


def test_an_error_of_the_predictor_ends_loadgen() -> None:
    pytest.importorskip(LOADGEN)

    def fail(start: int, count: int) -> object:
        raise EngineError("the engine failed")

    with pytest.raises(EngineError, match="the engine failed"):
        run_loadgen("single-stream", Workload(fail, 2), _config(min_seconds=0.05, min_queries=5), expected_ms=0.1)


@pytest.mark.slow
def test_a_real_sleep_is_measured_within_two_percent() -> None:
    work = workload(sleeping_predictor(SleepingEngine(time.sleep, 0.01)), _jpegs(), "infer")
    for found in (
        run_scenario("single-stream", work, _config(min_seconds=3.0)),
        run_scenario("server", work, _config(min_seconds=3.0), qps=20.0),
    ):
        assert float(np.percentile(found.latencies_ns, 25)) / 1e6 == pytest.approx(10.0, rel=0.02)


@pytest.mark.slow
def test_a_real_stall_appears_in_the_tail_of_the_open_loop() -> None:
    work = workload(sleeping_predictor(SleepingEngine(time.sleep, 0.001, stall_every=1000)), _jpegs(), "infer")
    found = query_percentiles(run_scenario("server", work, _config(min_queries=6636), qps=300.0).latencies_ns)
    assert {item.rank: item.ms or 0.0 for item in found}[99.9] > 950


@pytest.mark.slow
def test_a_cpu_hog_makes_the_result_invalid(bundle: Bundle) -> None:
    hogs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(available_cores())]
    try:
        (row, _) = measure_scenarios(bundle.path, _config(variants=("onnx-fp32",), threads=1, min_seconds=2.0)).scenarios
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()
    assert any("other programs used" in reason or "was not always available" in reason for reason in row.invalid)


@pytest.mark.slow
@pytest.mark.parametrize("scenario", ["single-stream", "offline"])
def test_loadgen_and_edgetl_measure_the_same(scenario: Scenario) -> None:
    pytest.importorskip(LOADGEN)
    work = workload(sleeping_predictor(SleepingEngine(time.sleep, 0.005)), _jpegs(), "infer")
    config = _config(min_seconds=3.0)
    own, loadgen = run_scenario(scenario, work, config), run_loadgen(scenario, work, config, expected_ms=5.0)
    assert np.median(own.latencies_ns) == pytest.approx(np.median(loadgen.latencies_ns), rel=0.05)
    rates = [len(item.latencies_ns) * item.per_query / item.seconds for item in (own, loadgen)]
    assert rates[0] == pytest.approx(rates[1], rel=0.05)
