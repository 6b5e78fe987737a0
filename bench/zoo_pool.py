"""The parent's side of the sweep's children: a bound on each architecture's time, and another child when one dies."""

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

from bench.zoo_nets import Architecture
from bench.zoo_table import Row, libraries

# Importing torch and OpenVINO on a busy machine; no architecture is charged for it.
START_SECONDS = 300.0
# torch keeps what it traced: after so many exports a child is replaced before its memory becomes the next architecture's failure.
ARCHITECTURES_PER_CHILD = 40


@dataclass(frozen=True)
class Bounds:
    """What one architecture may take.

    Attributes:
        cpu_seconds: of the processor's time, so that a busy machine does not turn into failures.
        wall_seconds: on the clock, for what waits and does not compute.
        memory_gb: of one child, private and writable.
    """

    cpu_seconds: float = 180.0
    wall_seconds: float = 1800.0
    memory_gb: float = 6.0


class _Child:
    """One process that checks architectures; its answers arrive through a thread, so that waiting for them can end."""

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self.used = 0
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the child)
        command = [sys.executable, "-m", "bench.zoo_worker", "--memory-gb", str(bounds.memory_gb)]
        command += ["--cpu-seconds", str(bounds.cpu_seconds)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            encoding="utf-8",
            cwd=Path(__file__).parents[1],
            start_new_session=True,
        )
        self._answers: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()
        self._ready = False

    def check(self, item: Architecture) -> tuple[Row, bool]:
        """The row of one architecture, and whether the child can go on."""
        row = Row(architecture=item.name, family=item.family, parameters=item.parameters, made_with=libraries())
        stage = "starting"
        begin = time.monotonic()
        if not self._ready:
            if self._answer(START_SECONDS).get("kind") != "ready":
                return row.model_copy(update={"cause": f"the child did not start: {self._why()}"}), False
            self._ready, begin = True, time.monotonic()
        self._ask(item)
        while True:
            answer = self._answer(self.bounds.wall_seconds - (time.monotonic() - begin))
            match answer.get("kind"):
                case "row":
                    self.used += 1
                    return Row.model_validate(answer["row"]), True
                case "stage":
                    stage, row = answer["stage"], Row.model_validate(answer["row"])
                case kind:
                    why = f"not done after {self.bounds.wall_seconds:g} s" if kind == "late" else self._why()
                    return _cut_off(row, stage, why), False

    def end(self) -> None:
        """Kill the process, whatever it does."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def _ask(self, item: Architecture) -> None:
        assert self._process.stdin is not None
        asked = {"name": item.name, "family": item.family, "parameters": item.parameters, "sides": item.sides}
        with contextlib.suppress(BrokenPipeError):  # a dead child is found when its answer does not come
            self._process.stdin.write(json.dumps(asked) + "\n")
            self._process.stdin.flush()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with contextlib.suppress(ValueError):  # closed by `end`
            for line in self._process.stdout:
                self._answers.put(line)
        self._answers.put(json.dumps({"kind": "gone"}))

    def _answer(self, seconds: float) -> dict[str, Any]:
        try:
            return dict(json.loads(self._answers.get(timeout=max(seconds, 0.01))))
        except queue.Empty:
            return {"kind": "late"}

    def _why(self) -> str:
        """How a child that is gone ended, with the last line of what it said."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=5)
        code = self._process.returncode
        if code == -signal.SIGXCPU:
            return f"more than {self.bounds.cpu_seconds:g} s of the processor's time"
        self._errors.seek(0)
        said = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        ended = f"killed by {signal.Signals(-code).name}" if code is not None and code < 0 else f"ended with code {code}"
        return f"the process {ended}" + (f" ({said[-1][:200]})" if said else "")


def _cut_off(row: Row, stage: str, why: str) -> Row:
    """The row of an architecture whose check was ended, with what was known by then."""
    engine = {"onnx": "failed"} if stage.startswith("ONNX") else {"openvino": "failed"} if stage.startswith("OpenVINO") else {}
    return row.model_copy(update={**engine, "cause": f"{row.cause} {stage}: {why}".strip()})


@dataclass
class _Pool:
    """What the threads of one sweep share; each thread has a child of its own and puts none into ``done`` when nothing is left."""

    bounds: Bounds
    todo: queue.SimpleQueue[Architecture] = field(default_factory=queue.SimpleQueue)
    done: queue.SimpleQueue[Row | None] = field(default_factory=queue.SimpleQueue)
    ending: threading.Event = field(default_factory=threading.Event)
    children: set[_Child] = field(default_factory=set)

    def work(self) -> None:
        """Check what is left, with another child after one that died, failed or is used up."""
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
            # Whatever happened here, the others' rows must not be waited for in vain.
            self.done.put(None)


def sweep(items: Iterable[Architecture], *, workers: int, bounds: Bounds) -> Iterator[Row]:
    """Check ``items`` in ``workers`` children at once and yield each row as it comes; ends its children however it is left."""
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
