"""Files that appear whole or not at all: after errors, and on a full disk."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from edgetl.core.files.atomic import storage_error, write_bytes, write_text
from edgetl.errors import StorageError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_holds_the_bytes_and_nothing_lies_beside_it(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a.bin", b"\0\1\2")
    assert (tmp_path / "a.bin").read_bytes() == b"\0\1\2"
    assert names(tmp_path) == ["a.bin"]


def test_a_file_replaces_an_older_one(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a much longer old text")
    write_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "new"


def test_text_is_written_as_utf_8_without_translating_line_ends(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "é\n漢\r\n")
    assert (tmp_path / "a.txt").read_bytes() == b"\xc3\xa9\n\xe6\xbc\xa2\r\n"


def test_a_file_in_a_missing_folder_is_a_storage_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot write .*nowhere/a\.txt: No such file"):
        write_text(tmp_path / "nowhere" / "a.txt", "x")


def test_a_file_in_place_of_a_folder_is_refused_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(StorageError, match=r"cannot write .*/a: Is a directory"):
        write_bytes(tmp_path / "a", b"x")
    assert names(tmp_path) == ["a"]


def test_a_full_disk_keeps_the_older_file_and_leaves_nothing_else(small_disk: Path) -> None:
    write_bytes(small_disk / "a.bin", b"old")
    with pytest.raises(StorageError, match=r"a\.bin: No space left on device.*free some space"):
        write_bytes(small_disk / "a.bin", b"n" * 3_000_000)
    assert (small_disk / "a.bin").read_bytes() == b"old"
    assert names(small_disk) == ["a.bin"]


def test_the_storage_error_says_what_where_and_what_next() -> None:
    error = storage_error(Path("out/model"), OSError(28, "No space left on device"))
    assert str(error).startswith("cannot write out/model: No space left on device.")
    assert str(error).endswith("free some space or choose another place.")


REMEDIES = {
    errno.ENOSPC: "free some space", errno.EDQUOT: "free some space", errno.EACCES: "change the permissions",
    errno.EROFS: "not read-only", errno.ENAMETOOLONG: "a shorter name", errno.EIO: "another place",
}  # fmt: skip


@pytest.mark.parametrize("number", REMEDIES)
def test_only_a_full_disk_or_a_quota_is_answered_with_free_some_space(number: int) -> None:
    text = str(storage_error(Path("out"), OSError(number, os.strerror(number))))
    assert REMEDIES[number] in text
    assert ("free some space" in text) == (number in (errno.ENOSPC, errno.EDQUOT))
