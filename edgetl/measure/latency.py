"""Timing of calls, and percentiles that require a minimum number of calls."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from edgetl.core.config import StrictModel

# Smallest number of calls for each percentile. With fewer calls, the slowest call decides. 64 and 662 are the early-stopping counts of
# MLPerf for one call over the limit at 99 % confidence (mlcommons/inference, loadgen).
MIN_CALLS = {50: 10, 90: 64, 99: 662}


class Percentiles(StrictModel):
    """Percentiles of call times, ms. A percentile is None if ``n`` is too small for it (see ``MIN_CALLS``)."""

    n: int
    mean_ms: float
    min_ms: float
    p50_ms: float | None
    p90_ms: float | None
    p99_ms: float | None


def percentiles(times_ms: NDArray[np.float64]) -> Percentiles:
    """Return the percentiles of call times, float64 ``[n]``, ms."""
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
    """Time calls of a function.

    Args:
        call: function to time.
        runs: largest number of timed calls.
        warm_up: number of calls before the first timed call.
        max_seconds: no call is started after this time, except the first.

    Returns:
        times of the calls, float64 ``[n]``, ms.
    """
    for _ in range(warm_up):
        call()
    times: list[float] = []
    end = time.perf_counter() + max_seconds
    while len(times) < runs and (not times or time.perf_counter() < end):
        start = time.perf_counter_ns()
        call()
        times.append((time.perf_counter_ns() - start) / 1e6)
    return np.array(times)
