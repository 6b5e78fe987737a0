"""Atomic output folders: errors, SIGKILL, and a full disk."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from edgetl.core.files.atomic import STAGING_MARK, write_bytes
from edgetl.core.output.folders import locked_folder, new_folder
from edgetl.core.output.ownership import LOCK_MARK, REPLACED_MARK
from edgetl.errors import ConfigError, StorageError

VICTIM = """
import os, signal, sys
from pathlib import Path
from edgetl.core.output.folders import new_folder
with new_folder(Path(sys.argv[1]), overwrite=True) as staging:
    (staging / "half.txt").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write_own(folder: Path, *files: str) -> Path:
    """Write a folder of edgetl: ``files``, and a run record that lists them."""
    folder.mkdir(parents=True, exist_ok=True)
    record: dict[str, object] = {key: {} for key in ("labels", "config", "backbone", "preprocess")}
    for name in files:
        (folder / name).touch()
    (folder / "run.json").write_text(json.dumps({"schema_version": 1, **record, "files": dict.fromkeys(files, "")}))
    return folder


def kill_inside_new_folder(target: Path) -> None:
    done = subprocess.run([sys.executable, "-c", VICTIM, str(target)], check=False)
    assert done.returncode == -signal.SIGKILL


# --- folders ---------------------------------------------------------------------------------------------------------------------


def test_the_folder_exists_only_after_the_block(tmp_path: Path) -> None:
    with new_folder(tmp_path / "out") as staging:
        (staging / "sub").mkdir()
        (staging / "sub" / "a.txt").write_text("a")
        assert not (tmp_path / "out").exists()
    assert (tmp_path / "out" / "sub" / "a.txt").read_text() == "a"
    assert names(tmp_path) == ["out"]


def test_the_staging_folder_is_next_to_the_target(tmp_path: Path) -> None:
    with new_folder(tmp_path / "out") as staging:
        assert staging.parent.parent == tmp_path and staging.parent.name.startswith(STAGING_MARK)


def test_parents_of_the_target_are_created(tmp_path: Path) -> None:
    with new_folder(tmp_path / "a" / "b" / "c") as staging:
        (staging / "x").touch()
    assert names(tmp_path / "a" / "b") == ["c"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, ConfigError])
def test_an_error_in_the_block_leaves_no_files(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error, match="stop"), new_folder(tmp_path / "out") as staging:
        (staging / "a.txt").write_text("half")
        raise error("stop")
    assert names(tmp_path) == []


