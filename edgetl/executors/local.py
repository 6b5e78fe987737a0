"""Local executor: one new process for each task, on this host."""

from __future__ import annotations

import logging
import os
import pickle
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from typing import Any

from edgetl.core.system.child_process import child_command, child_environment
from edgetl.errors import EdgetlError, EngineError, error_of
from edgetl.executors.executor import RETRIES, Failure, Item, Result

_log = logging.getLogger(__name__)


class Local:
    """Executor with several processes on this host (see ``Executor``). Each task has a process of its own, so a crash affects one task.

    Args:
        processes: number of processes at the same time.
        retries: attempts after the first one, for a task whose process ends without a result.
    """

    def __init__(self, processes: int, *, retries: int = RETRIES) -> None:
        self._processes, self._retries = processes, retries

    def map(self, function: Callable[[Item], Result], items: Sequence[Item], /) -> Iterator[Result]:
        """Yield the results in the order of the items. Arguments and errors as in ``Executor.map``."""
        children = _Children()
        pool = ThreadPoolExecutor(self._processes)
        try:
            futures = [pool.submit(self._run, children, function, item) for item in items]
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

    def _run(self, children: _Children, function: Callable[[Item], Result], item: Item) -> Result:
        """Run a task in a child process, again if the process ends without a result."""
        question, problem = pickle.dumps((function, item)), ""
        for attempt in range(1, self._retries + 2):
            reply, code = children.run(question)
            if reply:
                outcome = pickle.loads(reply)  # noqa: S301  # our own child wrote it
                if not isinstance(outcome, Failure):
                    return outcome  # type: ignore[no-any-return]
                if outcome.kind:
                    raise error_of(outcome.kind, outcome.message)
                problem = outcome.message
            else:
                problem = f"its process ended with {_describe(code)}, perhaps because of too little memory."
            if attempt <= self._retries and not children.stopped:
                _log.warning("a task failed and is started again (attempt %d of %d): %s", attempt + 1, self._retries + 1, problem)
        raise EngineError(
            f"a task failed {self._retries + 1} times: {problem} Use fewer processes, or find the cause in the messages above."
        )


class _Children:
    """Running child processes. ``stop`` ends them, and no more are started."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self.stopped = False

    def run(self, question: bytes) -> tuple[bytes, int]:
        """Run a child process. Return its reply, which is empty if it ended without one, and its exit code."""
        with self._lock:
            if self.stopped:
                return b"", 0
            child = _start()
            self._running.add(child)
        assert child.stdin is not None and child.stdout is not None
        try:
            # The input stays open until the child has replied: its end would end the child.
            child.stdin.write(len(question).to_bytes(8, "big") + question)
            child.stdin.flush()
            reply = child.stdout.read()
        except BrokenPipeError:
            reply = b""
        finally:
            for stream in (child.stdin, child.stdout):
                with suppress(BrokenPipeError):
                    stream.close()
            code = child.wait()
            with self._lock:
                self._running.discard(child)
        return (reply if code == 0 else b""), code

    def stop(self) -> None:
        with self._lock:
            self.stopped = True
            for child in self._running:
                child.kill()


def _start() -> subprocess.Popen[bytes]:
    command = child_command(__name__, "run_child")
    # Ctrl-C reaches the parent only, which stops its children.
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=child_environment(), start_new_session=True)


def _describe(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def run_child() -> None:
    """Run the task on the standard input, and write its outcome to the standard output. End with the parent process."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # libraries may print
    size = int.from_bytes(sys.stdin.buffer.read(8), "big")
    function, item = pickle.loads(sys.stdin.buffer.read(size))  # noqa: S301  # the parent wrote it
    finished = threading.Event()
    threading.Thread(target=_end_with_parent, args=(finished,), daemon=True).start()
    try:
        outcome = function(item)
    except EdgetlError as error:
        outcome = Failure(type(error).__name__, str(error))
    except Exception:  # noqa: BLE001  # reported by the parent
        outcome = Failure("", traceback.format_exc())
    reply = pickle.dumps(outcome)
    finished.set()  # the parent closes the input as soon as it has the reply
    replies.write(reply)
    replies.close()


def _end_with_parent(finished: threading.Event) -> None:
    """End this process when the parent has ended: then the input ends. Its locks must not outlast it."""
    while os.read(0, 1):
        pass
    if not finished.is_set():
        os._exit(1)
