"""Measurement of the variants of a bundle in MLPerf scenarios."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgetl.core.progress import Progress, silent
from edgetl.core.system.execution import Choice
from edgetl.core.system.host_state import read_host, record_between
from edgetl.measure.config import BenchConfig, Part, Scenario
from edgetl.measure.latency import query_percentiles, warm_up
from edgetl.measure.report import LatencyReport, ScenarioReport, join_latencies
from edgetl.measure.scenarios.generator import run_scenario
from edgetl.measure.scenarios.mlperf import need_loadgen, run_loadgen
from edgetl.measure.scenarios.workload import MAX_SAMPLES, Traffic, Workload, workload
from edgetl.measure.stages import BenchSubject, bench_subject, invalid_reasons
from edgetl.runtime.predictor import MAX_BATCH

PARTS: tuple[Part, ...] = ("whole", "infer")
# Rate of the server scenario, relative to the rate that one variant can process.
DEFAULT_UTILIZATION = 0.5
# Ratio of the time in which the predictor works. Above this ratio the queue grows during the whole measurement.
MAX_UTILIZATION = 0.98


def measure_scenarios(path: Path, config: BenchConfig, *, images: Sequence[Path] = (), progress: Progress = silent) -> LatencyReport:
    """Measure the variants of a bundle in MLPerf scenarios. Variants without an installed engine are skipped.

    Args:
        path: folder of the bundle.
        config: scenarios, their limits, variants and threads.
        images: image files. At most 64 are used. By default, the golden images of the bundle.
        progress: called before each measurement.

    Raises:
        EdgetlError: as ``bench_subject``.
        MissingExtraError: LoadGen is not installed.
    """
    if config.loadgen:
        need_loadgen()
    spread = np.unique(np.linspace(0, len(images) - 1, min(len(images), MAX_SAMPLES)).astype(int)) if images else ()
    subject = bench_subject(path, config, images=[images[index] for index in spread])
    planned = [(choice, scenario, part) for choice in subject.choices for scenario in config.scenarios for part in PARTS]
    rows: list[ScenarioReport] = []
    for choice in subject.choices:
        predictor = subject.load(choice)
        for _, scenario, part in (item for item in planned if item[0] == choice):
            progress(f"{choice.variant}: {scenario}, {part}", len(rows), len(planned))
            rows.append(_measure(subject, choice, workload(predictor, subject.encoded, part), (scenario, part), config))
    return subject.report().model_copy(update={"scenarios": tuple(rows)})


def _measure(subject: BenchSubject, choice: Choice, work: Workload, case: tuple[Scenario, Part], config: BenchConfig) -> ScenarioReport:
    (scenario, part), variant = case, subject.bundle.variant(choice.variant)
    per_query = {"multi-stream": config.samples_per_query, "offline": MAX_BATCH}.get(scenario, 1)
    warmed = warm_up(lambda number: work.run(number % work.samples, per_query), max_seconds=config.min_seconds / 2)
    qps = (config.qps or DEFAULT_UTILIZATION * 1e3 / warmed.median_ms) if scenario == "server" else None
    before = read_host()
    traffic = (
        run_loadgen(scenario, work, config, expected_ms=warmed.median_ms, qps=qps)
        if config.loadgen
        else run_scenario(scenario, work, config, qps=qps)
    )
    host = record_between(before, read_host())
    precision = subject.precision(variant)
    rate = len(traffic.latencies_ns) * traffic.per_query / traffic.seconds
    invalid = invalid_reasons(host, warmed, variant, precision) + _invalid_traffic(scenario, traffic, qps)
    return ScenarioReport(
        variant=choice.variant,
        setting=choice.setting,
        scenario=scenario,
        part=part,
        generator="loadgen" if config.loadgen else "edgetl",
        queries=len(traffic.latencies_ns),
        samples_per_query=traffic.per_query,
        seconds=round(traffic.seconds, 3),
        images_per_second=rate,
        target_qps=qps,
        mean_ms=float(traffic.latencies_ns.mean()) / 1e6,
        percentiles=query_percentiles(traffic.latencies_ns),
        loadgen_result=traffic.loadgen_result,
        precision=precision,
        warm_up=warmed,
        host=host,
        invalid=invalid,
        latencies_ns=join_latencies(traffic.latencies_ns),
    )


def _invalid_traffic(scenario: Scenario, traffic: Traffic, qps: float | None) -> tuple[str, ...]:
    found = []
    if traffic.loadgen_result == "INVALID":
        found.append("LoadGen reports an invalid result: too few queries, or too short. Raise --min-queries or --min-seconds")
    if scenario == "server" and traffic.utilization > MAX_UTILIZATION:
        found.append(
            f"the rate of {qps:.1f} queries/s exceeds the capacity of {len(traffic.latencies_ns) / traffic.seconds:.1f} queries/s, so the "
            f"latencies grow with the duration. Lower --qps"
        )
    return tuple(found)