def test_an_existing_folder_is_an_error_without_overwrite(tmp_path: Path) -> None:
    write_own(tmp_path / "out", "old.txt")
    with pytest.raises(ConfigError, match=r"/out exists already.*--overwrite"), new_folder(tmp_path / "out"):
        pytest.fail("the block ran")
    assert names(tmp_path / "out") == ["old.txt", "run.json"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_at_the_path_is_an_error_and_is_kept(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "out").write_text("precious")
    with pytest.raises(ConfigError, match=r"/out (is a file|exists already)"), new_folder(tmp_path / "out", overwrite=overwrite):
        pytest.fail("the block ran")
    assert (tmp_path / "out").read_text() == "precious"


def test_overwrite_replaces_the_whole_folder(tmp_path: Path) -> None:
    for name in ("old.txt", "new.txt"):
        with new_folder(tmp_path / "out", overwrite=True) as staging:
            write_own(staging, name)
    assert names(tmp_path / "out") == ["new.txt", "run.json"]
    assert names(tmp_path) == ["out"]


def test_overwrite_keeps_the_old_folder_when_the_block_raises(tmp_path: Path) -> None:
    write_own(tmp_path / "out", "old.txt")
    with pytest.raises(ValueError, match="stop"), new_folder(tmp_path / "out", overwrite=True) as staging:
        (staging / "new.txt").touch()
        raise ValueError("stop")
    assert names(tmp_path / "out") == ["old.txt", "run.json"]
    assert names(tmp_path) == ["out"]


def test_overwrite_restores_the_old_folder_if_the_rename_fails(tmp_path: Path) -> None:
    write_own(tmp_path / "out", "old.txt")
    with pytest.raises(StorageError, match=r"cannot write .*/out: No such file"), new_folder(tmp_path / "out", overwrite=True) as staging:
        staging.rmdir()
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["old.txt", "run.json"]


def test_a_created_folder_that_stays_empty_is_removed(tmp_path: Path) -> None:
    (tmp_path / "given").mkdir()
    for name in ("given", "new", "filled"):
        with pytest.raises(ValueError, match="x"), locked_folder(tmp_path / name):
            if name == "filled":
                (tmp_path / name / "checkpoint").touch()
            raise ValueError("x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["filled", "given"]


def test_a_failed_write_in_the_block_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot write .*/out: No such file"), new_folder(tmp_path / "out") as staging:
        (staging / "missing" / "a.txt").write_text("x")
    assert names(tmp_path) == []


def test_a_parent_that_is_a_file_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"cannot write .*/file/out"), new_folder(tmp_path / "file" / "out"):
        pytest.fail("the block ran")


def test_a_full_disk_leaves_no_files(small_disk: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot write .*/out: No space left on device"), new_folder(small_disk / "out") as staging:
        (staging / "first.bin").write_bytes(b"1" * 400_000)
        (staging / "second.bin").write_bytes(b"2" * 3_000_000)
    assert names(small_disk) == []


def test_a_full_disk_keeps_the_old_folder(small_disk: Path) -> None:
    write_own(small_disk / "out", "old.bin")
    (small_disk / "out" / "old.bin").write_bytes(b"0" * 400_000)
    with pytest.raises(StorageError, match="No space left on device"), new_folder(small_disk / "out", overwrite=True) as staging:
        write_bytes(staging / "new.bin", b"1" * 3_000_000)
    assert names(small_disk) == ["out"]
    assert (small_disk / "out" / "old.bin").stat().st_size == 400_000


# --- killed processes ------------------------------------------------------------------------------------------------------------


def test_a_process_killed_inside_the_block_leaves_no_target(tmp_path: Path) -> None:
    kill_inside_new_folder(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert [name.startswith((STAGING_MARK, LOCK_MARK)) for name in names(tmp_path)] == [True, True]


def test_the_next_call_removes_the_files_of_a_killed_process(tmp_path: Path) -> None:
    kill_inside_new_folder(tmp_path / "out")
    with new_folder(tmp_path / "out") as staging:
        assert names(staging) == []
        (staging / "whole.txt").touch()
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["whole.txt"]


def test_a_process_killed_while_replacing_a_folder_keeps_the_old_folder(tmp_path: Path) -> None:
    write_own(tmp_path / "out", "old.txt")
    kill_inside_new_folder(tmp_path / "out")
    assert names(tmp_path / "out") == ["old.txt", "run.json"]


def test_files_of_a_running_process_are_kept(tmp_path: Path) -> None:
    other = tmp_path / f"{STAGING_MARK}{os.getppid()}-out"
    other.mkdir()
    with new_folder(tmp_path / "out"):
        pass
    assert other.is_dir()


def test_files_of_a_killed_process_for_another_target_are_kept(tmp_path: Path) -> None:
    kill_inside_new_folder(tmp_path / "first")
    left = names(tmp_path)
    with new_folder(tmp_path / "second"):
        pass
    assert names(tmp_path) == [*left, "second"]


def test_a_replaced_folder_of_a_killed_process_is_restored(tmp_path: Path) -> None:
    # The state between the two renames of a replacement; process 2**22 cannot run (Linux: pid_max is at most 2**22).
    aside = tmp_path / f"{REPLACED_MARK}{2**22}-out"
    write_own(aside, "old.txt")
    with pytest.raises(ValueError, match="stop"), new_folder(tmp_path / "out", overwrite=True):
        raise ValueError("stop")
    assert names(tmp_path / "out") == ["old.txt", "run.json"]
    assert names(tmp_path) == ["out"]


def test_a_replaced_folder_of_a_killed_process_is_removed_if_the_new_one_exists(tmp_path: Path) -> None:
    (tmp_path / f"{REPLACED_MARK}{2**22}-out").mkdir()
    (tmp_path / "out").mkdir()
    with new_folder(tmp_path / "out", overwrite=True) as staging:
        (staging / "new.txt").touch()
    assert names(tmp_path) == ["out"]


def test_temporary_folders_of_another_target_are_kept(tmp_path: Path) -> None:
    for name in (f"{REPLACED_MARK}{2**22}-a-b", f"{STAGING_MARK}{2**22}-my-old-b"):
        (tmp_path / name).mkdir()
    with new_folder(tmp_path / "b") as staging:
        (staging / "new").touch()
    assert names(tmp_path) == sorted([f"{REPLACED_MARK}{2**22}-a-b", f"{STAGING_MARK}{2**22}-my-old-b", "b"])


def test_a_restored_folder_is_not_replaced_without_overwrite(tmp_path: Path) -> None:
    (tmp_path / f"{REPLACED_MARK}{2**22}-z").mkdir()
    with pytest.raises(ConfigError, match="--overwrite"), new_folder(tmp_path / "z"):
        pass
    assert names(tmp_path) == ["z"]


def test_an_incomplete_folder_never_becomes_the_target(tmp_path: Path) -> None:
    (tmp_path / f"{STAGING_MARK}{2**22}-my-old-run").mkdir()
    with pytest.raises(ConfigError, match="stop"), new_folder(tmp_path / "my-old-run"):
        raise ConfigError("stop")
    assert names(tmp_path) == []


def test_the_current_folder_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="has no folder name"), new_folder(Path(), overwrite=True):
        pass
