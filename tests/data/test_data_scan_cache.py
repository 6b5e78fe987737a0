"""Scan cache: unchanged files are not decoded again, and a damaged cache is ignored."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from edgetl.data.folder import scan
from tests.data.conftest import fill, noise_image, paths, put


class Counter:
    """Progress callback that stores its calls, one per decoded file."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int, int]] = []

    def __call__(self, stage: str, done: int, total: int) -> None:
        self.calls.append((stage, done, total))


def test_a_second_scan_decodes_nothing_and_gives_the_same_result(pets: Path) -> None:
    first, counter = scan(pets), Counter()
    assert scan(pets, progress=counter) == first
    assert counter.calls == []


def test_the_cache_stores_broken_files_with_their_reason(tmp_path: Path) -> None:
    root = fill(tmp_path / "data", "a", "b", count=10)
    (root / "a" / "000.png").write_bytes(b"not an image")
    first, counter = scan(root), Counter()
    assert scan(root, progress=counter).broken == first.broken != ()
    assert counter.calls == []


def test_only_changed_files_are_decoded_again(pets: Path) -> None:
    before = scan(pets)
    put(pets / "cat" / "001.png", 77)
    counter = Counter()
    after = scan(pets, progress=counter)
    assert counter.calls == [("checking images", 1, 1)]
    changed = [path for path, one, other in zip(paths(after), before.samples, after.samples, strict=True) if one != other]
    assert changed == ["cat/001.png"]


def test_a_file_with_another_modification_time_is_decoded_again(pets: Path) -> None:
    path = pets / "cat" / "000.png"
    scan(pets)
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    counter = Counter()
    scan(pets, progress=counter)
    assert len(counter.calls) == 1


def test_a_file_with_another_size_is_decoded_again(pets: Path) -> None:
    path = pets / "cat" / "000.png"
    scan(pets)
    time = path.stat().st_mtime_ns
    noise_image(77).resize((20, 20)).save(path)
    os.utime(path, ns=(time, time))
    counter = Counter()
    scan(pets, progress=counter)
    assert len(counter.calls) == 1


def test_a_cache_of_another_version_is_ignored(pets: Path, cache: Path) -> None:
    scan(pets)
    (file,) = cache.rglob("*.json")
    stored = json.loads(file.read_text())
    file.write_text(json.dumps({**stored, "version": stored["version"] - 1}))
    counter = Counter()
    scan(pets, progress=counter)
    assert len(counter.calls) == 6


def test_a_new_file_is_decoded_and_a_removed_file_is_dropped(pets: Path) -> None:
    scan(pets)
    (pets / "cat" / "000.png").unlink()
    put(pets / "cat" / "new.png", 77)
    counter = Counter()
    found = scan(pets, progress=counter)
    assert len(counter.calls) == 1
    assert paths(found)[:3] == ["cat/001.png", "cat/002.png", "cat/new.png"]


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b'{"version": 1}', b'{"version": 1, "files": []}', b'{"version": 0, "files": {}}', b"\xff\xfe"],
)
def test_a_damaged_cache_is_ignored_and_written_again(pets: Path, cache: Path, content: bytes) -> None:
    first = scan(pets)
    (file,) = cache.rglob("*.json")
    file.write_bytes(content)
    counter = Counter()
    assert scan(pets, progress=counter) == first and len(counter.calls) == 6
    assert scan(pets, progress=counter) == first and len(counter.calls) == 6


def test_a_scan_works_without_a_writable_cache_folder(pets: Path, cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    assert scan(pets).counts() == scan(pets).counts() == {"cat": 3, "dog": 3}


def test_the_cache_is_in_the_cache_folder_and_not_in_the_data_folder(pets: Path, cache: Path) -> None:
    scan(pets)
    assert len(list((cache / "edgetl" / "scans").glob("*.json"))) == 1
    assert {path.suffix for path in pets.rglob("*") if path.is_file()} == {".png"}
