"""CPU quota of control groups: simulated files of both versions, and real groups where the system allows it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgetl.core.system.cgroup import cpu_quota, memory_limit

V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "31 23 0:28 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n" + (
    "32 23 0:29 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
)


def machine(root: Path, groups: str, mounts: str, files: dict[str, str]) -> Path:
    """Write a root folder with ``/proc/self`` and the files of control groups in ``/sys/fs/cgroup``."""
    contents = {"proc/self/cgroup": groups, "proc/self/mountinfo": mounts} | {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    for name, text in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("groups", "mounts", "files", "expected"),
    [
        ("0::/\n", V2, {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/\n", V2, {"cpu.max": "max 100000\n"}, None),
        ("0::/a.slice/b.service\n", V2, {"a.slice/b.service/cpu.max": "400000 100000", "a.slice/cpu.max": "max 100000"}, 4.0),
        ("0::/a.slice/b.service\n", V2, {"a.slice/b.service/cpu.max": "400000 100000", "a.slice/cpu.max": "50000 100000"}, 0.5),
        ("0::/a/b/c\n", V2, {"a/cpu.max": "200000 100000"}, 2.0),
        ("0::/../../other\n", V2, {"cpu.max": "300000 100000"}, 3.0),
        (
            "4:cpu,cpuacct:/box\n3:memory:/m\n",
            V1,
            {"cpu,cpuacct/box/cpu.cfs_quota_us": "250000", "cpu,cpuacct/box/cpu.cfs_period_us": "100000"},
            2.5,
        ),
        ("4:cpu,cpuacct:/box\n", V1, {"cpu,cpuacct/box/cpu.cfs_quota_us": "-1", "cpu,cpuacct/box/cpu.cfs_period_us": "100000"}, None),
        ("4:cpu,cpuacct:/a/b\n", V1, {"cpu,cpuacct/a/cpu.cfs_quota_us": "100000", "cpu,cpuacct/a/cpu.cfs_period_us": "50000"}, 2.0),
        # Docker, version 1: the path is that of the host, and the mount point is the container's group.
        (
            "4:cpu:/docker/abc\n",
            "31 23 0:28 /docker/abc /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n",
            {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"},
            1.0,
        ),
        # Both versions are mounted. The CPU controller and its quota are in version 1.
        (
            "4:cpu:/x\n0::/x\n",
            V1.replace("/cpu,cpuacct rw", "/cpu rw") + V2.replace("/cgroup rw", "/cgroup/unified rw"),
            {"cpu/x/cpu.cfs_quota_us": "100000", "cpu/x/cpu.cfs_period_us": "100000"},
            1.0,
        ),
        (
            "0::/with space\n",
            "30 23 0:26 / /sys/fs/cgroup/a\\040b rw - cgroup2 cgroup2 rw\n",
            {"a b/with space/cpu.max": "100000 100000"},
            1.0,
        ),
        ("nonsense\n", "30 nonsense\n", {}, None),
        ("0::/\n", V2, {"cpu.max": "100000 0\n"}, None),
    ],
)
def test_cpu_quota_is_the_smallest_of_the_group_and_its_parents(
    tmp_path: Path, groups: str, mounts: str, files: dict[str, str], expected: float | None
) -> None:
    assert cpu_quota(machine(tmp_path, groups, mounts, files)) == expected


@pytest.mark.parametrize(
    ("groups", "mounts", "files", "expected"),
    [
        ("0::/a/b\n", V2, {"a/b/memory.max": "max\n", "a/memory.max": "536870912\n"}, 536870912),
        ("0::/a\n", V2, {"a/memory.max": "1000\n", "memory.max": "2000\n"}, 1000),
        ("3:memory:/m\n", V1, {"memory/m/memory.limit_in_bytes": "268435456"}, 268435456),
        ("3:memory:/m\n", V1, {"memory/m/memory.limit_in_bytes": "9223372036854771712"}, None),
        ("0::/\n", V2, {}, None),
    ],
)
def test_memory_limit_is_the_smallest_of_the_group_and_its_parents(
    tmp_path: Path, groups: str, mounts: str, files: dict[str, str], expected: int | None
) -> None:
    assert memory_limit(machine(tmp_path, groups, mounts, files)) == expected


def test_a_system_without_control_groups_has_no_quota(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path) is None and memory_limit(tmp_path) is None


@pytest.fixture(params=["version 1", "version 2"])
def real_group(request: pytest.FixtureRequest) -> Iterator[Path]:
    """Real control group without a quota, inside a group with a quota of half a core."""
    first = request.param == "version 1"
    top = Path("/sys/fs/cgroup/cpu" if first else "/sys/fs/cgroup")
    outer = top / f"edgetl-test-{os.getpid()}"
    if not (top / ("cpu.cfs_quota_us" if first else "cgroup.controllers")).exists():
        pytest.skip(f"control groups of {request.param} are not mounted at {top}")
    try:
        (outer / "inner").mkdir(parents=True)
        (outer / ("cpu.cfs_quota_us" if first else "cpu.max")).write_text("50000" if first else "50000 100000")
        yield outer / "inner"
    except OSError as error:
        pytest.skip(f"a control group cannot be created: {error}")
    finally:
        for folder in (outer / "inner", outer):
            if folder.exists():
                folder.rmdir()


def test_a_quota_of_half_a_core_gives_one_available_core(real_group: Path) -> None:
    code = (
        "import os, sys, pathlib; pathlib.Path(sys.argv[1]).write_text(str(os.getpid())); "
        "from edgetl.core.system.cgroup import cpu_quota; from edgetl.core.system.host import available_cores; "
        "print(cpu_quota(), available_cores())"
    )
    done = subprocess.run([sys.executable, "-c", code, str(real_group / "cgroup.procs")], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0.5", "1"]
