"""Small file systems in a folder of the test. They are removed at its end, also if the process of the tests is killed."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

# Waits for the end of its standard input: the test closes it, or the system does so when the process of the tests ends.
_REMOVE = 'cat > /dev/null; exec umount --lazy "$0"'


@contextmanager
def mounted(folder: Path, *arguments: object, reason: str = "mounting a small file system needs root on Linux") -> Iterator[Path]:
    """Mount a file system at ``folder`` with ``mount ARGUMENTS FOLDER``. The test is skipped for ``reason`` if that is impossible."""
    folder.mkdir(exist_ok=True)
    command = ["mount", *map(str, arguments), str(folder)]
    if not shutil.which("mount") or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip(reason)
    with subprocess.Popen(["sh", "-c", _REMOVE, str(folder)], stdin=subprocess.PIPE, start_new_session=True) as remover:
        try:
            yield folder
        finally:
            remover.communicate()
            assert remover.returncode == 0


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """Mount a file system of ``size``, such as ``1m``, whose content is in memory."""
    with mounted(folder, "-t", "tmpfs", "-o", f"size={size}", "tmpfs"):
        yield folder


def fill(disk: Path) -> Path:
    """Fill a disk with a file, and return its path."""
    status = os.statvfs(disk)
    (disk / "filler").write_bytes(bytes(status.f_bavail * status.f_frsize))
    return disk / "filler"
