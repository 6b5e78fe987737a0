"""Output folders never replace files of the user: replacement, errors, and two processes with the same target."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from edgetl.core.files.atomic import STAGING_MARK
from edgetl.core.output.folders import check_chart, check_output, new_folder, remove_side_folder, reserved, write_chart
from edgetl.core.output.locks import locked
from edgetl.core.output.ownership import LOCK_MARK, REPLACED_MARK, foreign_files
from edgetl.errors import ConfigError, StorageError
from tests.core.test_core_output import names, write_own

DEAD = 2**22  # no process can have this number (Linux: pid_max is at most 2**22)


def tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Folder of a user: images, a run, documents, and a link to the images."""
    for name in ("images/cat/1.png", "images/dog/1.png", "documents/thesis.tex"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    write_own(tmp_path / "run", "weights.safetensors")
    (tmp_path / "link").symlink_to("images")
    return tmp_path


# --- twelve combinations of an output and inputs -----------------------------------------------------------------------------------

COMBINATIONS: dict[str, tuple[str, str, str]] = {
    "the data set itself": ("images", "images", "is the input"),
    "the data set by another spelling": ("images/cat/../../images", "images", "is the input"),
    "the data set through a link": ("link", "images", "is a symbolic link|is the input"),
    "below a link to the data set": ("link/run", "images", "is inside the input"),
    "the parent of the data set": (".", "images", "has no folder name|contains the input"),
    "the data set, given through a link": ("images", "link", "is the input"),
    "a new folder inside the data set": ("images/run", "images", "is inside the input"),
    "a class folder": ("images/cat", "images", "is inside the input"),
    "the source run": ("run", "run", "is the input"),
    "inside the source run": ("run/bundle", "run", "is inside the input"),
    "a folder of documents": ("documents", "images", "did not write: thesis.tex"),
    "a document": ("documents/thesis.tex", "images", "is a file"),
}


@pytest.mark.parametrize("name", COMBINATIONS)
def test_overwrite_deletes_no_files_of_the_user(place: Path, name: str) -> None:
    out, given, reason = COMBINATIONS[name]
    before = tree(place)
    target = place if out == "." else place / out
    with pytest.raises(ConfigError, match=reason), new_folder(target, inputs={"the input": place / given}, overwrite=True) as staging:
        (staging / "new.txt").touch()
    assert tree(place) == before


def test_the_working_directory_and_its_parents_are_never_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = tmp_path / "a" / "b"
    work.mkdir(parents=True)
    monkeypatch.chdir(work)
    for target in (work, tmp_path / "a"):
        with pytest.raises(ConfigError, match="working directory"):
            check_output(target, overwrite=True)


def test_the_home_directory_is_never_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ConfigError, match="home directory"):
        check_output(tmp_path, overwrite=True)


def test_a_file_of_the_user_in_a_run_is_kept_and_reported(tmp_path: Path) -> None:
    run = write_own(tmp_path / "run", "weights.safetensors")
    (run / "notes.txt").write_text("precious")
    with pytest.raises(ConfigError, match=r"edgetl did not write: notes\.txt"), new_folder(run, overwrite=True):
        pytest.fail("the block ran")
    assert (run / "notes.txt").read_text() == "precious"


def test_a_folder_with_an_invalid_record_is_not_replaced(tmp_path: Path) -> None:
    for text in ("", "{}", "[]", '{"files": {}}', "[" * 100_000):
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run" / "run.json").write_text(text)
        with pytest.raises(ConfigError, match="did not write"):
            check_output(tmp_path / "run", overwrite=True)


def test_empty_folders_and_files_of_file_managers_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".DS_Store").touch()
    with new_folder(tmp_path / "out", overwrite=True) as staging:
        (staging / "new.txt").touch()
    assert names(tmp_path / "out") == ["new.txt"]


def test_a_link_in_a_run_is_a_foreign_file(tmp_path: Path) -> None:
    run = write_own(tmp_path / "run", "weights.safetensors")
    (tmp_path / "data").mkdir()
    (run / "weights.safetensors").unlink()
    (run / "weights.safetensors").symlink_to(tmp_path / "data")
    assert [path.name for path in foreign_files(run)] == ["weights.safetensors"]


def test_logs_of_a_run_are_not_foreign_files(tmp_path: Path) -> None:
    run = write_own(tmp_path / "run")
    for name in ("csv/metrics.csv", "tensorboard/events.out.tfevents.1.host", "mlflow.db", "csv/mine.txt"):
        (run / "logs" / name).parent.mkdir(parents=True, exist_ok=True)
        (run / "logs" / name).touch()
    assert [path.name for path in foreign_files(run)] == ["mine.txt"]


# --- paths that cannot be written --------------------------------------------------------------------------------------------------


