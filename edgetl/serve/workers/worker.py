"""Worker: start, use and end of one worker process, on the server's side."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from contextlib import suppress

from edgetl import errors
from edgetl.core.manifest import Manifest
from edgetl.core.system.child_process import child_command, child_environment
from edgetl.errors import EdgetlError, EngineError, RequestError
from edgetl.serve.background import spawn
from edgetl.serve.protocol.models import Model
from edgetl.serve.workers.messages import Header, Job, Result, WorkerConfig, channel, pack_config, pack_job, read_message, unpack_result

# Loading and checking a bundle takes a second or two; a network that hangs there would hold up the start for ever.
START_S = 120.0
# glibc gives each thread a heap of its own, and decoded photographs leave all of them large: 5 to 10 MB less at the same speed.
_MALLOC = {"MALLOC_ARENA_MAX": "1"}


class DiedError(RequestError):
    """500: the worker ended before it answered."""

    def __init__(self) -> None:
        super().__init__(500, "the worker that computed this request died or hung; another takes its place.")


class Worker:
    """A process that loaded every bundle and answers jobs.

    Attributes:
        models: what it serves, in the order of its bundles.
        ended: set when the process is gone.
        slots: jobs that it holds at most; one more than it computes, so that it never waits for the server.
    """

    def __init__(
        self, process: subprocess.Popen[bytes], reader: asyncio.StreamReader, writer: asyncio.StreamWriter, description: Header
    ) -> None:
        self._process, self._reader, self._writer = process, reader, writer
        self._jobs: dict[int, tuple[asyncio.Future[Result], float]] = {}
        self._number = 0
        self.models = tuple(
            Model(Manifest.model_validate_json(item["manifest"]), item["variant"], item["batch"]) for item in description["models"]
        )
        self.batch = max(item["batch"] for item in description["models"])
        self.slots = 1
        self.ended = asyncio.Event()
        self._listening = spawn(self._listen(), "worker connection")

    @classmethod
    async def start(cls, config: WorkerConfig) -> Worker:
        """A worker that is ready, which takes a second or more.

        Raises:
            EdgetlError: what opening the bundles raised in the process, or EngineError: it died or did not become ready.
        """
        ours, theirs = channel()
        with theirs:
            try:
                process = _start_process(theirs.fileno())
            except OSError as error:
                ours.close()
                raise EngineError(f"a worker process could not be started: {error.strerror}.") from error
        reader, writer = await asyncio.open_connection(sock=ours, limit=1 << 22)
        try:
            writer.write(pack_config(config))
            async with asyncio.timeout(START_S):
                description, _ = await read_message(reader)
            if "error" in description:
                raise _error_of(description)
            worker = cls(process, reader, writer, description)
        except BaseException as error:
            process.kill()
            writer.close()
            code = await asyncio.to_thread(process.wait)
            if isinstance(error, TimeoutError):
                raise EngineError(f"a worker did not load the bundles within {START_S:g} s.") from error
            if isinstance(error, asyncio.IncompleteReadError | ConnectionError):
                raise EngineError(f"a worker ended with code {code} while it loaded the bundles, as when an engine crashes.") from error
            if isinstance(error, ValueError | KeyError):
                raise EngineError(f"a worker described its bundles in a way that this version does not read: {error}.") from error
            raise
        worker.slots = config.threads * worker.batch + 1
        return worker

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    @property
    def load(self) -> int:
        """Jobs that it holds."""
        return len(self._jobs)

    def oldest_s(self) -> float:
        """For how many seconds it has not answered the job that it holds longest."""
        return time.monotonic() - next(iter(self._jobs.values()))[1] if self._jobs else 0.0

    async def submit(self, job: Job) -> Result:
        """The answer to ``job``.

        Raises:
            DiedError: the process ended first.
        """
        if self.ended.is_set():
            raise DiedError
        self._number += 1
        number = self._number
        answer: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._jobs[number] = answer, time.monotonic()
        try:
            self._writer.write(pack_job(number, job))
            return await answer
        finally:
            # A client that went away leaves its job to be computed; its answer finds nobody.
            self._jobs.pop(number, None)

    async def _listen(self) -> None:
        try:
            while True:
                header, payload = await read_message(self._reader)
                answer, _ = self._jobs.get(header["job"], (None, 0.0))
                if answer is not None and not answer.done():
                    answer.set_result(unpack_result(header, payload))
        except (asyncio.IncompleteReadError, ConnectionError):
            # It ended.
            pass
        finally:
            # A worker that sends something other than a result: the task fails, which is logged.
            self.kill()
            self.ended.set()
            for answer, _ in self._jobs.values():
                if not answer.done():
                    answer.set_exception(DiedError())
            self._writer.close()

    async def close(self) -> int:
        """End the process, which answers nothing more; its exit code."""
        self.kill()
        await asyncio.wait([self._listening])
        return await asyncio.to_thread(self._process.wait)

    def kill(self) -> None:
        """End the process at once."""
        with suppress(ProcessLookupError):
            os.kill(self._process.pid, 9) if self._process.poll() is None else None


def _start_process(descriptor: int) -> subprocess.Popen[bytes]:
    command = child_command("edgetl.serve.workers.worker_process", "main", str(descriptor))
    environment = child_environment(**(_MALLOC | {name: os.environ[name] for name in _MALLOC if name in os.environ}))
    nowhere = subprocess.DEVNULL  # engines may print on the standard output, which is for the access log
    return subprocess.Popen(command, stdin=nowhere, stdout=nowhere, pass_fds=[descriptor], env=environment)


def _error_of(description: Header) -> EdgetlError:
    """The error of the process, of the same class here, so that its exit code is the same."""
    kind = getattr(errors, description["error"], EngineError)
    error: EdgetlError = kind.__new__(kind)
    Exception.__init__(error, description["message"])
    return error
