"""Test server: ``edgetl serve`` in a subprocess, with access to its logs, workers and metrics."""

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

TOKEN = "a-token-of-some-length"
# Time limit of waits, seconds. It only ends a test that hangs.
LIMIT_S = 900.0

_reserved: list[socket.socket] = []


def _reserve_port(host: str = "127.0.0.1") -> socket.socket:
    """Return a bound socket that does not listen.

    No other process gets its port. A server can bind the port too, because both set ``SO_REUSEADDR``.
    """
    reservation = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reservation.bind((host, 0))
    return reservation


def free_port() -> int:
    """Return a port that stays reserved until the tests end."""
    _reserved.append(_reserve_port())
    return int(_reserved[-1].getsockname()[1])


class Served:
    """Server process of ``edgetl serve``.

    Attributes:
        process: the server process, not its workers.
        port: TCP port on ``host``.
        address: host and port.
        url: URL of the server.
    """

    def __init__(
        self,
        bundles: Sequence[Path],
        *options: str,
        stdout: int | IO[bytes] | None = None,
        host: str = "127.0.0.1",
        scheme: str = "http",
        prepare: Callable[[], None] | None = None,
    ) -> None:
        self._reservation = _reserve_port(host)
        self.port = int(self._reservation.getsockname()[1])
        self.address = f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"
        self.url = f"{scheme}://{self.address}"
        command = [sys.executable, "-m", "edgetl.cli.app", "serve", *map(str, bundles), "--host", host, "--port", str(self.port), *options]
        if "--variant" not in options:
            command += ["--variant", "onnx-fp32"]
        self._stdout, self._stderr = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115 - stop() closes them
        self.process = subprocess.Popen(command, stdout=self._stdout if stdout is None else stdout, stderr=self._stderr, preexec_fn=prepare)
        self.process_id = self.process.pid

    def wait(self) -> Served:
        """Wait until the server accepts requests."""
        until(lambda: self.process.poll() is not None or "listening on" in self.log())
        if self.process.poll() is not None:
            raise AssertionError(self.log())
        return self

    def log(self) -> str:
        """Return the standard error of the server."""
        self._stderr.seek(0)
        return self._stderr.read().decode()

    def access_log(self) -> list[str]:
        """Return the lines of the standard output of the server."""
        self._stdout.seek(0)
        return self._stdout.read().decode("ascii").splitlines()

    def workers(self) -> list[int]:
        """Return the process ids of the workers."""
        return family(self.process_id)[1:]

    def signal_workers(self, number: signal.Signals) -> None:
        """Send a signal to all workers."""
        for worker in self.workers():
            os.kill(worker, number)

    def metric(self, name: str) -> float:
        """Return the sum of a metric over its labels. ``name`` may end with a label, as in ``x_total{result="done"``."""
        with urllib.request.urlopen(f"{self.url}/metrics") as response:
            lines = response.read().decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((f"{name} ", f"{name}{{", f"{name},", f"{name}}}")))

    def ready(self) -> bool:
        """Return the readiness of the server."""
        try:
            with urllib.request.urlopen(f"{self.url}/v2/health/ready") as response:
                return bool(json.load(response)["ready"])
        except urllib.error.HTTPError as error:
            error.close()
            return False

    def stop(self) -> int:
        """Stop the server with SIGTERM, and return its exit code."""
        if self.process.poll() is None:
            self.signal_workers(signal.SIGCONT)
            self.process.terminate()
        code = self.process.wait()
        for opened in (self._stdout, self._stderr, self._reservation):
            opened.close()
        return code


@contextmanager
def serving(*bundles: Path, options: Sequence[str] = (), **more: object) -> Iterator[Served]:
    """Serve bundles during the block. The server must then end with exit code 0."""
    served = Served(bundles, *options, **more)  # type: ignore[arg-type]
    try:
        yield served.wait()
    except BaseException:
        print(served.log())
        served.process.kill()
        served.stop()
        raise
    assert served.stop() == 0


def with_release(bundle: Bundle, folder: Path, number: int) -> Path:
    """Copy a bundle to ``folder`` as release ``number``, and change its labels: ``4`` becomes ``4 of 2``."""
    shutil.copytree(bundle.path, folder)
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["release"] = number
    manifest["labels"] = [f"{label} of {number}" for label in manifest["labels"]]
    manifest["reference"] = None  # it has the labels of the export
    for golden in manifest["golden"]:
        golden["label"] = f"{golden['label']} of {number}"
    path.write_text(json.dumps(manifest) + "\n")
    return folder


def point(link: Path, target: Path) -> None:
    """Replace a symbolic link atomically."""
    fresh = link.with_name(f"{link.name}.new")
    fresh.symlink_to(target)
    fresh.replace(link)


def until(condition: Callable[[], bool]) -> None:
    """Wait until ``condition`` returns true."""
    end = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < end, f"the condition is still false after {LIMIT_S:g} s"
        time.sleep(0.02)
