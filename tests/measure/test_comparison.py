from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import typer
from numpy.typing import NDArray

from edgetl.cli.commands.bench import exit_on_regression
from edgetl.core.bundle import Bundle
from edgetl.errors import ConfigError
from edgetl.measure.comparison import compare_reports, measure_in_turn, paired_ratio, time_in_turn
from edgetl.measure.config import BenchConfig
from edgetl.measure.latency import Percentiles
from edgetl.measure.report import ColdStart, Comparison, LatencyReport, Ratio, VariantReport, join_latencies
from edgetl.measure.stages import measure_bundle
from tests.command import edgetl
from tests.measure.virtual_clock import VirtualClock

TIMES = Percentiles(n=1, mean_ms=1.0, min_ms=1.0, p50_ms=None, p90_ms=None, p99_ms=None)


def _report(latencies: NDArray[np.float64], **changes: object) -> LatencyReport:
    text = join_latencies(latencies.astype(np.int64))
    row = VariantReport(
        variant="onnx-fp32",
        size_bytes=1,
        cold=ColdStart(load_ms=1.0, first_prediction_ms=1.0, peak_rss_mb=1.0),
        decode=TIMES,
        preprocess=TIMES,
        infer=TIMES,
        whole=TIMES,
        infer_ns=text,
        whole_ns=text,
    )
    report = LatencyReport(
        bundle="bundle",
        created="",
        threads=1,
        images=4,
        image_source="files",
        load_average=0.0,
        host={"cpu": "Example 1", "cores": "2"},
        versions={},
        variants=(row,),
    )
    return report.model_copy(update=changes)


def _noisy(seed: int, median_ns: float = 5e6, n: int = 660) -> NDArray[np.float64]:
    """Return latencies with a long tail, and a slow drift of the host."""
    random = np.random.default_rng(seed)
    return median_ns * random.lognormal(0.0, 0.05, n) * (1 + 0.01 * np.sin(np.linspace(0, 6, n) + seed))


def _drifting(clock: VirtualClock, factor: float) -> Callable[[int], object]:
    """Return a call that becomes slower with the time of the clock."""
    return lambda _: clock.sleep(0.001 * factor * (1 + clock.now_ns() / 1e9))


def test_calls_are_timed_in_a_balanced_order() -> None:
    clock, order = VirtualClock(), list[tuple[str, int]]()

    def call(name: str, number: int) -> None:
        order.append((name, number))
        clock.sleep(0.001)

    times = time_in_turn([partial(call, name) for name in "abc"], runs=1, max_seconds=1.0, clock=clock)
    assert times.shape == (8, 3, 10) and (times == 1_000_000).all()
    assert [name for name, _ in order[:36:6]] == ["a", "b", "c", "c", "b", "a"]
    assert [number for _, number in order[:12]] == [0, 0, 1, 2, 3, 4] * 2, "all calls get the same images"


@pytest.mark.parametrize(("factor", "result"), [(1.0, "same"), (1.01, "same"), (1.1, "slower"), (0.9, "faster")])
def test_a_drift_of_the_host_does_not_change_the_ratio(factor: float, result: str) -> None:
    clock = VirtualClock()
    times = time_in_turn([_drifting(clock, factor), _drifting(clock, 1.0)], runs=200, max_seconds=60.0, clock=clock)
    found = paired_ratio("a", times[:, 0], times[:, 1])
    assert found.ratio == pytest.approx(factor, rel=0.01) and found.result == result
    assert found.low <= found.ratio <= found.high


def test_the_interval_of_a_ratio_has_its_confidence() -> None:
    random = np.random.default_rng(1)
    covered = 0
    for _ in range(400):
        times = random.lognormal(0.0, 0.2, (2, 20, 10))
        found = paired_ratio("a", times[0].astype(np.float64), times[1].astype(np.float64))
        covered += found.low <= 1 <= found.high
    assert covered >= 0.98 * 400


def test_equal_latencies_are_not_a_regression() -> None:
    results = [
        ratio.result
        for seed in range(20)
        for ratio in compare_reports(_report(_noisy(seed)), _report(_noisy(seed + 100)), name="old.json").ratios
    ]
    assert results.count("same") == 40


