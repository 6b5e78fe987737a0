"""One worker process as the server sees it: started, asked, watched, ended."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from edgetl import errors
from edgetl.core.manifest import Manifest
from edgetl.core.system.child import child_command, child_environment
from edgetl.errors import EdgetlError, EngineError, RequestError
from edgetl.serve.background import spawn
from edgetl.serve.protocol.models import Model
from edgetl.serve.workers.messages import Done, Header, Job, channel, pack, pack_job, read_frame, unpack_done

# Loading and checking a bundle takes a second or two; a network that hangs there would hold up the start for ever.
START_S = 120.0
# glibc gives each thread a heap of its own, and decoded photographs leave all of them large: 5 to 10 MB less at the same speed.
_MALLOC = {"MALLOC_ARENA_MAX": "1"}


@dataclass(frozen=True)
class Order:
    """Configuration of workers: bundles and inference settings.

    Attributes:
        bundles: as paths; links are followed once, so that a replaced worker loads the same bundles.
        variant: of every bundle; none is the first whose engine is installed.
        threads: jobs computed at once in a worker, each by one thread.
        batch: images of different requests computed together, at most; 0 measures at the start whether that pays.
        body_bytes: largest body of a request; each job may hold one.
    """

    bundles: tuple[Path, ...]
    variant: str | None = None
    threads: int = 1
    batch: int = 0
    body_bytes: int = 16_000_000


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

    def __init__(self, process: subprocess.Popen[bytes], reader: asyncio.StreamReader, writer: asyncio.StreamWriter, facts: Header) -> None:
        self._process, self._reader, self._writer = process, reader, writer
        self._jobs: dict[int, tuple[asyncio.Future[Done], float]] = {}
        self._number = 0
        self.models = tuple(
            Model(Manifest.model_validate_json(item["manifest"]), item["variant"], item["batch"]) for item in facts["models"]
        )
        self.batch = max(item["batch"] for item in facts["models"])
        self.slots = 1
        self.ended = asyncio.Event()
        self._listening = spawn(self._listen(), "worker connection")

    @classmethod
    async def start(cls, order: Order) -> Worker:
        """A worker that is ready, which takes a second or more.

        Raises:
            EdgetlError: what opening the bundles raised in the process, or EngineError: it died or did not become ready.
        """
        ours, theirs = channel()
        command = child_command("edgetl.serve.workers.worker_process", "main", str(theirs.fileno()))
        environment = child_environment(**(_MALLOC | {name: os.environ[name] for name in _MALLOC if name in os.environ}))
        try:
            # Engines may print on the standard output, which is for the access log.
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, pass_fds=[theirs.fileno()], env=environment
            )  # fmt: skip
        except OSError as error:
            ours.close()
            raise EngineError(f"a worker process could not be started: {error.strerror}.") from error
        finally:
            theirs.close()
        reader, writer = await asyncio.open_connection(sock=ours, limit=1 << 22)
        try:
            paths = [str(path) for path in order.bundles]
            facts = {"variant": order.variant, "threads": order.threads, "batch": order.batch, "body_bytes": order.body_bytes}
            writer.write(pack({"bundles": paths, **facts}))
            async with asyncio.timeout(START_S):
                facts, _ = await read_frame(reader)
            if "error" in facts:
                raise _as_raised(facts)
            worker = cls(process, reader, writer, facts)
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
        worker.slots = order.threads * worker.batch + 1
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

    async def ask(self, job: Job) -> Done:
        """The answer to ``job``.

        Raises:
            DiedError: the process ended first.
        """
        if self.ended.is_set():
            raise DiedError
        self._number += 1
        number = self._number
        answer: asyncio.Future[Done] = asyncio.get_running_loop().create_future()
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
                header, payload = await read_frame(self._reader)
                answer, _ = self._jobs.get(header["job"], (None, 0.0))
                if answer is not None and not answer.done():
                    answer.set_result(unpack_done(header, payload))
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


def _as_raised(facts: Header) -> EdgetlError:
    """The error of the process, of the same class here, so that its exit code is the same."""
    kind = getattr(errors, facts["error"], EngineError)
    error: EdgetlError = kind.__new__(kind)
    Exception.__init__(error, facts["said"])
    return error
