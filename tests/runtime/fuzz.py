"""Fuzzer for model files: send mutated files through the check and the engine, in a child process with limits.

A file is harmful if it passes the check and ends the child, by a crash, the limit of CPU time, or the limit of wall time. The child is then
replaced. ``out of memory`` is counted separately: the file needed more memory than the limit, the engine reported an error, and the child
continued. ``assertion`` is counted separately too: the engine ended the process itself, at a size below zero. The check cannot exclude
either, because it does not compute shapes (see ``onnx_check``).

``python -m tests.runtime.fuzz onnx 20000 BUNDLE`` also mutates the variants of a bundle, and prints the results.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np

from edgetl.core.bundle import open_bundle
from edgetl.core.manifest import Format
from edgetl.core.system.child_process import child_command, child_environment
from edgetl.errors import EngineError
from edgetl.runtime.engine import load_engine
from edgetl.runtime.ir_check import check_ir
from edgetl.runtime.onnx_check import check_onnx
from edgetl.runtime.trial import limit_process, memory_for
from tests.runtime.hostile import SIDE, as_ir
from tests.runtime.mutate import IrMutator, OnnxMutator
from tests.runtime.seeds import convolutional, transformer

CPU_S = 20
WALL_S = 120
# Number of files per child. The child is then replaced, because memory leaks of the engines add up.
FILES_PER_CHILD = 1000
_HARMLESS = frozenset({"rejected", "rejected by the engine", "ran", "out of memory", "assertion"})


def seeds(format_: Format, bundle: Path | None = None) -> list[list[bytes]]:
    """Return the files to mutate: small networks, and the variants of a bundle."""
    found = [[convolutional()], [transformer()]]
    if format_ == "openvino":
        with tempfile.TemporaryDirectory() as work:
            found = [as_ir(model, Path(work)) for (model,) in found]
        # OpenVINO numbers the layers of all files of a process. The numbers are removed to make a seed reproducible.
        found = [[re.sub(rb'(name="\w+?)_\d+"', rb'\1"', xml), weights] for xml, weights in found]
    if bundle is not None:
        opened = open_bundle(bundle)
        found += [[opened.read(file) for file in variant.files] for variant in opened.manifest.variants if variant.format == format_]
    return found


def mutations(format_: Format, count: int, *, seed: int, bundle: Path | None = None) -> Iterator[list[bytes]]:
    """Generate ``count`` mutated files, or pairs of files."""
    rng = random.Random(seed)
    mutators = [OnnxMutator(files[0]) if format_ == "onnx" else IrMutator(files[0], files[1]) for files in seeds(format_, bundle)]
    # Large files load slowly and contain mostly weights. They have a tenth of the probability of the small networks.
    weights = [10 if index < 2 else 1 for index in range(len(mutators))]
    for _ in range(count):
        changed = rng.choices(mutators, weights)[0].mutate(rng)
        yield [changed] if isinstance(changed, bytes) else list(changed)


class Fuzzer:
    """Fuzzer that sends files to a child process.

    Attributes:
        seen: number of files by result: ``rejected`` (by the check), ``rejected by the engine``, ``ran``, ``out of memory``, exit code.
        harmful: files that passed the check and ended the child.
    """

    def __init__(self, format_: Format) -> None:
        self._format = format_
        self._child: subprocess.Popen[bytes] | None = None
        self._stderr: IO[bytes] | None = None
        self._sent = 0
        self.seen: Counter[str] = Counter()
        self.harmful: list[tuple[str, list[bytes]]] = []

    def run(self, files: Sequence[bytes]) -> str:
        """Check, load and run one network."""
        if self._child is None or self._sent >= FILES_PER_CHILD:
            self.close()
            self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 (``close`` closes it)
            command = child_command("tests.runtime.fuzz", "serve_files", self._format)
            self._child = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr, env=child_environment()
            )
            self._sent = 0
        self._sent += 1
        assert self._child.stdin is not None and self._child.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._child.stdin.write(b"".join([json.dumps([len(data) for data in files]).encode(), b"\n", *files]))
            self._child.stdin.flush()
        overdue = threading.Timer(WALL_S, self._child.kill)
        overdue.start()
        result = self._child.stdout.readline().decode().strip()
        overdue.cancel()
        if not result:
            result = f"exit code {self._child.wait()}"
            assert self._stderr is not None
            self._stderr.seek(0)
            # Of the standard C++ library. A damaged heap also ends in SIGABRT, with another message.
            if result == "exit code -6" and b": Assertion '" in self._stderr.read():
                result = "assertion"
            self.close()
        self.seen[result] += 1
        if result not in _HARMLESS:
            self.harmful.append((result, list(files)))
        return result

    def close(self) -> None:
        """End the child."""
        if self._child is not None:
            assert self._child.stdin is not None and self._child.stdout is not None
            self._child.kill()
            with contextlib.suppress(BrokenPipeError):
                self._child.stdin.close()
            self._child.stdout.close()
            self._child.wait()
            self._child = None
        if self._stderr is not None:
            self._stderr.close()


def serve_files(format_: Format) -> None:
    """Run in the child process: write one line with the result of each network on the standard input."""
    results = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    # Loading a network first excludes the engine's own memory from the limit.
    black = np.zeros((1, 3, SIDE, SIDE), np.float32)
    start = seeds(format_)[0]
    load_engine(format_, start, threads=1).run(black)
    limit_process(memory_for(sum(map(len, start))), oom_score=1000)
    while line := sys.stdin.buffer.readline():
        files = [sys.stdin.buffer.read(size) for size in json.loads(line)]
        _allow(CPU_S)
        os.write(results, f"{_try(format_, files, black)}\n".encode())


def _try(format_: Format, files: list[bytes], black: np.ndarray) -> str:
    try:
        check_onnx(files[0]) if format_ == "onnx" else check_ir(files[0], files[1])
    except EngineError:
        return "rejected"
    try:
        load_engine(format_, files, threads=1).run(black)
    except MemoryError:
        return "out of memory"
    except EngineError:
        return "rejected by the engine"
    return "ran"


def _allow(seconds: int) -> None:
    """Limit the CPU time from now on. Beyond the limit, the kernel ends the process (SIGXCPU)."""
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + 1 + seconds, most))


def fuzz(format_: Format, count: int, *, seed: int, bundle: Path | None = None) -> Fuzzer:
    """Send ``count`` mutated files through the check and the engine, and return the fuzzer with the results."""
    fuzzer = Fuzzer(format_)
    try:
        for files in mutations(format_, count, seed=seed, bundle=bundle):
            fuzzer.run(files)
    finally:
        fuzzer.close()
    return fuzzer


def main() -> None:
    """Print the number of files by result, after every thousand files, and save the harmful files."""
    name, count, *rest = sys.argv[1:]
    format_: Format = "onnx" if name == "onnx" else "openvino"
    seen: Counter[str] = Counter()
    for seed in range(int(count) // FILES_PER_CHILD):
        found = fuzz(format_, FILES_PER_CHILD, seed=seed, bundle=Path(rest[0]) if rest else None)
        seen += found.seen
        print(format_, seen.total(), dict(seen.most_common()), flush=True)
        for index, (result, files) in enumerate(found.harmful):
            for number, data in enumerate(files):
                path = Path(tempfile.gettempdir(), f"edgetl-fuzz-{format_}-{seed}-{index}-{number}")
                path.write_bytes(data)
                print(result, path, flush=True)


if __name__ == "__main__":
    main()
