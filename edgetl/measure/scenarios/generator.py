"""Generator of the queries of MLPerf scenarios.

The rules are those of MLCommons (mlcommons/inference_policies, inference_rules.adoc) and LoadGen (mlcommons/inference, loadgen). Images are
drawn with replacement from a fixed, published seed. Equal images are neither cached nor joined.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import assert_never

import numpy as np
from numpy.typing import NDArray

from edgetl.measure.config import BenchConfig, Scenario
from edgetl.measure.latency import SYSTEM_CLOCK, Clock
from edgetl.measure.scenarios.workload import SAMPLE_SEED, SCHEDULE_SEED, Traffic, Workload
from edgetl.runtime.predictor import MAX_BATCH


@dataclass(frozen=True)
class Limits:
    """Smallest duration and number of queries of a scenario."""

    seconds: float
    queries: int


def run_scenario(
    scenario: Scenario, work: Workload, config: BenchConfig, *, qps: float | None = None, clock: Clock = SYSTEM_CLOCK
) -> Traffic:
    """Run a scenario with the generator of edgetl.

    Args:
        scenario: scenario.
        work: system under test.
        config: limits, and images per query of the multi-stream scenario.
        qps: arrival rate of the server scenario, queries per second.
        clock: clock of the measurement.
    """
    limits = Limits(config.min_seconds, config.min_queries)
    drawn = _draw(work.samples)
    match scenario:
        case "single-stream":
            return _closed_loop(work, drawn, 1, limits, clock)
        case "multi-stream":
            return _closed_loop(work, drawn, config.samples_per_query, limits, clock)
        case "offline":
            # One query with all images. The predictor processes it in batches, in order.
            batches = Limits(limits.seconds, -(-limits.queries // MAX_BATCH))
            return _closed_loop(work, (start % work.samples for start in range(0, 2**62, MAX_BATCH)), MAX_BATCH, batches, clock)
        case "server":
            assert qps is not None
            return _open_loop(work, drawn, qps, limits, clock)
        case _:
            assert_never(scenario)


def _draw(samples: int) -> Iterator[int]:
    """Yield image numbers, drawn with replacement."""
    random = np.random.Generator(np.random.MT19937(SAMPLE_SEED))
    while True:
        yield from random.integers(samples, size=1024).tolist()


def arrivals_ns(qps: float, limits: Limits) -> NDArray[np.int64]:
    """Return the arrival times of a Poisson process, int64 ``[queries]``, ns from the start.

    There are at least ``limits.queries`` arrivals, and the last one is not before ``limits.seconds``.
    """
    random = np.random.Generator(np.random.MT19937(SCHEDULE_SEED))
    times = np.zeros(0)
    while len(times) < limits.queries or times[-1] < limits.seconds:
        times = np.append(times, (times[-1] if len(times) else 0.0) + np.cumsum(random.exponential(1 / qps, size=1024)))
    last = max(limits.queries, int(np.searchsorted(times, limits.seconds)) + 1)
    return (times[:last] * 1e9).astype(np.int64)


def _closed_loop(work: Workload, starts: Iterator[int], per_query: int, limits: Limits, clock: Clock) -> Traffic:
    """Send each query when the previous one is complete."""
    latencies: list[int] = []
    begin = now = clock.now_ns()
    while len(latencies) < limits.queries or now - begin < limits.seconds * 1e9:
        start = next(starts)
        sent = clock.now_ns()
        work.run(start, per_query)
        now = clock.now_ns()
        latencies.append(now - sent)
    return Traffic(np.array(latencies, np.int64), per_query, (now - begin) / 1e9)


def _open_loop(work: Workload, starts: Iterator[int], qps: float, limits: Limits, clock: Clock) -> Traffic:
    """Send each query at its scheduled time, or as soon as the earlier ones are complete.

    The latency counts from the scheduled time. A slow query therefore also delays those that arrive meanwhile (Tene, "How NOT to Measure
    Latency", coordinated omission). The predictor processes one query at a time, so that one thread is enough.
    """
    scheduled = arrivals_ns(qps, limits)
    latencies, worked = np.zeros_like(scheduled), 0
    begin = now = clock.now_ns()
    for index, moment in enumerate(scheduled.tolist()):
        start = next(starts)
        clock.wait_until(begin + moment)
        sent = clock.now_ns()
        work.run(start, 1)
        now = clock.now_ns()
        worked += now - sent
        latencies[index] = now - begin - moment
    return Traffic(latencies, 1, (now - begin) / 1e9, worked / max(now - begin, 1))
