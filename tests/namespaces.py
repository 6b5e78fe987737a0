"""Hosts on this machine for tests: network namespaces with a bridge. Needs root, Linux, and the command ``ip``."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from types import TracebackType


def can_make_namespaces() -> bool:
    """Return true if this process may create network namespaces."""
    if not hasattr(os, "geteuid") or os.geteuid() or not shutil.which("ip"):
        return False
    name = f"edgetl-{os.getpid()}-try"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode == 0
    subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    return made


class Hosts:
    """Hosts with their own network addresses, connected by a bridge. They share the files and the processors of this machine.

    Args:
        count: number of hosts.
    """

    def __init__(self, count: int) -> None:
        self._count, self._name = count, f"er{os.getpid() % 100_000}"
        self._network = f"10.{100 + os.getpid() % 100}.{os.getpid() // 100 % 250}"

    def __enter__(self) -> Hosts:
        bridge = f"{self._name}b"
        _ip("link", "add", bridge, "type", "bridge")
        _ip("link", "set", bridge, "up")
        for number in range(self._count):
            space, link = self._space(number), f"{self._name}v{number}"
            _ip("netns", "add", space)
            _ip("link", "add", link, "type", "veth", "peer", "name", "e0", "netns", space)
            _ip("link", "set", link, "master", bridge, "up")
            _ip("-n", space, "addr", "add", f"{self.address(number)}/24", "dev", "e0")
            for device in ("e0", "lo"):
                _ip("-n", space, "link", "set", device, "up")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number in reversed(range(self._count)):
            self.kill(number)
            _ip("netns", "del", self._space(number))
        _ip("link", "del", f"{self._name}b")

    def address(self, number: int) -> str:
        """Return the IP address of a host."""
        return f"{self._network}.{number + 1}"

    def popen(self, number: int, *command: object, environment: dict[str, str]) -> subprocess.Popen[str]:
        """Start a command on a host."""
        pipe = subprocess.PIPE
        return subprocess.Popen(self.command(number, *command), env=environment, stdout=pipe, stderr=pipe, text=True)

    def command(self, number: int, *command: object) -> list[str]:
        """Return the command line that runs ``command`` on a host."""
        return ["ip", "netns", "exec", self._space(number), *map(str, command)]

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

    def _space(self, number: int) -> str:
        return f"{self._name}n{number}"


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
