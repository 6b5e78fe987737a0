"""CPU quota and memory limit of Linux control groups (cgroups, versions 1 and 2): the smallest of the process's group and its parents.

Formats: ``cgroups(7)``, ``proc(5)`` (``/proc/PID/cgroup``, ``/proc/PID/mountinfo``) and the kernel's ``cgroup-v2.rst`` (``cpu.max``,
``cpu.stat``, ``memory.max``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Literal

# Version 1 reports about 2^63 bytes for no limit.
_NO_MEMORY_LIMIT = 2**60


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Return the CPU quota of this process in cores, such as 1.5; none without a limit, or outside Linux.

    Args:
        root: root folder of ``/proc`` and the control groups. Tests use another folder.
    """
    limits = [_cpu_limit_v2(folder) if version == 2 else _cpu_limit_v1(folder) for version, folder in _group_folders(root, "cpu")]
    return min((limit for limit in limits if limit is not None), default=None)


def throttled_seconds(root: Path = Path("/")) -> float | None:
    """Return the seconds in which the CPU quota stopped the processes of this group or of its parents; none without a quota.

    Args:
        root: root folder of ``/proc`` and the control groups. Tests use another folder.
    """
    if cpu_quota(root) is None:
        return None
    found = []
    for version, folder in _group_folders(root, "cpu"):
        values = dict(line.split(" ", 1) for line in _read(folder / "cpu.stat").splitlines() if " " in line)
        value, unit = values.get("throttled_usec" if version == 2 else "throttled_time", ""), 1e6 if version == 2 else 1e9
        if value.isdecimal():
            found.append(int(value) / unit)
    return max(found, default=None)


def memory_limit(root: Path = Path("/")) -> int | None:
    """Return the memory limit of this process's control group, bytes; none without a limit, or outside Linux.

    Args:
        root: root folder of ``/proc`` and the control groups. Tests use another folder.
    """
    names = {1: "memory.limit_in_bytes", 2: "memory.max"}
    values = [_read(folder / names[version]) for version, folder in _group_folders(root, "memory")]
    return min((int(value) for value in values if value.isdecimal() and int(value) < _NO_MEMORY_LIMIT), default=None)


def _group_folders(root: Path, controller: str) -> Iterator[tuple[Literal[1, 2], Path]]:
    """Yield the version and the folder of each group that may limit this process: its own groups and their parents."""
    groups = dict(_own_groups(root))
    in_v1 = next((path for names, path in groups.items() if controller in names.split(",")), None)
    for controllers, top, point in _mounts(root):
        group = groups.get("") if controllers is None else in_v1 if controller in controllers else None
        if group is not None:
            yield from ((2 if controllers is None else 1, folder) for folder in _folders(root / point.relative_to("/"), group, top))


def _own_groups(root: Path) -> Iterator[tuple[str, PurePosixPath]]:
    """Yield the controllers (empty for version 2) and the path of each group of this process."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if path.startswith("/"):
            yield controllers, PurePosixPath(path)


def _mounts(root: Path) -> Iterator[tuple[frozenset[str] | None, PurePosixPath, PurePosixPath]]:
    """Yield the mounted hierarchies: controllers (none for version 2), top group and mount point of each."""
    for line in _read(root / "proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        fields, kind = before.split(" "), after.split(" ")
        if len(fields) < 5 or len(kind) < 3 or kind[0] not in ("cgroup", "cgroup2"):
            continue
        top, point = (PurePosixPath(_unescaped(field)) for field in fields[3:5])
        if point.is_absolute():
            yield None if kind[0] == "cgroup2" else frozenset(kind[2].split(",")), top, point


def _folders(point: Path, group: PurePosixPath, top: PurePosixPath) -> Iterator[Path]:
    """Yield the folder of ``group`` below the mount point, and the folders of its parents up to the mount point."""
    # In a container the path may be that of the host, or start with ``..``. The group of the process is then the top of the mount.
    inside = group.relative_to(top).parts if group.is_relative_to(top) and ".." not in group.parts else ()
    for length in range(len(inside), -1, -1):
        yield point.joinpath(*inside[:length])


def _cpu_limit_v2(folder: Path) -> float | None:
    quota, _, period = _read(folder / "cpu.max").partition(" ")
    return _ratio(quota, period)


def _cpu_limit_v1(folder: Path) -> float | None:
    return _ratio(_read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us"))


def _ratio(quota: str, period: str) -> float | None:
    """Return quota per period, both in microseconds; none for ``max`` and -1 (no limit)."""
    if not (quota.isdecimal() and period.isdecimal() and int(period)):
        return None
    return int(quota) / int(period)


def _unescaped(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), field)


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace").strip()
    except (OSError, ValueError):
        return ""
