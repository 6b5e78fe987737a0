"""Ray clusters of three hosts on this machine: network namespaces with a bridge. Needs root, Linux, and the command ``ip``."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType

HEAD_PORT = 6379
ROOT = Path(__file__).parents[2]
# Memory of the object store of each host. Scoring tasks return records of some kB.
STORE_BYTES = 80_000_000
# Time until a host of the cluster has joined, seconds.
JOINED_S = 120


def can_make_namespaces() -> bool:
    """Return true if this process may create network namespaces."""
    if not hasattr(os, "geteuid") or os.geteuid() or not shutil.which("ip"):
        return False
    name = f"edgetl-{os.getpid()}-try"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode == 0
    subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    return made


class Cluster:
    """Head without CPUs, and two workers, each in a network namespace.

    Args:
        cpus: CPUs of each worker.
    """

    def __init__(self, cpus: int) -> None:
        self._cpus, self._name = cpus, f"er{os.getpid() % 100_000}"
        self._logs = Path(tempfile.mkdtemp(prefix="edgetl-ray-"))
        self._network = f"10.{100 + os.getpid() % 100}.{os.getpid() // 100 % 250}"
        self.address = f"{self._network}.1:{HEAD_PORT}"

    def __enter__(self) -> Cluster:
        bridge = f"{self._name}b"
        _ip("link", "add", bridge, "type", "bridge")
        _ip("link", "set", bridge, "up")
        for number in range(3):
            space, link = self._space(number), f"{self._name}v{number}"
            _ip("netns", "add", space)
            _ip("link", "add", link, "type", "veth", "peer", "name", "e0", "netns", space)
            _ip("link", "set", link, "master", bridge, "up")
            _ip("-n", space, "addr", "add", f"{self._network}.{number + 1}/24", "dev", "e0")
            for device in ("e0", "lo"):
                _ip("-n", space, "link", "set", device, "up")
        self._start(0, "--head", f"--port={HEAD_PORT}", "--num-cpus=0", "--include-dashboard=false", f"--temp-dir={self._logs}")
        for number in (1, 2):
            self.start_worker(number)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number in (2, 1, 0):
            self.kill(number)
            _ip("netns", "del", self._space(number))
        _ip("link", "del", f"{self._name}b")
        shutil.rmtree(self._logs, ignore_errors=True)

    def start_worker(self, number: int) -> None:
        """Start the worker 1 or 2."""
        self._start(number, f"--address={self.address}", f"--num-cpus={self._cpus}")

    def kill(self, number: int) -> None:
        """Kill all processes of a host."""
        while found := subprocess.run(
            ["ip", "netns", "pids", self._space(number)], capture_output=True, text=True, check=True
        ).stdout.split():
            for process in found:
                try:
                    os.kill(int(process), signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.05)

    def run(self, *command: str | Path, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
        """Run a command on the head, and return its result."""
        return subprocess.run(
            self._command(0, *command), env=_environment(), capture_output=True, text=True, timeout=timeout_s, check=False
        )

    def popen(self, *command: str | Path) -> subprocess.Popen[str]:
        """Start a command on the head."""
        pipe = subprocess.PIPE
        return subprocess.Popen(self._command(0, *command), env=_environment(), stdout=pipe, stderr=pipe, text=True)

    def _space(self, number: int) -> str:
        return f"{self._name}n{number}"

    def _command(self, number: int, *command: str | Path) -> list[str]:
        return ["ip", "netns", "exec", self._space(number), *map(str, command)]

    def _start(self, number: int, *options: str) -> None:
        address = f"--node-ip-address={self._network}.{number + 1}"
        command = self._command(
            number, sys.executable, "-m", "ray.scripts.scripts", "start", address, f"--object-store-memory={STORE_BYTES}", *options
        )
        started = subprocess.run(command, env=_environment(), capture_output=True, text=True, timeout=JOINED_S, check=False)
        assert started.returncode == 0, started.stdout + started.stderr


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"}


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
