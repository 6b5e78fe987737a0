"""systemd: notifications of a service (``sd_notify(3)``) and the unit of a runner (``systemd.service(5)``)."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


class Notifier:
    """Notifications to systemd over its datagram socket. Without systemd they do nothing.

    Args:
        environment: environment variables ``NOTIFY_SOCKET``, ``WATCHDOG_USEC`` and ``WATCHDOG_PID``.

    Attributes:
        watchdog_s: interval after which systemd kills a silent process, seconds; none without a watchdog.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        # An abstract socket has a null byte in place of the @.
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        for_other = environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid())
        interval = environment.get("WATCHDOG_USEC", "")
        self.watchdog_s = int(interval) / 1e6 if self._address and interval.isdecimal() and int(interval) and not for_other else None

    def ready(self, status: str) -> None:
        """Report that the start is complete (``Type=notify``)."""
        self._send(f"READY=1\nSTATUS={status}")

    def alive(self, status: str) -> None:
        """Report a sign of life for the watchdog, and the status that ``systemctl status`` shows."""
        self._send(f"WATCHDOG=1\nSTATUS={status}")

    def stopping(self) -> None:
        """Report that the process is about to end."""
        self._send("STOPPING=1")

    def _send(self, text: str) -> None:
        if not self._address:
            return
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.setblocking(False)  # a full queue of systemd must not stop the runner
            sender.sendto(text.encode(), self._address)


@dataclass(frozen=True)
class UnitPaths:
    """Files and devices that the service uses.

    Attributes:
        writable: folders in which the service creates, deletes or moves files.
        camera: true if the source is a camera of the host.
    """

    writable: tuple[Path, ...]
    camera: bool


def unit(command: Sequence[str], paths: UnitPaths, *, user: str, endless: bool, memory_max_mb: int, after_start: Sequence[str] = ()) -> str:
    """Return the unit of a runner: restart with back-off, watchdog, memory limit and sandbox.

    Args:
        command: program and arguments. Paths are absolute.
        paths: files and devices that the service uses.
        user: user of the service. It needs access to the bundle, the source and the sinks.
        endless: true for a source that does not end, such as a camera. It is then restarted also after a normal end.
        memory_max_mb: memory limit, MB (10^6 bytes).
        after_start: program and arguments to run after the start, within the limits of the service. Its failure is ignored.
    """
    writable = [f"ReadWritePaths={_quoted(str(path))}" for path in paths.writable]
    devices = (
        ["DevicePolicy=closed", "DeviceAllow=char-video4linux rw", "SupplementaryGroups=video"] if paths.camera else ["PrivateDevices=yes"]
    )
    return _UNIT.format(
        command="\n".join([" ".join(map(_quoted, command)), *_after_start(after_start)]),
        user=_quoted(user),
        restart="always" if endless else "on-failure",
        memory=memory_max_mb * 1_000_000,
        access="\n".join([*writable, *devices]),
    )


def _after_start(command: Sequence[str]) -> list[str]:
    """Return the lines that run a command after the start. If memory runs out, the kernel ends only this command."""
    return [f"ExecStartPost=-{' '.join(map(_quoted, command))}", "OOMPolicy=continue"] if command else []


def _quoted(word: str) -> str:
    """Quote a word of a command line of systemd: specifiers, variables, C-style escapes (``systemd.syntax(7)``)."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"' if not escaped or any(character in escaped for character in " \t'\"\\;") else escaped


_UNIT = """\
[Unit]
Description=edgetl run: predict a stream of images
After=network-online.target
Wants=network-online.target
# Restart without a limit. Nobody may be near the device.
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=main
ExecStart={command}
User={user}
Environment=PYTHONDONTWRITEBYTECODE=1
# The waits between restarts grow from 1 s to 60 s (systemd 254; earlier versions ignore the last two lines).
Restart={restart}
RestartSec=1
RestartSteps=6
RestartMaxDelaySec=60
# The runner sends a sign of life at least every 20 s. A process that hangs is killed and restarted.
WatchdogSec=60
TimeoutStartSec=300
TimeoutStopSec=30
MemoryMax={memory}
TasksMax=128
LimitCORE=0

# Sandbox
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=read-only
PrivateTmp=yes
ProtectProc=invisible
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
CapabilityBoundingSet=
AmbientCapabilities=
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM
UMask=0027
{access}

[Install]
WantedBy=multi-user.target
"""
