"""Where requests wait: a bounded number of them, worked off by a few threads, none begun after its deadline."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from edgetl.errors import RequestError

T = TypeVar("T")


class BusyError(RequestError):
    """503: as many requests wait as may."""

    def __init__(self) -> None:
        super().__init__(503, "too many requests wait; try again.")


class Lane:
    """Threads that infer, and the requests that wait for one."""

    def __init__(self, *, workers: int, queue: int) -> None:
        """``workers`` requests are worked on at once, and ``queue`` more may wait."""
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="edgetl-infer")
        self._most = workers + queue
        self.inside = 0

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """A place, from before the body is read until the answer is made.

        Raises:
            BusyError: there is none.
        """
        if self.inside >= self._most:
            raise BusyError
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1

    async def run(self, work: Callable[[], T], *, deadline: float, waited: Callable[[float], None]) -> T:
        """Do ``work`` in a thread; ``waited`` hears for how many seconds it stood in the queue.

        Args:
            work: the inference.
            deadline: on ``time.monotonic``'s clock; work that has not begun by then is not done.
            waited: called in the thread.

        Raises:
            RequestError: 504, the deadline passed before the work began.
        """
        entered = time.monotonic()

        def begin() -> T:
            now = time.monotonic()
            waited(now - entered)
            if now > deadline:
                raise RequestError(504, "the request waited longer than its deadline; nothing was computed.")
            return work()

        return await asyncio.get_running_loop().run_in_executor(self._pool, begin)

    def close(self) -> None:
        """Let running work end."""
        self._pool.shutdown(wait=True, cancel_futures=True)
