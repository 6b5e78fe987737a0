"""Platform differences, tested without the functions that macOS and Windows do not have."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgetl.core.files import platforms as portable
from edgetl.core.files.atomic import write_bytes
from edgetl.core.files.regular import open_plain, read_plain
from edgetl.core.output.folders import new_folder

# Functions and constants that Windows does not have. They are removed before edgetl is imported.
WITHOUT = """
import os, signal, sys
for name in ("posix_fallocate", "O_NOFOLLOW", "O_NONBLOCK", "O_DIRECTORY", "sched_getaffinity", "getloadavg"):
    if hasattr(os, name):
        delattr(os, name)
for name in ("SIGALRM", "alarm", "SIGHUP"):
    if hasattr(signal, name):
        delattr(signal, name)
"""


def run_without(code: str, folder: Path) -> str:
    done = subprocess.run([sys.executable, "-c", WITHOUT + code], capture_output=True, text=True, cwd=folder, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_folders_files_and_locks_work_without_linux_functions(tmp_path: Path) -> None:
    run_without(
        "from pathlib import Path\n"
        "from edgetl.core.output.folders import new_folder\n"
        "from edgetl.core.files.atomic import write_text\n"
        "with new_folder(Path('out')) as staging: write_text(staging / 'a.txt', 'whole')\n",
        tmp_path,
    )
    assert (tmp_path / "out" / "a.txt").read_text() == "whole"


def test_the_commands_are_imported_without_linux_functions(tmp_path: Path) -> None:
    out = run_without(
        "from edgetl.cli.app import main\nimport edgetl.measure.cold_start, edgetl.runtime.trial\nmain(['--version'])\n", tmp_path
    )
    assert out.startswith("edgetl ")


def test_reserve_space_works_without_posix_fallocate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    path = tmp_path / "map.npy"
    with path.open("w+b") as file:
        portable.reserve_space(file, 3_000_001)
    assert path.stat().st_size == 3_000_001


def test_flush_uses_writable_files_and_no_folders_on_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[int] = []
    plain_open = os.open

    def windows_open(path: str | Path, flags: int, mode: int = 0o777) -> int:
        if Path(path).is_dir():
            raise PermissionError(13, "Permission denied", str(path))
        opened.append(flags)
        return plain_open(path, flags, mode)

    monkeypatch.setattr(portable, "WINDOWS", True)
    monkeypatch.setattr(os, "open", windows_open)
    write_bytes(tmp_path / "a.bin", b"x")
    portable.flush_file(tmp_path / "a.bin")
    assert opened[-1] & os.O_RDWR
    with new_folder(tmp_path / "out") as staging:
        (staging / "a.txt").touch()
    assert (tmp_path / "out" / "a.txt").is_file()


def test_process_runs_sends_no_signal_on_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(portable, "WINDOWS", True)
    monkeypatch.setattr(os, "kill", lambda *_: pytest.fail("signal 0 ends a process on Windows"))
    assert not portable.process_runs(os.getpid())


def test_process_runs_finds_a_process_by_its_number() -> None:
    assert portable.process_runs(os.getpid())
    assert not portable.process_runs(2**22)
    assert not portable.process_runs(10**30)


def test_a_link_is_an_error_without_o_nofollow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "O_NOFOLLOW", raising=False)
    (tmp_path / "real").write_text("x")
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(OSError, match="not a regular file"):
        open_plain(tmp_path / "link", follow_links=False)
    assert read_plain(tmp_path / "link") == b"x"


def test_a_file_system_without_locks_counts_as_unlocked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.lockf", refuse)
    with new_folder(tmp_path / "out"):
        pass
    assert (tmp_path / "out").is_dir()


def test_peak_memory_is_reported_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    assert portable.peak_memory_bytes() > 1_000_000
    monkeypatch.setattr("builtins.open", _no_proc)
    assert portable.peak_memory_bytes() > 1_000_000


def _no_proc(*_: object, **__: object) -> None:
    raise FileNotFoundError(2, "No such file or directory")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs")
def test_a_fifo_a_device_and_a_folder_are_not_regular_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path(os.devnull), tmp_path):
        with pytest.raises(OSError, match="not a regular file"):
            read_plain(path)


def test_a_file_above_the_limit_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    assert read_plain(tmp_path / "a", max_bytes=5) == b"12345"
    with pytest.raises(OSError, match="more than 4 bytes"):
        read_plain(tmp_path / "a", max_bytes=4)
