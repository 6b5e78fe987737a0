"""Timing of contenders in turn: each round calls all of them on the same image, in alternating order."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle, islice
from typing import TypeVar

import numpy as np

Item = TypeVar("Item")


def in_turn(calls: Mapping[str, Callable[[Item], object]], items: Sequence[Item], *, rounds: int, warm_up: int = 20) -> dict[str, float]:
    """Return the median time of each call over ``rounds`` items, ms."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    order = list(calls)
    for number, item in enumerate(islice(cycle(items), warm_up + rounds)):
        order.reverse()
        for name in order:
            start = time.perf_counter_ns()
            calls[name](item)
            if number >= warm_up:
                times[name].append((time.perf_counter_ns() - start) / 1e6)
    return {name: float(np.median(values)) for name, values in times.items()}