def test_the_error_for_a_broken_link_shows_its_target(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to("nowhere")
    with pytest.raises(ConfigError, match="is a symbolic link to nowhere, which does not exist"):
        check_output(tmp_path / "out", overwrite=True)
    with pytest.raises(ConfigError, match="is a symbolic link to nowhere, which does not exist"):
        check_output(tmp_path / "out" / "run")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc")
def test_the_error_for_a_virtual_file_system_does_not_mention_free_space() -> None:
    with pytest.raises(StorageError, match="virtual file system") as caught:
        check_output(Path("/proc/run"))
    assert "ree some space" not in str(caught.value)


def test_the_error_for_a_read_only_file_system_shows_the_remedy(small_disk: Path) -> None:
    if subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=False, capture_output=True).returncode:
        pytest.skip("remounting needs root")
    with pytest.raises(StorageError, match=r"Read-only file system.*not read-only"):
        check_output(small_disk / "run")


@pytest.mark.skipif(os.name == "nt" or not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_the_error_for_missing_permissions_shows_the_remedy(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match="Change the permissions"):
        check_output(tmp_path / "run")
    tmp_path.chmod(0o700)


def test_a_file_as_parent_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"file is not a folder"):
        check_output(tmp_path / "file" / "sub" / "run")


def test_check_output_changes_nothing(tmp_path: Path) -> None:
    check_output(tmp_path / "a" / "b" / "run", inputs={"the input": tmp_path / "nowhere"})
    assert names(tmp_path) == []


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs")
def test_a_fifo_at_the_path_is_an_error(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "out")
    with pytest.raises(ConfigError, match="not a folder"):
        check_output(tmp_path / "out", overwrite=True)


# --- two processes -------------------------------------------------------------------------------------------------------------------

HOLDER = """
import sys
from pathlib import Path
from edgetl.core.output.folders import new_folder
with new_folder(Path(sys.argv[1])) as staging:
    (staging / "whole.txt").touch()
    print("ready", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def holder(tmp_path: Path) -> subprocess.Popen[str]:
    """Process that writes ``out`` and waits for a line on its standard input."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "out")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_a_second_process_with_the_same_target_is_an_error(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    for attempt in (check_output, lambda out: new_folder(out, overwrite=True).__enter__()):
        with pytest.raises(ConfigError, match="another process is writing"):
            attempt(tmp_path / "out")
    holder.communicate("\n")
    assert holder.returncode == 0
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["whole.txt"]


def test_the_lock_of_a_killed_process_is_released(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    holder.kill()
    holder.communicate()
    with new_folder(tmp_path / "out") as staging:
        (staging / "new.txt").touch()
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["new.txt"]


def test_a_lock_excludes_other_threads_and_allows_nesting(tmp_path: Path) -> None:
    with reserved(tmp_path / "out"), new_folder(tmp_path / "out") as staging:
        found: list[bool] = []

        def attempt() -> None:
            with locked(tmp_path / "out") as holds:
                found.append(holds)

        thread = threading.Thread(target=attempt)
        thread.start()
        thread.join()
        (staging / "x").touch()
    assert found == [False]
    assert names(tmp_path) == ["out"]


def test_a_file_of_the_user_with_the_name_of_a_lock_is_kept(tmp_path: Path) -> None:
    (tmp_path / f"{LOCK_MARK}out").write_text("precious")
    with new_folder(tmp_path / "out"):
        pass
    assert (tmp_path / f"{LOCK_MARK}out").read_text() == "precious"


def test_a_folder_created_by_another_program_is_kept_and_the_result_is_saved_next_to_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is not replaced\. The new result is in .*out-"), new_folder(tmp_path / "out") as staging:
        (staging / "mine.txt").touch()
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "theirs.txt").touch()
    assert names(tmp_path / "out") == ["theirs.txt"]
    (kept,) = [path for path in tmp_path.iterdir() if path.name != "out"]
    assert names(kept) == ["mine.txt"]


def _add_file(out: Path) -> None:
    (out / "notes.txt").touch()


def _replace(out: Path) -> None:
    # The folder is moved, not removed: a file system may reuse the inode of a removed folder.
    out.rename(out.with_name("moved"))
    write_own(out)


@pytest.mark.parametrize("change", [_add_file, _replace])
def test_a_folder_that_changes_during_the_block_is_not_replaced(tmp_path: Path, change: Callable[[Path], None]) -> None:
    write_own(tmp_path / "out")
    with pytest.raises(ConfigError, match="is not replaced"), new_folder(tmp_path / "out", overwrite=True) as staging:
        (staging / "new.txt").touch()
        change(tmp_path / "out")
    assert "run.json" in names(tmp_path / "out")
    assert any(names(path) == ["new.txt"] for path in tmp_path.iterdir())


def test_the_result_is_saved_if_the_old_folder_cannot_be_renamed(tmp_path: Path) -> None:
    # Its temporary name exists. A folder of another user in /tmp and some layered file systems have the same effect.
    write_own(tmp_path / "out")
    refused = pytest.raises(ConfigError, match=r"cannot be created or replaced \(Directory not empty\)\. The new result is in .*out-")
    with refused, new_folder(tmp_path / "out", overwrite=True) as staging:
        (staging / "new.txt").touch()
        (tmp_path / f"{REPLACED_MARK}{os.getpid()}-out" / "taken").mkdir(parents=True)
    assert names(tmp_path / "out") == ["run.json"]
    assert any(names(path) == ["new.txt"] for path in tmp_path.iterdir())


