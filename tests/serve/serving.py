"""A served bundle in a process of its own, and what tests look at in it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from bench.memory import family
from edgetl.core.bundle import Bundle


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Served:
    """``edgetl serve`` in a process of its own, once it is ready.

    Attributes:
        process: of the server, not of its workers.
        address: host and port.
    """

    def __init__(
        self,
        bundles: Sequence[Path],
        *options: str,
        stdout: int | IO[bytes] = subprocess.DEVNULL,
        scheme: str = "http",
        prepare: Callable[[], None] | None = None,
    ) -> None:
        self.port = free_port()
        self.address, self.url = f"127.0.0.1:{self.port}", f"{scheme}://127.0.0.1:{self.port}"
        command = [sys.executable, "-m", "edgetl.cli.app", "serve", *map(str, bundles), "--port", str(self.port), *options]
        if "--variant" not in options:
            command += ["--variant", "onnx-fp32"]
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - closed by stop
        self.process = subprocess.Popen(command, stdout=stdout, stderr=self._said, preexec_fn=prepare)
        self.process_id = self.process.pid

    def wait(self) -> Served:
        """Until requests are answered."""
        for _ in range(600):
            if self.process.poll() is not None:
                raise AssertionError(self.said())
            if "listening on" in self.said():
                return self
            time.sleep(0.05)
        self.process.kill()
        raise AssertionError(f"the server did not become ready: {self.said()}")

    def said(self) -> str:
        """What it wrote on the error stream."""
        self._said.seek(0)
        return self._said.read().decode()

    def workers(self) -> list[int]:
        """The worker processes."""
        return family(self.process_id)[1:]

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels; ``name`` may end in a label such as ``x_total{result="done"``."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((f"{name} ", f"{name}{{", f"{name},", f"{name}}}")))

    def ready(self) -> bool:
        """What the server says of itself."""
        try:
            with urllib.request.urlopen(f"{self.url}/v2/health/ready", timeout=5) as answer:
                return bool(json.load(answer)["ready"])
        except urllib.error.HTTPError as error:
            error.close()
            return False

    def stop(self) -> int:
        """End it by SIGTERM; its exit code."""
        if self.process.poll() is None:
            for worker in self.workers():
                os.kill(worker, signal.SIGCONT)
            self.process.terminate()
        code = self.process.wait(40)
        self._said.close()
        return code


@contextmanager
def serving(*bundles: Path, options: Sequence[str] = (), **more: object) -> Iterator[Served]:
    """A server of ``bundles`` that ends with 0 when the block does."""
    served = Served(bundles, *options, **more)  # type: ignore[arg-type]
    try:
        yield served.wait()
    except BaseException:
        print(served.said())
        served.process.kill()
        served.stop()
        raise
    assert served.stop() == 0


def released(bundle: Bundle, folder: Path, number: int) -> Path:
    """A copy of ``bundle`` as release ``number``, whose labels say so: ``4`` becomes ``4 of 2``."""
    shutil.copytree(bundle.path, folder)
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["release"] = number
    manifest["labels"] = [f"{label} of {number}" for label in manifest["labels"]]
    for golden in manifest["golden"]:
        golden["label"] = f"{golden['label']} of {number}"
    path.write_text(json.dumps(manifest) + "\n")
    return folder


def point(link: Path, target: Path) -> None:
    """Swap a link's target as an update does: at once."""
    fresh = link.with_name(f"{link.name}.new")
    fresh.symlink_to(target)
    fresh.replace(link)


def until(condition: Callable[[], bool], *, seconds: float = 30.0) -> None:
    """Wait for ``condition``."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)
