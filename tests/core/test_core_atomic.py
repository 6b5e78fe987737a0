"""Atomic writing of files: errors and a full disk."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from edgetl.core.files.atomic import is_full, storage_error, write_bytes, write_chunks, write_text
from edgetl.errors import StorageError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_write_bytes_leaves_no_temporary_file(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a.bin", b"\0\1\2")
    assert (tmp_path / "a.bin").read_bytes() == b"\0\1\2"
    assert names(tmp_path) == ["a.bin"]


def test_chunks_are_written_one_after_the_other(tmp_path: Path) -> None:
    write_chunks(tmp_path / "a.bin", iter([b"one", b"", b"two"]))
    assert (tmp_path / "a.bin").read_bytes() == b"onetwo"


def test_a_file_has_the_given_permissions_without_those_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        write_bytes(tmp_path / "default", b"x")
        write_chunks(tmp_path / "chunks", [b"x"])
        write_bytes(tmp_path / "private", b"x", mode=0o600)
        os.umask(0o027)
        write_bytes(tmp_path / "masked", b"x")
    finally:
        os.umask(before)
    modes = [(tmp_path / name).stat().st_mode & 0o777 for name in ("default", "chunks", "private", "masked")]
    assert modes == [0o666, 0o666, 0o600, 0o640]


def test_write_text_replaces_an_existing_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a much longer old text")
    write_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "new"


def test_text_is_written_as_utf8_with_unchanged_line_ends(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "é\n漢\r\n")
    assert (tmp_path / "a.txt").read_bytes() == b"\xc3\xa9\n\xe6\xbc\xa2\r\n"


def test_a_missing_folder_is_a_storage_error_with_the_path(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot write .*nowhere/a\.txt: No such file"):
        write_text(tmp_path / "nowhere" / "a.txt", "x")


def test_a_folder_at_the_path_is_an_error_and_leaves_no_temporary_file(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(StorageError, match=r"cannot write .*/a: Is a directory"):
        write_bytes(tmp_path / "a", b"x")
    assert names(tmp_path) == ["a"]


def test_a_full_disk_keeps_the_old_file_and_leaves_no_temporary_file(small_disk: Path) -> None:
    write_bytes(small_disk / "a.bin", b"old")
    with pytest.raises(StorageError, match=r"a\.bin: No space left on device.*Free some space"):
        write_bytes(small_disk / "a.bin", b"n" * 3_000_000)
    assert (small_disk / "a.bin").read_bytes() == b"old"
    assert names(small_disk) == ["a.bin"]


def test_the_storage_error_has_path_reason_and_remedy() -> None:
    error = storage_error(Path("out/model"), OSError(28, "No space left on device"))
    assert str(error).startswith("cannot write out/model: No space left on device.")
    assert str(error).endswith("Nothing was written. Free some space, or choose another path.")


def test_an_error_without_a_number_has_its_own_text_and_a_general_remedy() -> None:
    error = storage_error(Path("out"), OSError("the device is gone"))
    assert str(error) == "cannot write out: the device is gone. Nothing was written. Choose another path."


def test_an_error_without_permission_has_the_remedy_for_the_folder() -> None:
    error = storage_error(Path("out"), OSError(errno.EPERM, "Operation not permitted"))
    remedy = "Change the permissions of its folder, or choose another path."
    assert str(error) == f"cannot write out: Operation not permitted. Nothing was written. {remedy}"


REMEDIES = {
    errno.ENOSPC: "Free some space",
    errno.EDQUOT: "free some space",
    errno.EACCES: "Change the permissions",
    errno.EROFS: "not read-only",
    errno.ENAMETOOLONG: "a shorter name",
    errno.EIO: "another path",
}


@pytest.mark.parametrize("number", REMEDIES)
def test_the_remedy_is_free_some_space_only_for_a_full_disk_or_quota(number: int) -> None:
    text = str(storage_error(Path("out"), OSError(number, os.strerror(number))))
    assert REMEDIES[number] in text
    assert ("ree some space" in text) == (number in (errno.ENOSPC, errno.EDQUOT))


@pytest.mark.parametrize(
    ("cause", "full"),
    [
        (OSError(errno.ENOSPC, ""), True),
        (OSError(errno.EDQUOT, ""), True),
        (OSError(errno.EIO, ""), False),
        (OSError("x"), False),
        (None, False),
    ],
    ids=["space", "quota", "input/output", "no code", "no cause"],
)
def test_is_full_reports_a_full_disk_or_an_exhausted_quota(cause: OSError | None, full: bool) -> None:
    error = StorageError("cannot write a file.")
    error.__cause__ = cause
    assert is_full(error) is full
