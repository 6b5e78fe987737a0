"""Timing of calls, and percentiles that are only given when enough calls were timed."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from edgetl.core.config import StrictModel

# Calls that a percentile needs before it means something: with fewer, the largest of n calls decides. 64 and 662 are MLPerf's early
# stopping counts for one call over the limit at 99 % confidence (mlcommons/inference, loadgen).
MIN_CALLS = {50: 10, 90: 64, 99: 662}


class Percentiles(StrictModel):
    """Milliseconds; a percentile is none when ``n`` is too small for it."""

    n: int
    mean_ms: float
    min_ms: float
    p50_ms: float | None
    p90_ms: float | None
    p99_ms: float | None


def percentiles(times_ms: NDArray[np.float64]) -> Percentiles:
    """Summarise call times, float64 ``[n]`` in milliseconds."""
    values = {rank: float(np.percentile(times_ms, rank)) if len(times_ms) >= least else None for rank, least in MIN_CALLS.items()}
    return Percentiles(
        n=len(times_ms),
        mean_ms=float(times_ms.mean()),
        min_ms=float(times_ms.min()),
        p50_ms=values[50],
        p90_ms=values[90],
        p99_ms=values[99],
    )


def time_calls(call: Callable[[], object], *, runs: int, warm_up: int = 5, max_seconds: float = 10.0) -> NDArray[np.float64]:
    """Call ``call`` after ``warm_up`` calls, up to ``runs`` times or ``max_seconds``; the times in milliseconds, float64 ``[n]``."""
    for _ in range(warm_up):
        call()
    times: list[float] = []
    end = time.perf_counter() + max_seconds
    while len(times) < runs and (not times or time.perf_counter() < end):
        start = time.perf_counter_ns()
        call()
        times.append((time.perf_counter_ns() - start) / 1e6)
    return np.array(times)
