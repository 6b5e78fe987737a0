"""CPU quota of Linux control groups (cgroups, versions 1 and 2): the smallest quota of the process's group and its parents.

Formats: ``cgroups(7)``, ``proc(5)`` (``/proc/PID/cgroup``, ``/proc/PID/mountinfo``) and the kernel's ``cgroup-v2.rst`` (``cpu.max``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Return the CPU quota of this process in cores, such as 1.5; none without a limit, or outside Linux.

    Args:
        root: root folder of ``/proc`` and the control groups. Tests use another folder.
    """
    groups = dict(_own_groups(root))
    in_v1 = next((path for names, path in groups.items() if "cpu" in names.split(",")), None)
    limits: list[float | None] = []
    for controllers, top, point in _mounts(root):
        group, limit = (groups.get(""), _limit_v2) if controllers is None else (in_v1 if "cpu" in controllers else None, _limit_v1)
        if group is not None:
            limits += [limit(folder) for folder in _folders(root / point.relative_to("/"), group, top)]
    return min((limit for limit in limits if limit is not None), default=None)


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


def _limit_v2(folder: Path) -> float | None:
    quota, _, period = _read(folder / "cpu.max").partition(" ")
    return _ratio(quota, period)


def _limit_v1(folder: Path) -> float | None:
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
