"""Worker pool of the export sweep: child processes with limits on time and memory, which are replaced when they die."""

from __future__ import annotations

import contextlib
import json
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.zoo.nets import Architecture
from bench.zoo.table import Row, libraries

# Time for importing torch and OpenVINO on a busy host. It does not count for an architecture.
START_SECONDS = 300.0
# torch keeps traced networks in memory. A child is replaced after this number of exports, before its memory exceeds the limit.
ARCHITECTURES_PER_CHILD = 40


@dataclass(frozen=True)
class Bounds:
    """Limits for one architecture.

    Attributes:
        cpu_seconds: CPU time, seconds. It is independent of the load of the host.
        wall_seconds: wall time, seconds, for a process that waits without computing.
        memory_gb: private writable memory of one child, GB.
    """

    cpu_seconds: float = 180.0
    wall_seconds: float = 1800.0
    memory_gb: float = 6.0


class _Child:
    """Child process that checks architectures. A thread reads its messages, because waiting for a message needs a timeout."""

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self.used = 0
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the child)
        command = [sys.executable, "-m", "bench.zoo.worker", "--memory-gb", str(bounds.memory_gb)]
        command += ["--cpu-seconds", str(bounds.cpu_seconds)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            encoding="utf-8",
            cwd=Path(__file__).parents[2],
            start_new_session=True,
        )
        self._messages: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read_messages, daemon=True).start()
        self._ready = False

    def check(self, item: Architecture) -> tuple[Row, bool]:
        """Check one architecture. Return its row, and True if the child can check another one."""
        row = Row(architecture=item.name, family=item.family, parameters=item.parameters, made_with=libraries())
        stage = "starting"
        begin = time.monotonic()
        if not self._ready:
            if self._next_message(START_SECONDS).get("kind") != "ready":
                return row.model_copy(update={"cause": f"the child did not start: {self._describe_end()}"}), False
            self._ready, begin = True, time.monotonic()
        self._send(item)
        while True:
            message = self._next_message(self.bounds.wall_seconds - (time.monotonic() - begin))
            match message.get("kind"):
                case "row":
                    self.used += 1
                    return Row.model_validate(message["row"]), True
                case "stage":
                    stage, row = message["stage"], Row.model_validate(message["row"])
                case kind:
                    reason = f"not finished after {self.bounds.wall_seconds:g} s" if kind == "late" else self._describe_end()
                    return _interrupted(row, stage, reason), False

    def end(self) -> None:
        """Kill the process."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def _send(self, item: Architecture) -> None:
        assert self._process.stdin is not None
        job = {"name": item.name, "family": item.family, "parameters": item.parameters, "sides": item.sides}
        with contextlib.suppress(BrokenPipeError):  # a dead child is detected when its message is missing
            self._process.stdin.write(json.dumps(job) + "\n")
            self._process.stdin.flush()

    def _read_messages(self) -> None:
        assert self._process.stdout is not None
        with contextlib.suppress(ValueError):  # closed by `end`
            for line in self._process.stdout:
                self._messages.put(line)
        self._messages.put(json.dumps({"kind": "gone"}))

    def _next_message(self, seconds: float) -> dict[str, Any]:
        try:
            return dict(json.loads(self._messages.get(timeout=max(seconds, 0.01))))
        except queue.Empty:
            return {"kind": "late"}

    def _describe_end(self) -> str:
        """Describe the end of the child: exit code or signal, and the last line of its error output."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=5)
        code = self._process.returncode
        if code == -signal.SIGXCPU:
            return f"more than {self.bounds.cpu_seconds:g} s of CPU time"
        self._errors.seek(0)
        output = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        ended = f"was killed by {signal.Signals(-code).name}" if code is not None and code < 0 else f"ended with exit code {code}"
        return f"the process {ended}" + (f" ({output[-1][:200]})" if output else "")


def _interrupted(row: Row, stage: str, reason: str) -> Row:
    """Return the row of an architecture with an interrupted check, with the results so far."""
    engine = {"onnx": "failed"} if stage.startswith("ONNX") else {"openvino": "failed"} if stage.startswith("OpenVINO") else {}
    return row.model_copy(update={**engine, "cause": f"{row.cause} {stage}: {reason}".strip()})


@dataclass
class _Pool:
    """Shared state of the threads of one sweep. Each thread has its own child, and puts None into ``done`` when no work is left."""

    bounds: Bounds
    todo: queue.SimpleQueue[Architecture] = field(default_factory=queue.SimpleQueue)
    done: queue.SimpleQueue[Row | None] = field(default_factory=queue.SimpleQueue)
    ending: threading.Event = field(default_factory=threading.Event)
    children: set[_Child] = field(default_factory=set)

    def work(self) -> None:
        """Check the remaining architectures. The child is replaced after it died, failed, or reached its number of architectures."""
        child: _Child | None = None
        try:
            while not self.ending.is_set():
                item = self.todo.get_nowait()
                if child is None:
                    child = _Child(self.bounds)
                    self.children.add(child)
                row, alive = child.check(item)
                if not self.ending.is_set():
                    self.done.put(row)
                if not alive or not row.passed or child.used >= ARCHITECTURES_PER_CHILD:
                    child.end()
                    self.children.discard(child)
                    child = None
        except queue.Empty:
            pass
        finally:
            # Without this message, `sweep` would wait forever after an error in this thread.
            self.done.put(None)


def sweep(items: Iterable[Architecture], *, workers: int, bounds: Bounds) -> Iterator[Row]:
    """Check ``items`` in ``workers`` parallel children and yield each row when it is ready. All children end with the generator."""
    pool = _Pool(bounds)
    for item in items:
        pool.todo.put(item)
    threads = [threading.Thread(target=pool.work, daemon=True) for _ in range(workers)]
    for thread in threads:
        thread.start()
    try:
        running = workers
        while running:
            row = pool.done.get()
            if row is None:
                running -= 1
            else:
                yield row
    finally:
        pool.ending.set()
        for child in list(pool.children):
            child.end()
        for thread in threads:
            thread.join()
