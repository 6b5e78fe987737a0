"""Listing of image files: files that are read or left out, links, and patterns."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgetl.data.folder import scan
from edgetl.data.listing import MAX_DEPTH, Folder, list_images
from edgetl.data.scan_notes import Notes
from edgetl.data.selection import NO_SELECTION, Selection
from tests.data.conftest import fill, put

TIFF, HEIC, AVIF = b"II*\0" + bytes(200), b"\0\0\0\x18ftypheic" + bytes(20), b"\0\0\0\x1cftypavif" + bytes(20)


def listed(root: Path, selection: Selection = NO_SELECTION) -> tuple[list[str], dict[str, int], Folder]:
    notes = Notes()
    tree = list_images(root, selection, notes)
    files = [path.relative_to(root).as_posix() for path in tree.files()]
    return files, {note.reason: note.count for note in notes.result()}, tree


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("a.heic", HEIC, "unsupported"),
        ("a.dat", HEIC, "unsupported"),
        ("a.avif", AVIF, "unsupported"),
        ("a.gif", b"GIF89a", "unsupported"),
        ("a.npy", b"\x93NUMPY\1\0", "unsupported"),
        ("a.nef", TIFF, "unsupported"),
        ("a.CR2", TIFF, "unsupported"),
        ("a.svs", TIFF, "unsupported"),
        ("a.zip", b"PK\3\4", "unsupported"),
        ("a.txt", b"BM is no image", "other"),
        ("a.xml", b"<a/>", "other"),
        ("a", b"", "other"),
        (".DS_Store", b"\0", "system"),
        ("Thumbs.db", b"\0", "system"),
        ("desktop.ini", b"", "system"),
        ("._a.jpg", b"\0\5\x16\7", "system"),
        (".a.jpg", b"\xff\xd8\xff", "hidden"),
    ],
)
def test_files_that_are_left_out_are_counted_by_reason(tmp_path: Path, name: str, data: bytes, reason: str) -> None:
    fill(tmp_path, "cat", count=1)
    (tmp_path / "cat" / name).write_bytes(data)
    assert listed(tmp_path)[:2] == (["cat/000.png"], {reason: 1})


@pytest.mark.parametrize("name", ["@eaDir", ".thumbnails", "__MACOSX", ".ipynb_checkpoints", "#recycle", "$RECYCLE.BIN", "lost+found"])
@pytest.mark.parametrize("parent", [".", "cat"])
def test_index_and_thumbnail_folders_are_left_out_and_counted(tmp_path: Path, name: str, parent: str) -> None:
    fill(tmp_path, "cat", count=1)
    for index in range(3):
        put(tmp_path / parent / name / "deep" / f"{index}.jpg", index)
    assert listed(tmp_path)[:2] == (["cat/000.png"], {"system": 3})


def test_all_suffixes_of_jpeg_and_tiff_are_read(tmp_path: Path) -> None:
    for name in ("a.jfif", "a.jpe", "a.JPEG", "a.tif", "a.TIFF"):
        (tmp_path / name).write_bytes(b"")
    assert len(listed(tmp_path)[0]) == 5 and listed(tmp_path)[1] == {}


def test_a_circular_link_is_left_out_and_counted(tmp_path: Path) -> None:
    root = fill(tmp_path / "data", "cat", "dog", count=1)
    (root / "cat" / "up").symlink_to(root)
    (root / "cat" / "above").symlink_to(tmp_path)
    (root / "all").symlink_to("/")
    (root / "dog" / "self").symlink_to(root / "dog")
    assert listed(root)[:2] == (["cat/000.png", "dog/000.png"], {"loop": 4})


def test_a_link_to_a_listed_folder_is_left_out(tmp_path: Path) -> None:
    root = fill(tmp_path / "data", "zebra", count=1)
    (root / "alias").symlink_to("zebra")
    assert listed(root)[:2] == (["zebra/000.png"], {"loop": 1})


def test_folders_with_several_links_are_read_once(tmp_path: Path) -> None:
    root, store = fill(tmp_path / "data", "cat", count=1), tmp_path / "store"
    for number in range(12):  # paths double with each folder
        put(store / str(number) / "a.png", number)
        for name in ("one", "two"):
            (store / str(number) / name).symlink_to(store / str(number + 1))
    (root / "cat" / "more").symlink_to(store / "0")
    files, notes, _ = listed(root)
    assert len(files) == 13 and notes["linked"] == 12
    assert "cat/more/one/one/a.png" in files


def test_a_broken_link_is_reported(tmp_path: Path) -> None:
    fill(tmp_path, "cat", count=1)
    (tmp_path / "cat" / "gone").symlink_to("nowhere")
    assert listed(tmp_path)[:2] == (["cat/000.png"], {"unreadable": 1})


def test_a_folder_nested_too_deeply_is_reported(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["d"] * (MAX_DEPTH + 3))
    put(deep / "a.png", 0)
    assert listed(tmp_path)[:2] == ([], {"unreadable": 1})


@pytest.mark.parametrize(
    ("include", "exclude", "kept"),
    [
        ((), (), "a/x.png b/x.png"),
        ((".hidden.png",), (), "a/.hidden.png a/x.png b/x.png"),
        (("@eaDir",), (), "a/@eaDir/t.png a/x.png b/x.png"),
        (("@eaDir/*.png",), (), "a/x.png b/x.png"),
        (("a/@eaDir/*.png",), (), "a/@eaDir/t.png a/x.png b/x.png"),
        (("*/@eaDir",), ("t.png",), "a/x.png b/x.png"),
        ((), ("a",), "b/x.png"),
        ((), ("a/*",), "b/x.png"),
        ((), ("x.*",), ""),
        ((), ("A",), "a/x.png b/x.png"),
        (("run",), (), "a/x.png b/x.png run/plot.png run/run.json"),
    ],
    ids=str,
)
def test_patterns_match_names_and_relative_paths(tmp_path: Path, include: tuple[str, ...], exclude: tuple[str, ...], kept: str) -> None:
    for name in ("a/x.png", "a/.hidden.png", "a/@eaDir/t.png", "b/x.png", "run/plot.png"):
        put(tmp_path / name, 0)
    (tmp_path / "run" / "run.json").write_text("{}")
    files, notes, _ = listed(tmp_path, Selection(include, exclude))
    assert sorted(files) == kept.split()
    assert len(files) + sum(notes.values()) == 6, "every file is read or counted"


def test_note_texts_have_counts_suffixes_and_a_remedy(tmp_path: Path) -> None:
    root = fill(tmp_path / "data", "cat", "dog")
    for index in range(3):
        (root / "cat" / f"{index}.heic").write_bytes(HEIC)
    (root / "dog" / "a.gif").write_bytes(b"GIF89a")
    (note,) = scan(root).notes
    assert note.describe().startswith("4 files left out: unsupported image format: .heic (3), .gif (1), such as cat/0.heic. Convert")


def test_each_note_is_logged_on_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = fill(tmp_path / "data", "cat", "dog")
    put(root / "dog" / ".hidden.png", 5)
    with caplog.at_level("INFO", "edgetl"):
        scan(root)
    assert [record.getMessage() for record in caplog.records if "left out" in record.getMessage()] == [
        "1 file left out: hidden (the name of the file or its folder starts with a dot): dog/.hidden.png. --include PATTERN uses them."
    ]
