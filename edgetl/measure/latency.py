"""Timing of calls: clock, warm-up, and percentiles that require a minimum number of calls."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from edgetl.core.config import StrictModel

# Smallest number of calls for each percentile. With fewer calls, the slowest call decides. From the 90th percentile on: the early-stopping
# counts of MLPerf for one call over the limit, at 99 % confidence (mlcommons/inference, loadgen/early_stopping.cc).
MIN_CALLS: dict[float, int] = {50: 10, 90: 64, 95: 130, 97: 219, 99: 662, 99.9: 6636}
CONFIDENCE = 0.99
# Warm-up: medians of the last windows of calls, and their largest difference. The method and the number of windows are those of Triton's
# perf_analyzer (--stability-percentage), which allows 10 %.
WINDOW_CALLS, WINDOWS, STABLE = 20, 3, 0.05


class Clock(Protocol):
    """Clock of a measurement, nanoseconds. Tests use a virtual clock."""

    def now_ns(self) -> int:
        """Return the time since a fixed moment, ns."""

    def wait_until(self, moment_ns: int) -> None:
        """Return at ``moment_ns``, or at once if it has passed."""


class SystemClock:
    """Monotonic clock of the system."""

    # A sleep of Linux ends 0.05 to 0.1 ms late.
    _SPIN_NS = 300_000

    def now_ns(self) -> int:
        """Return the time since a fixed moment, ns."""
        return time.perf_counter_ns()

    def wait_until(self, moment_ns: int) -> None:
        """Sleep until shortly before ``moment_ns``, and poll the clock for the rest."""
        left = moment_ns - self.now_ns() - self._SPIN_NS
        if left > 0:
            time.sleep(left / 1e9)
        while self.now_ns() < moment_ns:
            pass


SYSTEM_CLOCK = SystemClock()


class Percentiles(StrictModel):
    """Percentiles of call times, ms. A percentile is None if ``n`` is too small for it (see ``MIN_CALLS``)."""

    n: int
    mean_ms: float
    min_ms: float
    p50_ms: float | None
    p90_ms: float | None
    p99_ms: float | None


class Percentile(StrictModel):
    """Percentile of latencies.

    Attributes:
        rank: rank, such as 99.9.
        ms: latency, ms. None if there are fewer than ``least`` queries.
        upper_ms: early-stopping estimate of LoadGen: an upper bound of the percentile at 99 % confidence, ms. It assumes independent
            latencies. None if there are too few queries.
        least: smallest number of queries for this percentile.
    """

    rank: float
    ms: float | None
    upper_ms: float | None
    least: int


class WarmUp(StrictModel):
    """Warm-up before a measurement.

    Attributes:
        calls: number of calls.
        seconds: duration, seconds.
        stable: True if the medians of the last three windows of calls differed by at most 5 %.
        median_ms: median of the last window, ms.
    """

    calls: int = Field(ge=0)
    seconds: float
    stable: bool
    median_ms: float


def percentiles(times_ms: NDArray[np.float64]) -> Percentiles:
    """Return the percentiles of call times, float64 ``[n]``, ms."""
    values = {rank: float(np.percentile(times_ms, rank)) if len(times_ms) >= MIN_CALLS[rank] else None for rank in (50, 90, 99)}
    return Percentiles(
        n=len(times_ms),
        mean_ms=float(times_ms.mean()),
        min_ms=float(times_ms.min()),
        p50_ms=values[50],
        p90_ms=values[90],
        p99_ms=values[99],
    )


def query_percentiles(latencies_ns: NDArray[np.int64]) -> tuple[Percentile, ...]:
    """Return the percentiles of query latencies, int64 ``[n]``, ns, as LoadGen computes them.

    A percentile is the latency at the index ``n * rank / 100`` of the sorted latencies (mlcommons/inference, loadgen/results.cc).
    """
    ordered, n = np.sort(latencies_ns) / 1e6, len(latencies_ns)
    found = []
    for rank, least in MIN_CALLS.items():
        over = largest_over_latency(n, rank)
        found.append(
            Percentile(
                rank=rank,
                ms=float(ordered[int(n * rank / 100)]) if n >= least else None,
                upper_ms=float(ordered[n - over]) if n >= least and over else None,
                least=least,
            )
        )
    return tuple(found)


@lru_cache
def largest_over_latency(n: int, rank: float) -> int:
    """Return the largest number of slow queries with which a percentile is below a limit at 99 % confidence; 0 for too few queries.

    The early stopping of LoadGen: if the percentile was above the limit, more than ``1 - rank / 100`` of all queries would be slow. At most
    ``t`` of ``n`` queries are then slow with the probability of the binomial distribution. The largest ``t`` with a probability below 1 %
    gives the estimate of the percentile: the ``t``-th largest latency (mlcommons/inference, loadgen/early_stopping.cc and results.cc).
    """
    fast = rank / 100
    if n < 1:
        return 0
    slow = np.arange(1, n + 1)
    log_probabilities = np.append(0.0, np.cumsum(np.log((n - slow + 1) / slow * (1 - fast) / fast))) + n * math.log(fast)
    log_sums = np.logaddexp.accumulate(log_probabilities)
    return max(0, int(np.searchsorted(log_sums, math.log(1 - CONFIDENCE))) - 1)


def warm_up(call: Callable[[int], object], *, max_seconds: float, clock: Clock = SYSTEM_CLOCK) -> WarmUp:
    """Call a function until its latency is stable.

    It is stable if the medians of three successive windows of 20 calls differ by at most 5 %. A window of slow calls is shorter.

    Args:
        call: function. It receives the number of the call.
        max_seconds: no window is started after this time.
        clock: clock of the measurement.
    """
    begin, calls = clock.now_ns(), 0
    medians: list[float] = []
    while True:
        window: list[float] = []
        start = clock.now_ns()
        while len(window) < WINDOW_CALLS and (len(window) < 2 or clock.now_ns() - start < max_seconds * 1e9 / (2 * WINDOWS)):
            called = clock.now_ns()
            call(calls)
            window.append((clock.now_ns() - called) / 1e6)
            calls += 1
        medians.append(float(np.median(window)))
        last, seconds = medians[-WINDOWS:], (clock.now_ns() - begin) / 1e9
        stable = len(last) == WINDOWS and max(last) <= min(last) * (1 + STABLE)
        if stable or seconds >= max_seconds:
            return WarmUp(calls=calls, seconds=round(seconds, 3), stable=stable, median_ms=last[-1])


def time_calls(
    call: Callable[[], object], *, runs: int, warm_up: int = 5, max_seconds: float = 10.0, clock: Clock = SYSTEM_CLOCK
) -> NDArray[np.float64]:
    """Time calls of a function.

    Args:
        call: function to time.
        runs: largest number of timed calls.
        warm_up: number of calls before the first timed call.
        max_seconds: no call is started after this time, except the first.
        clock: clock of the measurement.

    Returns:
        times of the calls, float64 ``[n]``, ms.
    """
    for _ in range(warm_up):
        call()
    times: list[float] = []
    end = clock.now_ns() + max_seconds * 1e9
    while len(times) < runs and (not times or clock.now_ns() < end):
        start = clock.now_ns()
        call()
        times.append((clock.now_ns() - start) / 1e6)
    return np.array(times)
