"""Errors of the disk during an installation: the old release stays active, with a clear error and without temporary files."""

from __future__ import annotations

import builtins
import errno
import json
import os
import resource
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgetl.core.store import active_release, starts
from edgetl.core.store.state import Probation
from edgetl.device.store.cleanup import clean
from edgetl.device.store.install import install
from edgetl.device.store.status import confirm, read_status, roll_back
from edgetl.errors import StorageError
from tests.device.bundles import add_release, pass_self_test, release_in_use, write_bundle
from tests.disks import fill, small_disk


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgetl.device.store.install.self_test", pass_self_test)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    root = tmp_path_factory.mktemp("bundles")
    small = {number: write_bundle(root / str(number), number) for number in (1, 2)}
    return {**small, 3: write_bundle(root / "3", 3, note="x" * 900_000)}


@pytest.fixture
def store(tmp_path: Path, bundles: dict[int, Path]) -> Path:
    """Store with the confirmed release 1."""
    add_release(tmp_path / "store", bundles[1])
    return tmp_path / "store"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """File system with 1.5 MB of space."""
    with small_disk(tmp_path / "disk", "1536k") as disk:
        yield disk


def _unchanged(store: Path) -> None:
    assert release_in_use(store) == 1
    names = [path.name for path in (store / "releases").iterdir()]
    assert names == [active_release(store).id]


def test_too_little_space_is_an_error_before_anything_is_written(disk: Path, bundles: dict[int, Path]) -> None:  # D3
    add_release(disk / "store", bundles[1])
    with pytest.raises(StorageError, match=r"has 1\.\d MB of free space, and the installation needs 1\.9 MB"):
        install(str(bundles[3]), disk / "store")
    _unchanged(disk / "store")


def test_a_disk_that_fills_up_leaves_the_old_release(disk: Path, bundles: dict[int, Path], monkeypatch: pytest.MonkeyPatch) -> None:  # D3
    add_release(disk / "store", bundles[1])
    monkeypatch.setattr("edgetl.device.store.install.check_space", lambda *_: None)
    (disk / "other").write_bytes(bytes(900_000))
    with pytest.raises(StorageError, match="No space left on device"):
        install(str(bundles[3]), disk / "store")
    _unchanged(disk / "store")
    (disk / "other").unlink()
    install(str(bundles[3]), disk / "store")
    assert release_in_use(disk / "store") == 3


@pytest.mark.parametrize("probation", [None, Probation()], ids=["confirmed", "in probation"])
def test_changes_of_the_state_on_a_full_disk_are_errors(disk: Path, bundles: dict[int, Path], probation: Probation | None) -> None:  # D3
    store = disk / "store"
    add_release(store, bundles[1])
    add_release(store, bundles[2], probation=probation)
    filler = fill(disk)
    before = (store / "state.json").read_bytes()
    for change in (roll_back, *([confirm] if probation else [])):
        with pytest.raises(StorageError, match="No space left on device"):
            change(store)
        assert (store / "state.json").read_bytes() == before
        assert release_in_use(store) == 2
    filler.unlink()
    assert (confirm if probation else roll_back)(store).state == "confirmed"


def test_a_cleanup_of_a_full_disk_needs_no_space(disk: Path, bundles: dict[int, Path]) -> None:  # D3
    for number in (1, 2):
        add_release(disk / "store", bundles[number])
    filler = fill(disk)
    found = clean(disk / "store", keep=1)
    assert (len(found.removed), found.kept) == (1, 1)
    assert read_status(disk / "store").damaged == ()
    assert release_in_use(disk / "store") == 2
    filler.unlink()


