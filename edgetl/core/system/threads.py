"""Threads that work ahead: results in the order of the items, and a bounded number of them in memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from edgetl.core.system.host import available_cores

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_ahead(function: Callable[[Item], Result], items: Iterable[Item], *, ahead: int) -> Iterator[Result]:
    """Yield ``function(item)`` for each item in its order. One thread per core computes up to ``ahead`` results in advance.

    ``ThreadPoolExecutor.map`` reads all items first, and keeps 2 kB for each.
    """
    with ThreadPoolExecutor(max_workers=available_cores()) as pool:
        pending: deque[Future[Result]] = deque()
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) >= ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
