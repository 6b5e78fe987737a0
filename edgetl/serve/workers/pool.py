"""Worker pool: job assignment, request queue, replacement of crashed or hung workers."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from edgetl.errors import EdgetlError, GalleryError, RequestError
from edgetl.serve.background import spawn
from edgetl.serve.protocol.models import Models
from edgetl.serve.workers.messages import DEADLINE_PASSED, Job, Result, WorkerConfig
from edgetl.serve.workers.worker import Worker

logger = logging.getLogger("edgetl.serve")

# Delays before the first, second, … replacement in a row, seconds.
_BACKOFF_S = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
# After this run time, seconds, the end of a worker does not count as a failure in a row.
_STABLE_S = 60.0
# Interval between checks for hung workers, seconds.
_CHECK_S = 0.5


class DeadlineError(RequestError):
    """504: the deadline of the request passed while it waited."""

    def __init__(self) -> None:
        super().__init__(504, DEADLINE_PASSED)


@dataclass
class _Slot:
    """Slot of a worker: the worker, its start time, and the number of failures in a row."""

    worker: Worker | None
    started_at: float
    failures: int = 0


class Events(Protocol):
    """Event receiver of a pool."""

    def worker_replaced(self) -> None:
        """Handle the start of a replacement for a worker that crashed or hung."""

    def bundles_changed(self) -> None:
        """Handle a new worker that loaded other bundles, because they changed on disk."""


class WorkerPool:
    """Pool of worker processes with the same bundles.

    Attributes:
        models: the served models.
        active_requests: number of requests that use this pool. ``retire`` waits for them.
    """

    def __init__(self, config: WorkerConfig, workers: list[Worker], *, hang_s: float, events: Events) -> None:
        self._config, self._workers, self._hang_s, self._events = config, workers, hang_s, events
        self.models = Models(list(workers[0].models) if workers else [])
        self._queue: deque[asyncio.Future[Worker]] = deque()
        self.active_requests = 0
        self._idle = asyncio.Event()
        self._supervisors: set[asyncio.Task[None]] = set()
        self._retired = False
        for worker in workers:
            self._supervise(_Slot(worker, time.monotonic()))

    @classmethod
    async def start(cls, config: WorkerConfig, *, count: int, hang_s: float, events: Events) -> WorkerPool:
        """Start ``count`` workers and wait until all are ready.

        Args:
            config: bundles and inference settings.
            count: number of processes.
            hang_s: time limit of a job, seconds. A worker with a longer job counts as hung.
            events: event receiver.

        Raises:
            EdgetlError: a worker cannot load the bundles.
            ConfigError: two bundles have the same name and release.
        """
        started = await asyncio.gather(*(Worker.start(config) for _ in range(count)), return_exceptions=True)
        workers = [item for item in started if isinstance(item, Worker)]
        failed = [item for item in started if isinstance(item, BaseException)]
        try:
            if failed:
                raise failed[0]
            return cls(config, workers, hang_s=hang_s, events=events)
        except BaseException:
            await asyncio.gather(*(worker.close() for worker in workers))
            raise

    @classmethod
    def empty(cls, events: Events) -> WorkerPool:
        """Return a pool without bundles and workers, for a store that has no healthy release."""
        return cls(WorkerConfig((), (), ()), [], hang_s=math.inf, events=events)

    @property
    def threads(self) -> int:
        """Requests that each worker computes at the same time."""
        return self._config.threads

    @property
    def ready(self) -> bool:
        """True if at least one worker is running."""
        return any(not worker.ended.is_set() for worker in self._workers)

    @property
    def waiting(self) -> int:
        """Number of requests that wait for a worker."""
        return len(self._queue)

    @property
    def process_ids(self) -> list[int]:
        """Process ids of the workers."""
        return [worker.pid for worker in self._workers]

    async def run(self, job: Job) -> Result:
        """Compute ``job`` in a worker, and return its result.

        Raises:
            DeadlineError: no worker was free before the job's deadline.
            WorkerDiedError: the worker process ended during the computation.
        """
        worker = self._free_worker() if not self._queue else None
        if worker is None:
            worker = await self._wait_for_worker(job.deadline)
        try:
            return await worker.submit(job)
        finally:
            self._assign_free_worker()

    def _free_worker(self) -> Worker | None:
        """Return the worker with the fewest jobs, or None if all are full."""
        free = [worker for worker in self._workers if worker.load < worker.capacity and not worker.ended.is_set()]
        return min(free, key=lambda worker: worker.load) if free else None

    async def _wait_for_worker(self, deadline: float) -> Worker:
        waiter: asyncio.Future[Worker] = asyncio.get_running_loop().create_future()
        self._queue.append(waiter)
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                return await waiter
        except BaseException as error:
            if waiter in self._queue:
                self._queue.remove(waiter)
            else:
                # A worker was assigned at the same moment. Assign it to the next request.
                self._assign_free_worker()
            if isinstance(error, TimeoutError):
                raise DeadlineError from error
            raise

    def _assign_free_worker(self) -> None:
        """Assign a free worker to the request that has waited longest."""
        while self._queue and (worker := self._free_worker()) is not None:
            waiter = self._queue.popleft()
            if not waiter.done():
                waiter.set_result(worker)
                return

    def _supervise(self, slot: _Slot) -> None:
        """Start the supervisor of a slot. If the supervisor fails, start another."""
        if self._retired:
            return

        def restart() -> None:
            asyncio.get_running_loop().call_later(_CHECK_S, self._supervise, slot)

        task = spawn(self._keep_running(slot), "worker supervisor", restart)
        self._supervisors.add(task)
        task.add_done_callback(self._supervisors.discard)

    async def _keep_running(self, slot: _Slot) -> None:
        """Supervise one worker, and start a replacement each time that it ends."""
        while True:
            if slot.worker is None:
                slot.worker, slot.started_at = await self._start_replacement(slot.failures), time.monotonic()
                slot.failures += 1
                self._workers.append(slot.worker)
                for _ in range(slot.worker.capacity):
                    self._assign_free_worker()
            await self._wait_until_ended(slot.worker)
            worker, slot.worker = slot.worker, None
            self._workers.remove(worker)
            slot.failures = 0 if time.monotonic() - slot.started_at > _STABLE_S else slot.failures
            code = await worker.close()
            logger.error("a worker process ended with code %d, starting a replacement", code)
            self._events.worker_replaced()

    async def _wait_until_ended(self, worker: Worker) -> None:
        """Wait until a worker ends. Kill a hung worker."""
        while not worker.ended.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(_CHECK_S):
                    await worker.ended.wait()
            if worker.oldest_job_s() > self._hang_s:
                logger.error("a worker did not respond for %g s (--hang-s), stopping it", self._hang_s)
                worker.kill()
                await worker.ended.wait()

    async def _start_replacement(self, failures: int) -> Worker:
        """Start a replacement for a worker that ended. Retry until one starts."""
        while True:
            await asyncio.sleep(_BACKOFF_S[min(failures, len(_BACKOFF_S) - 1)])
            failures += 1
            try:
                worker = await Worker.start(self._config)
            except (EdgetlError, OSError, RuntimeError, ValueError) as error:
                logger.error("a worker process failed to start: %s", error)
                if isinstance(error, GalleryError):
                    # The gallery was changed since the pool started. A reload uses the new one.
                    self._events.bundles_changed()
                continue
            # Compare before creating `Models`, which rejects two bundles with the same name and release.
            if worker.models == tuple(self.models.all()):
                return worker
            await worker.close()
            logger.error("a served bundle was changed on disk")
            # A reload may accept the changed bundles. Otherwise the next attempt may find the old ones again.
            self._events.bundles_changed()

    async def retire(self) -> None:
        """Wait for all active requests, then stop the workers."""
        while self.active_requests:
            self._idle.clear()
            await self._idle.wait()
        self._retired = True
        supervisors = list(self._supervisors)
        for task in supervisors:
            task.cancel()
        await asyncio.gather(*supervisors, return_exceptions=True)
        await asyncio.gather(*(worker.close() for worker in self._workers))

    def release(self) -> None:
        """Remove one active request."""
        self.active_requests -= 1
        if not self.active_requests:
            self._idle.set()
