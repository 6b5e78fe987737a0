"""Worker pool: assignment of jobs, the queue of requests, and replacement of workers that died or hang."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from edgetl.errors import EdgetlError, RequestError
from edgetl.serve.background import spawn
from edgetl.serve.protocol.models import Models
from edgetl.serve.workers.messages import Job, Result, WorkerConfig
from edgetl.serve.workers.worker import Worker

logger = logging.getLogger("edgetl.serve")

# Before a second, third, … worker in a row is started in the place of those that died at once.
_BACKOFF_S = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
# A worker that ran for so long was sound; its end does not count as another failure in a row.
_SOUND_S = 60.0
_LOOK_S = 0.5


class DeadlineError(RequestError):
    """504: the deadline passed while the request waited."""

    def __init__(self) -> None:
        super().__init__(504, "the request waited longer than its deadline; nothing was computed.")


@dataclass
class _Place:
    """Place of a worker: the worker, its start, and the number of early deaths in a row."""

    worker: Worker | None
    since: float
    failures: int = 0


class Events(Protocol):
    """Receiver of the events of a pool."""

    def replaced(self) -> None:
        """A worker died or hung, and another is started."""

    def changed(self) -> None:
        """A new worker found other bundles on the disk."""


class WorkerPool:
    """Worker processes that loaded the same bundles.

    Attributes:
        models: what they serve.
        waiting: requests that no worker has taken yet.
        users: requests that use this pool; ``retire`` waits for them.
    """

    def __init__(self, config: WorkerConfig, workers: list[Worker], *, hang_s: float, events: Events) -> None:
        self._config, self._workers, self._hang_s, self._events = config, workers, hang_s, events
        self.models = Models(list(workers[0].models))
        self._places: deque[asyncio.Future[Worker]] = deque()
        self.users = 0
        self._idle = asyncio.Event()
        self._supervisors: set[asyncio.Task[None]] = set()
        self._retired = False
        for worker in workers:
            self._supervise(_Place(worker, time.monotonic()))

    @classmethod
    async def start(cls, config: WorkerConfig, *, count: int, hang_s: float, events: Events) -> WorkerPool:
        """Pool of ``count`` workers, all ready.

        Args:
            config: bundles and inference settings.
            count: number of processes.
            hang_s: a job that takes longer counts as hanging, seconds.
            events: receiver of the pool's events.

        Raises:
            EdgetlError: a worker could not load the bundles.
            ConfigError: two bundles have the same name and release.
        """
        found = await asyncio.gather(*(Worker.start(config) for _ in range(count)), return_exceptions=True)
        workers = [item for item in found if isinstance(item, Worker)]
        failed = [item for item in found if isinstance(item, BaseException)]
        try:
            if failed:
                raise failed[0]
            return cls(config, workers, hang_s=hang_s, events=events)
        except BaseException:
            await asyncio.gather(*(worker.close() for worker in workers))
            raise

    @property
    def ready(self) -> bool:
        """True if a worker can compute."""
        return any(not worker.ended.is_set() for worker in self._workers)

    @property
    def waiting(self) -> int:
        """Requests that wait for a worker."""
        return len(self._places)

    @property
    def process_ids(self) -> list[int]:
        """Ids of the worker processes."""
        return [worker.pid for worker in self._workers]

    async def run(self, job: Job) -> Result:
        """The result of ``job``, as soon as a worker is free.

        Raises:
            DeadlineError: none was until the job's deadline.
            DiedError: the worker ended while it computed.
        """
        worker = self._free() if not self._places else None
        if worker is None:
            worker = await self._place(job.deadline)
        try:
            return await worker.submit(job)
        finally:
            self._release()

    def _free(self) -> Worker | None:
        """The least loaded worker that can take another job."""
        free = [worker for worker in self._workers if worker.load < worker.slots and not worker.ended.is_set()]
        return min(free, key=lambda worker: worker.load) if free else None

    async def _place(self, deadline: float) -> Worker:
        place: asyncio.Future[Worker] = asyncio.get_running_loop().create_future()
        self._places.append(place)
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                return await place
        except BaseException as error:
            if place in self._places:
                self._places.remove(place)
            else:
                # It was given a worker at the moment that it gave up: that worker is for the next.
                self._release()
            if isinstance(error, TimeoutError):
                raise DeadlineError from error
            raise

    def _release(self) -> None:
        """Whoever waits longest gets what is free now."""
        while self._places and (worker := self._free()) is not None:
            place = self._places.popleft()
            if not place.done():
                place.set_result(worker)
                return

    def _supervise(self, place: _Place) -> None:
        """Keep a worker in ``place``; a supervisor that fails is replaced."""
        if self._retired:
            return

        def failed() -> None:
            asyncio.get_running_loop().call_later(_LOOK_S, self._supervise, place)

        task = spawn(self._care(place), "worker supervisor", failed)
        self._supervisors.add(task)
        task.add_done_callback(self._supervisors.discard)

    async def _care(self, place: _Place) -> None:
        """Watch one worker, and start another each time that it ends."""
        while True:
            if place.worker is None:
                place.worker, place.since = await self._next(place.failures), time.monotonic()
                place.failures += 1
                self._workers.append(place.worker)
                for _ in range(place.worker.slots):
                    self._release()
            await self._ended(place.worker)
            worker, place.worker = place.worker, None
            self._workers.remove(worker)
            place.failures = 0 if time.monotonic() - place.since > _SOUND_S else place.failures
            code = await worker.close()
            logger.error("a worker ended with code %d; another takes its place", code)
            self._events.replaced()

    async def _ended(self, worker: Worker) -> None:
        """Wait until the worker ends; a worker that hangs is killed."""
        while not worker.ended.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_S):
                    await worker.ended.wait()
            if worker.oldest_s() > self._hang_s:
                logger.error("a worker did not answer for %g s and is replaced", self._hang_s)
                worker.kill()
                await worker.ended.wait()

    async def _next(self, failures: int) -> Worker:
        """A worker in the place of one that ended; tries until there is one."""
        while True:
            await asyncio.sleep(_BACKOFF_S[min(failures, len(_BACKOFF_S) - 1)])
            failures += 1
            try:
                worker = await Worker.start(self._config)
            except (EdgetlError, OSError, RuntimeError, ValueError) as error:
                logger.error("no worker could be started: %s", error)
                continue
            # Compared before `Models`, which refuses bundles that became two of one name and release.
            if worker.models == tuple(self.models.all()):
                return worker
            await worker.close()
            logger.error("the bundle was changed on the disk while it was served")
            # What is there now may be served in place of this; where it may not, the old one may come back.
            self._events.changed()

    async def retire(self) -> None:
        """When the last request that holds on is answered, end the workers."""
        while self.users:
            self._idle.clear()
            await self._idle.wait()
        self._retired = True
        supervisors = list(self._supervisors)
        for task in supervisors:
            task.cancel()
        await asyncio.gather(*supervisors, return_exceptions=True)
        await asyncio.gather(*(worker.close() for worker in self._workers))

    def leave(self) -> None:
        """One request less holds on."""
        self.users -= 1
        if not self.users:
            self._idle.set()
