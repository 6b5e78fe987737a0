"""Ray clusters of three hosts on this machine (``tests.namespaces``)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType

from tests.namespaces import Hosts

HEAD_PORT = 6379
ROOT = Path(__file__).parents[2]
# Memory of the object store of each host. Scoring tasks return records of some kB.
STORE_BYTES = 80_000_000
# Time until a host of the cluster has joined, seconds.
JOINED_S = 120


class Cluster:
    """Head without CPUs, and two workers, each in a network namespace.

    Args:
        cpus: CPUs of each worker.
    """

    def __init__(self, cpus: int) -> None:
        self._cpus, self._hosts = cpus, Hosts(3)
        self._logs = Path(tempfile.mkdtemp(prefix="edgetl-ray-"))
        self.address = f"{self._hosts.address(0)}:{HEAD_PORT}"

    def __enter__(self) -> Cluster:
        self._hosts.__enter__()
        self._start(0, "--head", f"--port={HEAD_PORT}", "--num-cpus=0", "--include-dashboard=false", f"--temp-dir={self._logs}")
        for number in (1, 2):
            self.start_worker(number)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._hosts.__exit__(kind, error, trace)
        shutil.rmtree(self._logs, ignore_errors=True)

    def start_worker(self, number: int) -> None:
        """Start the worker 1 or 2."""
        self._start(number, f"--address={self.address}", f"--num-cpus={self._cpus}")

    def kill(self, number: int) -> None:
        """Kill all processes of a host."""
        self._hosts.kill(number)

    def run(self, *command: str | Path, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
        """Run a command on the head, and return its result."""
        return subprocess.run(
            self._hosts.command(0, *command), env=_environment(), capture_output=True, text=True, timeout=timeout_s, check=False
        )

    def popen(self, *command: str | Path) -> subprocess.Popen[str]:
        """Start a command on the head."""
        return self._hosts.popen(0, *command, environment=_environment())

    def _start(self, number: int, *options: str) -> None:
        address = f"--node-ip-address={self._hosts.address(number)}"
        start = (sys.executable, "-m", "ray.scripts.scripts", "start", address, f"--object-store-memory={STORE_BYTES}", *options)
        command = self._hosts.command(number, *start)
        started = subprocess.run(command, env=_environment(), capture_output=True, text=True, timeout=JOINED_S, check=False)
        assert started.returncode == 0, started.stdout + started.stderr


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"}