def test_a_slower_variant_is_a_regression() -> None:
    found = compare_reports(_report(_noisy(1, 6e6)), _report(_noisy(2)), name="old.json")
    assert [ratio.name for ratio in found.regressions] == ["onnx-fp32 infer", "onnx-fp32 whole"]
    assert found.ratios[0].low < 1.2 < found.ratios[0].high and found.ratios[0].reference_ms == pytest.approx(5.0, rel=0.02)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"host": {"cpu": "Example 2", "cores": "2"}}, "the CPU was Example 2 and is Example 1"),
        ({"threads": 2}, "the number of threads was 2 and is 1"),
        ({"images": 5}, "the number of images was 5 and is 4"),
        ({"variants": ()}, "has no figure in common"),
    ],
)
def test_reports_of_other_measurements_cannot_be_compared(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compare_reports(_report(_noisy(1)), _report(_noisy(2), **changes), name="old.json")


def test_a_comparison_with_too_few_latencies_is_an_error() -> None:
    with pytest.raises(ConfigError, match="fewer than 100 latencies of each"):
        compare_reports(_report(_noisy(1, n=99)), _report(_noisy(2)), name="old.json")


def test_a_comparison_of_an_invalid_measurement_is_invalid() -> None:
    report = _report(_noisy(1))
    busy = report.model_copy(update={"variants": (report.variants[0].model_copy(update={"invalid": ("the host was busy",)}),)})
    assert compare_reports(busy, _report(_noisy(2)), name="old.json").invalid == ("this measurement: onnx-fp32: the host was busy",)
    assert compare_reports(_report(_noisy(2)), busy, name="old.json").invalid == ("old.json: onnx-fp32: the host was busy",)


@pytest.mark.parametrize(
    ("result", "invalid", "code", "message"),
    [
        ("same", (), 0, ""),
        ("faster", (), 0, ""),
        ("slower", (), 28, "1 latencies are higher than in old.json, beyond the noise of 5 %: onnx-fp32 whole by 20 %."),
        ("slower", ("the host was busy",), 27, "the comparison with old.json is not valid: the host was busy. Repeat on an idle host."),
    ],
)
def test_the_exit_code_is_that_of_the_comparison(
    result: str, invalid: tuple[str, ...], code: int, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    ratio = Ratio(name="onnx-fp32 whole", reference_ms=5.0, ms=6.0, ratio=1.2, low=1.15, high=1.25, result=result)  # type: ignore[arg-type]
    comparison = Comparison(reference="old.json", ratios=(ratio,), noise=0.05, invalid=invalid)
    try:
        exit_on_regression(comparison)
        found = 0
    except typer.Exit as stop:
        found = stop.exit_code
    assert found == code and message in capfd.readouterr().err.replace("\n", " ")


def test_a_variant_is_compared_with_another_one_and_with_another_bundle(bundle: Bundle) -> None:
    for against, reference in (("openvino-fp32", "openvino-fp32"), (str(bundle.path), f"{bundle.path}: onnx-fp32")):
        config = BenchConfig(variants=("onnx-fp32",), threads=1, runs=1, max_seconds=0.2, against=against)
        found = measure_in_turn(bundle.path, config).comparison
        assert found is not None and found.reference == reference
        assert found.ratios[0].name == "onnx-fp32 whole" and found.control is not None and found.control.name.endswith("two copies")


def test_an_unknown_reference_is_an_error_with_the_variants(bundle: Bundle) -> None:
    with pytest.raises(ConfigError, match=r"--against nothing is neither a variant of .* nor the folder of a bundle. Give one of .*-fp32"):
        measure_in_turn(bundle.path, BenchConfig(against="nothing"))


@pytest.mark.slow
def test_twenty_comparisons_of_one_variant_give_at_most_one_false_result(bundle: Bundle) -> None:
    config = BenchConfig(variants=("onnx-fp32",), threads=1, against="onnx-fp32", max_seconds=3.0)
    found = [measure_in_turn(bundle.path, config).comparison for _ in range(20)]
    assert sum(item is not None and item.ratios[0].result != "same" for item in found) <= 1


@pytest.mark.slow
def test_bench_compares_with_an_earlier_report(bundle: Bundle, tmp_path: Path) -> None:
    report = measure_bundle(bundle.path, BenchConfig(variants=("onnx-fp32",), threads=1, runs=200))
    row = report.variants[0].model_copy(update={"invalid": (), "whole_ns": " ".join(["1000"] * 200)})
    earlier = tmp_path / "old.json"
    earlier.write_text(report.model_copy(update={"variants": (row,)}).model_dump_json())
    options = ("--variant", "onnx-fp32", "--threads", 1, "--runs", 200, "--compare", earlier, "--json")
    done = edgetl("bench", bundle.path, *options)
    comparison = json.loads(done.stdout)["comparison"]
    assert {ratio["name"]: ratio["result"] for ratio in comparison["ratios"]}["onnx-fp32 whole"] == "slower"
    assert done.returncode == (27 if comparison["invalid"] else 28)
