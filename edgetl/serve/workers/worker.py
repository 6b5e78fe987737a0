"""Worker handle in the server: start a worker process, submit jobs, stop it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from contextlib import suppress

from edgetl.core.manifest import Manifest
from edgetl.core.system.child_process import child_command, child_environment
from edgetl.errors import EngineError, RequestError, error_of
from edgetl.serve.background import spawn
from edgetl.serve.protocol.models import Model, ModelGallery
from edgetl.serve.workers.messages import Header, Job, Result, WorkerConfig, pack_config, pack_job, read_message, socket_pair, unpack_result

# Time limit for loading and checking the bundles, seconds. It typically takes one or two.
START_S = 120.0
# By default, glibc uses a heap per thread, and large decoded images keep all of them large. One heap saves 5 to 10 MB at the same speed.
_MALLOC = {"MALLOC_ARENA_MAX": "1"}


class WorkerDiedError(RequestError):
    """500: the worker process ended during the computation."""

    def __init__(self) -> None:
        super().__init__(500, "the worker process crashed or hung on this request, and is being replaced. Try again.")


class Worker:
    """Handle of one worker process.

    Attributes:
        models: the served models, in the order of the bundles.
        ended: set after the process has ended.
        capacity: largest number of submitted jobs. It is one more than the worker computes, which hides the latency of the server.
    """

    def __init__(
        self, process: subprocess.Popen[bytes], reader: asyncio.StreamReader, writer: asyncio.StreamWriter, description: Header
    ) -> None:
        self._process, self._reader, self._writer = process, reader, writer
        self._jobs: dict[int, tuple[asyncio.Future[Result], float]] = {}
        self._number = 0
        self.models = tuple(
            Model(Manifest.model_validate_json(item["manifest"]), item["variant"], _gallery(item["gallery"]), item["batch"])
            for item in description["models"]
        )
        self.batch = max(item["batch"] for item in description["models"])
        self.capacity = 1
        self.ended = asyncio.Event()
        self._receiver = spawn(self._receive_results(), "worker connection")

    @classmethod
    async def start(cls, config: WorkerConfig) -> Worker:
        """Start a worker process and wait until it is ready, typically one or two seconds.

        Raises:
            EdgetlError: the worker cannot load a bundle. The class is that of the error in the process.
            EngineError: the process crashed, or was not ready within ``START_S``.
        """
        server_end, worker_end = socket_pair()
        with worker_end:
            try:
                process = _start_process(worker_end.fileno())
            except OSError as error:
                server_end.close()
                raise EngineError(f"cannot start a worker process: {error.strerror}.") from error
        reader, writer = await asyncio.open_connection(sock=server_end, limit=1 << 22)
        try:
            writer.write(pack_config(config))
            async with asyncio.timeout(START_S):
                description, _ = await read_message(reader)
            if "error" in description:
                raise error_of(description["error"], description["message"])
            worker = cls(process, reader, writer, description)
        except BaseException as error:
            process.kill()
            writer.close()
            code = await asyncio.to_thread(process.wait)
            if isinstance(error, TimeoutError):
                raise EngineError(f"a worker process did not load the bundles within {START_S:g} s.") from error
            if isinstance(error, asyncio.IncompleteReadError | ConnectionError):
                raise EngineError(
                    f"a worker process ended with code {code} while loading the bundles. The engine may have crashed."
                ) from error
            if isinstance(error, ValueError | KeyError):
                raise EngineError(f"a worker process sent an invalid description of the bundles: {error}.") from error
            raise
        worker.capacity = config.threads * worker.batch + 1
        return worker

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def load(self) -> int:
        """Number of submitted jobs without a result."""
        return len(self._jobs)

    def oldest_job_s(self) -> float:
        """Return the age of the oldest job without a result, seconds."""
        return time.monotonic() - next(iter(self._jobs.values()))[1] if self._jobs else 0.0

    async def submit(self, job: Job) -> Result:
        """Send ``job`` to the process, and return its result.

        Raises:
            WorkerDiedError: the process ended before it sent a result.
        """
        if self.ended.is_set():
            raise WorkerDiedError
        self._number += 1
        number = self._number
        pending: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._jobs[number] = pending, time.monotonic()
        try:
            self._writer.write(pack_job(number, job))
            return await pending
        finally:
            # If the client disconnected, the worker still computes the job, and the result is discarded.
            self._jobs.pop(number, None)

    async def _receive_results(self) -> None:
        try:
            while True:
                header, payload = await read_message(self._reader)
                pending, _ = self._jobs.get(header["job"], (None, 0.0))
                if pending is not None and not pending.done():
                    pending.set_result(unpack_result(header, payload))
        except (asyncio.IncompleteReadError, ConnectionError):
            # The process ended.
            pass
        finally:
            # Also runs after an invalid message, which makes this task fail. `spawn` logs the exception.
            self.kill()
            self.ended.set()
            for pending, _ in self._jobs.values():
                if not pending.done():
                    pending.set_exception(WorkerDiedError())
            self._writer.close()

    async def close(self) -> int:
        """Kill the process, and return its exit code."""
        self.kill()
        await asyncio.wait([self._receiver])
        return await asyncio.to_thread(self._process.wait)

    def kill(self) -> None:
        """Kill the process without waiting."""
        with suppress(ProcessLookupError):
            os.kill(self._process.pid, 9) if self._process.poll() is None else None


def _gallery(item: Header | None) -> ModelGallery | None:
    return ModelGallery(item["sha256"], item["images"], tuple(item["labels"])) if item else None


def _start_process(descriptor: int) -> subprocess.Popen[bytes]:
    command = child_command("edgetl.serve.workers.worker_process", "main", str(descriptor))
    environment = child_environment(**(_MALLOC | {name: os.environ[name] for name in _MALLOC if name in os.environ}))
    devnull = subprocess.DEVNULL  # engines may print to stdout, which is reserved for the access log
    return subprocess.Popen(command, stdin=devnull, stdout=devnull, pass_fds=[descriptor], env=environment)