def test_a_cleanup_keeps_all_releases_after_another_error(store: Path, bundles: dict[int, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    add_release(store, bundles[2])

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", fail)
        with pytest.raises(StorageError, match="Input/output error"):
            clean(store, keep=1)
    assert read_status(store).damaged == ()
    assert roll_back(store).active == active_release(store).record


def test_an_unconfirmed_release_on_a_full_disk_is_not_started(disk: Path, bundles: dict[int, Path]) -> None:
    add_release(disk / "store", bundles[1])
    add_release(disk / "store", bundles[2], probation=Probation())
    (disk / "store/starts").mkdir()
    fill(disk)
    assert release_in_use(disk / "store") in (1, 2)


@pytest.mark.parametrize("confirmed", [True, False])
def test_a_store_on_a_read_only_file_system_is_read(disk: Path, bundles: dict[int, Path], confirmed: bool) -> None:  # D3
    add_release(disk / "store", bundles[1])
    add_release(disk / "store", bundles[2], probation=None if confirmed else Probation())
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    # An unconfirmed release could not be rolled back after a crash.
    assert release_in_use(disk / "store") == (2 if confirmed else 1)
    assert active_release(disk / "store").record.release == 2
    assert read_status(disk / "store").damaged == ()
    for change in (confirm, roll_back, clean, lambda store: install(str(bundles[3]), store)):
        if change is confirm and confirmed:
            continue
        with pytest.raises(StorageError, match="Read-only file system"):
            change(disk / "store")


def test_a_single_unconfirmed_release_is_used_on_a_read_only_file_system(disk: Path, bundles: dict[int, Path]) -> None:
    add_release(disk / "store", bundles[1], probation=Probation())
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    assert not next(starts(disk / "store")).observed
    assert release_in_use(disk / "store") == 1


CALLS = {"open": (builtins, "open"), "mkdir": (os, "mkdir"), "fsync": (os, "fsync"), "rename": (os, "rename"), "replace": (os, "replace")}


@pytest.mark.parametrize(
    ("call", "code"),
    [*((call, errno.EIO) for call in CALLS), ("open", errno.EDQUOT), ("open", errno.EMFILE), ("mkdir", errno.ENOSPC)],
)
def test_an_error_of_each_call_leaves_the_old_release(
    store: Path, bundles: dict[int, Path], monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:  # D3
    module, name = CALLS[call]
    original = getattr(module, name)

    def fail_at(number: int) -> bool:
        count = 0

        def run(path: Any, *arguments: Any, **options: Any) -> Any:
            nonlocal count
            writes = call != "open" or any(letter in str(arguments[:1]) for letter in "wxa")
            count += writes
            if writes and count == number:
                raise OSError(code, os.strerror(code), str(path))
            return original(path, *arguments, **options)

        with monkeypatch.context() as patched:
            patched.setattr(module, name, run)
            try:
                install(str(bundles[2]), store)
            except StorageError as error:
                assert os.strerror(code) in str(error)
        return count >= number

    number = 1
    while fail_at(number):
        assert release_in_use(store) in (1, 2)
        names = [path.name for path in (store / "releases").iterdir()]
        assert not any(item.startswith(".") for item in names)
        shutil.rmtree(store)
        add_release(store, bundles[1])
        number += 1
    assert number > 1


def test_too_few_descriptors_are_a_clear_error(store: Path, bundles: dict[int, Path]) -> None:  # D3
    code = (
        "import resource, sys\nfrom pathlib import Path\nimport edgetl\nfrom edgetl.device.store.install import install\n"
        "from edgetl.errors import EdgetlError\n"
        "import os\nopened = len(os.listdir('/proc/self/fd'))\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (opened, opened))\n"
        "try:\n    install(sys.argv[1], Path(sys.argv[2]))\nexcept EdgetlError as error:\n    print(type(error).__name__, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(bundles[2]), str(store)], capture_output=True, text=True, check=False)
    assert "Too many open files" in done.stdout, done.stderr
    _unchanged(store)
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 20


BARE = """
os.chdir(sys.argv[1]); os.rmdir(sys.argv.pop(1))  # remove the current folder
os.umask(0o077)
from edgetl.cli.app import main
for command in json.load(sys.stdin):
    try:
        main(command)
    except SystemExit as end:
        print(command[0], end.code or 0, file=sys.stderr)
"""


def test_a_store_needs_no_home_no_current_folder_and_no_folder_for_temporary_files(tmp_path: Path, bundles: dict[int, Path]) -> None:  # A33
    """The process also has a strict umask, and the store an unusual name."""
    store = str(tmp_path / " a b\n[é]*漢 ")
    names = ["install", "confirm", "install", "rollback", "gc", "status"]
    bundles_of = iter((bundles[1], bundles[2]))
    commands = [[name, *([str(next(bundles_of))] if name == "install" else []), "--store", store] for name in names]
    (tmp_path / "here").mkdir()
    environment = {"PATH": os.environ["PATH"], "TMPDIR": "/nonexistent"}
    code = f"import json, os, sys\nsys.path[:] = json.loads(sys.argv.pop(1))\n{BARE}"
    command = [sys.executable, "-c", code, json.dumps([path for path in sys.path if path]), str(tmp_path / "here")]
    done = subprocess.run(command, input=json.dumps(commands), capture_output=True, text=True, check=False, env=environment)
    ended = [line for line in done.stderr.splitlines() if line.split()[0] in names]
    assert ended == [f"{name} 0" for name in names], done.stderr
    assert release_in_use(Path(store)) == 1
    assert all(stat.S_IMODE(path.stat().st_mode) & 0o077 == 0 for path in Path(store).rglob("*"))