def test_a_folder_removed_during_the_block_is_written(tmp_path: Path) -> None:
    write_own(tmp_path / "out")
    with new_folder(tmp_path / "out", overwrite=True) as staging:
        (staging / "new.txt").touch()
        (tmp_path / "out").rename(tmp_path / "moved")
    assert (names(tmp_path), names(tmp_path / "out")) == (["moved", "out"], ["new.txt"])


# --- temporary folders --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mark", [STAGING_MARK, REPLACED_MARK])
def test_a_folder_of_the_user_with_the_name_of_a_temporary_folder_is_kept(tmp_path: Path, mark: str) -> None:
    write_own(tmp_path / "out")
    looks = tmp_path / f"{mark}{DEAD}-out"
    looks.mkdir()
    (looks / "thesis.tex").touch()
    with new_folder(tmp_path / "out", overwrite=True) as staging:
        (staging / "new.txt").touch()
    assert names(looks) == ["thesis.tex"]


def test_remove_side_folder_keeps_files_of_the_user(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    side = tmp_path / "out.checkpoints"
    side.mkdir()
    (side / f"step-00000007-{'a' * 16}.safetensors").touch()
    (side / "notes.txt").touch()
    remove_side_folder(side)
    assert names(side) == ["notes.txt"]
    assert "notes.txt" in caplog.text
    (side / "notes.txt").unlink()
    remove_side_folder(side)
    assert names(tmp_path) == []


def test_compared_runs_are_removed_and_files_of_the_user_are_kept(tmp_path: Path) -> None:
    side = tmp_path / "out.compare"
    write_own(side / "probe", "weights.safetensors")
    (side / "full.checkpoints").mkdir()
    (side / "full.checkpoints" / f"step-00000007-{'a' * 16}.safetensors").touch()
    (side / "mine").mkdir()
    (side / "mine" / "notes.txt").touch()
    remove_side_folder(side)
    assert sorted(str(path.relative_to(side)) for path in side.rglob("*")) == ["mine", "mine/notes.txt"]


@pytest.mark.parametrize("suffix", [".compare", ".checkpoints"])
def test_a_run_with_the_name_of_a_side_folder_is_replaced(tmp_path: Path, suffix: str) -> None:
    run = write_own(tmp_path / f"out{suffix}", "weights.safetensors")
    check_output(run, overwrite=True)


def test_a_demo_folder_is_replaced_only_with_its_record(tmp_path: Path) -> None:
    write_own(tmp_path / "demo" / "run")
    (tmp_path / "demo" / "digits" / "3").mkdir(parents=True)
    for name in ("digits/3/0001.png", "demo.png"):
        (tmp_path / "demo" / name).touch()
    with pytest.raises(ConfigError, match="did not write"):
        check_output(tmp_path / "demo", overwrite=True)
    (tmp_path / "demo" / "demo.json").write_text(json.dumps({"schema_version": 1, "images": "digits"}))
    check_output(tmp_path / "demo", overwrite=True)


def test_a_side_folder_that_is_a_link_is_kept(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / f"step-00000007-{'a' * 16}.safetensors").touch()
    (tmp_path / "out.checkpoints").symlink_to("real")
    remove_side_folder(tmp_path / "out.checkpoints")
    assert names(tmp_path / "real")


# --- chart files ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "jpg", "svg", "pdf"])
def test_a_chart_replaces_only_charts_of_edgetl(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"photo.{suffix}").write_bytes(b"a photo")
    Figure().savefig(tmp_path / f"figure.{suffix}")  # a chart that the user drew with matplotlib
    for name in ("photo", "figure"):
        with pytest.raises(ConfigError, match=r"--plot .*exists already, and edgetl did not write it"):
            check_chart(tmp_path / f"{name}.{suffix}", "--plot")
    write_chart(Figure(), tmp_path / f"plot.{suffix}", dpi=50)
    check_chart(tmp_path / f"plot.{suffix}", "--plot")


def test_a_chart_with_another_suffix_or_inside_an_input_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    with pytest.raises(ConfigError, match="must end in"):
        check_chart(tmp_path / "notes.txt", "--plot")
    with pytest.raises(ConfigError, match="is inside the images"):
        check_chart(tmp_path / "images" / "plot.png", "--plot", inputs={"the images": tmp_path / "images"})


def test_a_name_that_is_too_long_is_a_storage_error(tmp_path: Path) -> None:
    for length in (300, 240):  # by itself, and with the prefix of a temporary folder
        with pytest.raises(StorageError, match="shorter name"):
            check_output(tmp_path / ("x" * length))


def test_a_link_with_the_name_of_a_lock_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / f"{LOCK_MARK}out").symlink_to("file")
    with pytest.raises(StorageError, match="symbolic links"):
        check_output(tmp_path / "out")


def test_a_mount_point_is_an_error(small_disk: Path) -> None:
    with pytest.raises(ConfigError, match="mount point"):
        check_output(small_disk, overwrite=True)
