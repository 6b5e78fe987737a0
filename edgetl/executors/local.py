"""Local executor: one new process for each task, on this host."""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from edgetl.errors import EdgetlError, EngineError, error_of
from edgetl.executors.executor import RETRIES, Failure, Item, Result

_log = logging.getLogger(__name__)

# A new interpreter: a fork would copy the locks of the threads of this process.
_PROCESSES = multiprocessing.get_context("spawn")


class Local:
    """Executor with several processes on this host (see ``Executor``). Each task has a process of its own, so a crash affects one task.

    Args:
        processes: number of processes at the same time.
        retries: attempts after the first one, for a task whose process ends without a result.
    """

    def __init__(self, processes: int, *, retries: int = RETRIES) -> None:
        self.processes, self._retries = processes, retries

    def map(
        self, function: Callable[[Item], Result], items: Sequence[Item], /, *, failed: Callable[[Item, EngineError], Result] | None = None
    ) -> Iterator[Result]:
        """Yield the results in the order of the items. Arguments and errors as in ``Executor.map``."""
        children = _Children()
        pool = ThreadPoolExecutor(self.processes)
        try:
            futures = [pool.submit(self._result, children, function, item, failed) for item in items]
            waiting: set[Future[Any]] = set(futures)
            for future in futures:
                while not future.done():
                    done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    for finished in done:
                        finished.result()  # the first error ends all tasks
                yield future.result()
        finally:
            children.stop()
            pool.shutdown(cancel_futures=True)

    def _result(
        self, children: _Children, function: Callable[[Item], Result], item: Item, failed: Callable[[Item, EngineError], Result] | None
    ) -> Result:
        try:
            return self._run(children, function, item)
        except EngineError as error:
            if failed is None:
                raise
            return failed(item, error)

    def _run(self, children: _Children, function: Callable[[Item], Result], item: Item) -> Result:
        """Run a task in a child process, again if the process ends without a result."""
        problem = ""
        for attempt in range(1, self._retries + 2):
            outcomes, code = children.run(function, item)
            for outcome in outcomes:
                if not isinstance(outcome, Failure):
                    return outcome  # type: ignore[no-any-return]
                if outcome.kind:
                    raise error_of(outcome.kind, outcome.message)
                problem = outcome.message
            if not outcomes:
                problem = f"its process ended with {_describe(code)}, perhaps because of too little memory."
            if attempt <= self._retries and not children.stopped:
                _log.warning("a task failed and is started again (attempt %d of %d): %s", attempt + 1, self._retries + 1, problem)
        raise EngineError(
            f"a task failed {self._retries + 1} times: {problem} Use fewer processes, or find the cause in the messages above."
        )


class _Children:
    """Running child processes. ``stop`` ends them, and no more are started."""

    def __init__(self) -> None:
        self._running: set[multiprocessing.process.BaseProcess] = set()
        self._lock = threading.Lock()
        self.stopped = False

    def run(self, function: Callable[[Any], Any], item: Any) -> tuple[tuple[Any, ...], int]:
        """Run a task in a child process. Return its outcome, none if the process ended without one, and its exit code."""
        ours, theirs = _PROCESSES.Pipe()
        with ours:
            with self._lock, theirs:
                if self.stopped:
                    return (), 0
                child = _PROCESSES.Process(target=run_child, args=(theirs, function, item))
                child.start()
                self._running.add(child)
            outcomes: tuple[Any, ...] = ()
            with suppress(EOFError, ConnectionResetError):
                outcomes = (ours.recv(),)
        child.join()
        with self._lock:
            self._running.discard(child)
        return outcomes, child.exitcode or 0

    def stop(self) -> None:
        with self._lock:
            self.stopped = True
            for child in self._running:
                child.kill()


def _describe(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def run_child(connection: Connection, function: Callable[[Any], Any], item: Any) -> None:
    """Run a task, and send its outcome. End with the parent process."""
    if hasattr(os, "setsid"):
        os.setsid()  # Ctrl-C reaches the parent only, which stops its children
    os.dup2(2, 1)  # libraries may print
    finished = threading.Event()
    threading.Thread(target=_end_with_parent, args=(connection, finished), daemon=True).start()
    try:
        outcome = function(item)
    except EdgetlError as error:
        outcome = Failure(type(error).__name__, str(error))
    except Exception:  # noqa: BLE001  # reported by the parent
        outcome = Failure("", traceback.format_exc())
    finished.set()  # the parent closes the connection as soon as it has the outcome
    connection.send(outcome)


def _end_with_parent(connection: Connection, finished: threading.Event) -> None:
    """End this process when the parent has ended: then the connection ends. Its locks must not outlast it."""
    try:
        connection.recv_bytes()
    except (EOFError, OSError):
        if not finished.is_set():
            os._exit(1)
