"""Scan of folders as they are downloaded: layouts, links, masks, odd names and permissions. Skipped files are reported."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgetl.data.folder import ImageFolder, scan
from edgetl.data.selection import Selection
from edgetl.data.split import split
from edgetl.data.table.rows import Table
from edgetl.data.table.scan import scan_table
from edgetl.errors import ConfigError, DataError

CLASSES = ("glass", "metal", "paper")


def photo(path: Path, seed: int) -> Path:
    """Write a JPEG file with many colors."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(path, format="JPEG")
    return path


def make(root: Path, count: int, start: int = 0, names: tuple[str, ...] = CLASSES) -> Path:
    for number, name in enumerate(names):
        for index in range(start, start + count):
            photo(root / name / f"{name[:2]}{index}.jpg", 1000 * number + index)
    return root


def make_splits(root: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        make(root / name, 4, 10 * number)
    return root


def reasons(folder: ImageFolder) -> dict[str, int]:
    return {note.reason: note.count for note in folder.notes}


def parts(folder: ImageFolder) -> dict[str | None, int]:
    found: dict[str | None, int] = {}
    for sample in folder.samples:
        found[sample.part] = found.get(sample.part, 0) + 1
    return found


# --- the cases of the reference script ---------------------------------------------------------------------------------------------


def add_sibling(root: Path) -> Path:
    make_splits(root, "train", "val", "test")
    (root / "__MACOSX").mkdir()
    (root / "__MACOSX" / "._train").write_bytes(b"\0\5\x16\7" + bytes(100))
    for index in range(3):
        photo(root / "unlabeled" / f"new{index}.jpg", 9000 + index)
    return root


def test_a_folder_next_to_the_splits_is_reported_with_its_count(tmp_path: Path) -> None:
    found = scan(add_sibling(tmp_path / "data"))
    assert found.labels == CLASSES and parts(found) == {"train": 12, "val": 12, "test": 12}
    assert [(note.reason, note.used, note.count, note.by) for note in found.notes] == [
        ("system", False, 1, {"__MACOSX/": 1}),
        ("sibling", False, 3, {"unlabeled/": 3}),
    ]


def test_training_set_and_test_set_are_splits(tmp_path: Path) -> None:
    found = scan(make_splits(tmp_path / "data", "training_set", "test_set"))
    assert found.labels == CLASSES and parts(found) == {"train": 12, "test": 12}
    assert reasons(found) == {"splits": 2, "no-val": 0}


@pytest.mark.parametrize("kept", [0, 2])
def test_tiff_files_are_read(tmp_path: Path, kept: int) -> None:
    root = make(tmp_path / "data", 4)
    for path in sorted((root / "paper").glob("*.jpg"))[kept:]:
        with Image.open(path) as image:
            image.save(path.with_suffix(".tif"))
        path.unlink()
    found = scan(root)
    assert found.counts() == dict.fromkeys(CLASSES, 4) and found.notes == ()


def test_a_linked_class_is_read_and_reported(tmp_path: Path) -> None:
    root, store = make(tmp_path / "data", 4), tmp_path / "store"
    shutil.move(root / "paper", store)
    (root / "paper").symlink_to(store)
    found = scan(root)
    assert found.counts() == dict.fromkeys(CLASSES, 4)
    assert [(note.reason, note.used, note.examples) for note in found.notes] == [("linked", True, (f"paper -> {store}",))]


def test_a_linked_validation_split_is_used(tmp_path: Path) -> None:
    root, store = make_splits(tmp_path / "data", "train"), make(tmp_path / "store", 2, 50)
    (root / "valid").symlink_to(store)
    found = scan(root)
    assert parts(found) == {"train": 12, "val": 6}
    assert {sample.path.parts[-3] for sample in split(found).val} == {"valid"}
    assert reasons(found) == {"linked": 1, "splits": 1, "no-test": 0}


def add_masks(root: Path) -> Path:
    for path in list(make(root, 4).rglob("*.jpg")):
        with Image.open(path) as image:
            gray = np.asarray(image.convert("L"))
        Image.fromarray(np.where(gray > 128, 255, 0).astype(np.uint8)).save(path.with_suffix(".png"))
    return root


def test_masks_next_to_photos_are_left_out_and_reported(tmp_path: Path) -> None:
    found = scan(add_masks(tmp_path / "data"))
    assert found.counts() == dict.fromkeys(CLASSES, 4)
    assert [(note.reason, note.used, note.count, note.by) for note in found.notes] == [("mask", False, 12, {"*.png": 12})]


def test_include_uses_masks(tmp_path: Path) -> None:
    found = scan(add_masks(tmp_path / "data"), selection=Selection(include=("*.png",)))
    assert found.counts() == dict.fromkeys(CLASSES, 8) and found.notes == ()


@pytest.mark.parametrize("record", ["run.json", "manifest.json"])
def test_a_run_or_bundle_in_the_data_folder_is_not_a_class(tmp_path: Path, record: str) -> None:
    root = make(tmp_path / "data", 4)
    (root / "run").mkdir()
    (root / "run" / record).write_text("{}")
    for name in ("confusion.png", "curves.png"):
        Image.new("RGB", (64, 64)).save(root / "run" / name)
    found = scan(root)
    assert found.labels == CLASSES and reasons(found) == {"edgetl": 3}


def test_spaces_of_all_kinds_are_allowed_in_class_names(tmp_path: Path) -> None:
    names = ("caf\u00e9\u00a0noir", "\u732b\u3000\u7a2e", "\u0401\u043b\u043a\u0430", "hot dog", "hot_dog")
    found = scan(make(tmp_path / "data", 2, names=names))
    assert set(found.labels) == set(names) and found.notes == ()


def test_a_file_name_that_is_not_utf8_is_used_and_reported_with_escapes(tmp_path: Path) -> None:
    root = make(tmp_path / "data", 4)
    os.rename(root / "glass" / "gl0.jpg", os.fsencode(root / "glass") + b"/verre_cass\xe9.jpg")
    found = scan(root)
    assert found.counts() == dict.fromkeys(CLASSES, 4)
    assert [(note.reason, note.examples) for note in found.notes] == [("not-utf8", ("glass/verre_cass\\xe9.jpg",))]


def test_folders_of_the_reference_script_are_read_as_documented(tmp_path: Path, shared: Path) -> None:
    script, out = shared / "cases" / "odd_folders.py", tmp_path / "cases"
    subprocess.run([sys.executable, script, shared / "data" / "trashnet", out], check=True, capture_output=True)
    expected = {
        "sibling": ({"train": 60, "val": 18, "test": 12}, {"system": 1, "sibling": 3}),
        "training_set": ({"train": 60, "test": 18}, {"splits": 2, "no-val": 0}),
        "tiff_class": ({None: 60}, {}),
        "tiff_half": ({None: 60}, {}),
        "linked_class": ({None: 60}, {"linked": 1}),
        "linked_valid": ({"train": 60, "val": 18}, {"linked": 1, "splits": 1, "no-test": 0}),
        "masks": ({None: 60}, {"mask": 60}),
        "run_inside": ({None: 60}, {"edgetl": 3}),
        "names_nbsp": ({None: 60}, {}),
        "latin1_file": ({None: 60}, {"not-utf8": 1}),
    }
    for name, (images, notes) in expected.items():
        found = scan(out / name)
        assert (name, parts(found), reasons(found)) == (name, images, notes)
        assert (name, len(found.labels), found.broken) == (name, 3, ())
    with pytest.raises(ConfigError, match="--task: classification"):
        scan_table(out / "flat", Table(out / "table_numbers.csv"))
    for folder, table in (("flat", "words"), ("nfd", "nfd")):
        found = scan_table(out / folder, Table(out / f"table_{table}.csv"))
        assert (found.task, found.counts()) == ("classification", {"glass": 20, "metal": 20, "paper": 20})


# --- other layouts: data sets of Kaggle and others -------------------------------------------------------------------------------------


def test_a_flat_test_folder_is_reported_as_unlabeled(tmp_path: Path) -> None:
    root = make_splits(tmp_path / "data", "train")
    for index in range(5):
        photo(root / "test" / f"{index}.jpg", 7000 + index)
    (root / "sample_submission.csv").write_text("id,label\n")
    found = scan(root)
    assert parts(found) == {"train": 12}
    assert [(note.reason, note.count, note.by) for note in found.notes] == [
        ("other", 1, {".csv": 1}),
        ("unlabeled", 5, {"test/": 5}),
        ("no-val", 0, {}),
    ]


def test_test_images_outside_the_training_classes_are_unlabeled(tmp_path: Path) -> None:
    root = make_splits(tmp_path / "data", "train", "val")
    photo(root / "test" / "images" / "0.jpg", 7000)
    found = scan(root)
    assert found.labels == CLASSES and reasons(found) == {"unlabeled": 1}


def test_unlabeled_validation_images_are_an_error(tmp_path: Path) -> None:
    root = make_splits(tmp_path / "data", "train")
    photo(root / "val" / "images" / "0.jpg", 7000)
    with pytest.raises(DataError, match=r"the 1 images in val/ are in no class folder of the training split.*--exclude val"):
        scan(root)
    assert reasons(scan(root, selection=Selection(exclude=("val",)))) == {"excluded": 1, "no-val": 0, "no-test": 0}


def test_the_error_for_training_images_without_class_folders_shows_the_remedy(tmp_path: Path) -> None:
    for index in range(5):
        photo(tmp_path / "data" / "train" / f"cat.{index}.jpg", index)
        photo(tmp_path / "data" / "test" / f"{index}.jpg", 100 + index)
    with pytest.raises(DataError, match=r"train/ has 5 images and no class folders.*train/cat.*--labels FILE\.csv"):
        scan(tmp_path / "data")


@pytest.mark.parametrize("outer", ["training_set", "seg_train"])
def test_a_split_nested_in_a_folder_of_its_name_is_read(tmp_path: Path, outer: str) -> None:
    root, other = tmp_path / "data", outer.replace("training", "test").replace("train", "test")
    make(root / outer / outer, 4)
    make(root / other / other, 4, 10)
    found = scan(root)
    assert found.labels == CLASSES and parts(found) == {"train": 12, "test": 12}
    assert reasons(found) == {"nested": 2, "splits": 2, "no-val": 0}


def test_the_error_for_a_nested_data_set_shows_its_folder(tmp_path: Path) -> None:
    make(tmp_path / "archive" / "images", 4)
    with pytest.raises(DataError, match=r"has one class \(images\).*If its folders are the classes, use .*/archive/images"):
        scan(tmp_path / "archive")
    make_splits(tmp_path / "zip" / "chest_xray", "train", "test")
    with pytest.raises(DataError, match=r"has the splits one level deeper\. Use .*/zip/chest_xray"):
        scan(tmp_path / "zip")


# --- names and permissions ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        (b"a\tb", "a tab"),
        (b"a\nb", "a line break"),
        (b"a\x07b", r"a control character \(\\x07\)"),
        (b"caf\xe9", r"a byte that is not UTF-8 \(\\xe9\)"),
        ("a\u200bb".encode(), r"an invisible character \(\\u200b\)"),
        (b" ", "is empty"),
    ],
)
def test_a_class_name_that_cannot_be_exported_is_an_error(tmp_path: Path, name: bytes, problem: str) -> None:
    root = make(tmp_path / "data", 2)
    os.rename(root / "paper", os.fsencode(root) + b"/" + name)
    with pytest.raises(DataError, match=rf"the name of this class folder .*{problem}.*Rename it") as caught:
        scan(root)
    str(caught.value).encode()


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="root can become a user without permissions")
@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("lost+found", "unreadable 1 lost+found (Permission denied)"),
        ("paper", "DataError paper cannot be listed: Permission denied --exclude paper"),
        ("glass/more", "unreadable 1 glass/more (Permission denied)"),
    ],
)
def test_an_unreadable_folder_is_reported_and_an_unreadable_class_is_an_error(cache: Path, folder: str, expected: str) -> None:
    child = (
        "import os, sys; from edgetl.data.folder import scan; from edgetl.errors import DataError\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "try: print(*[(n.reason, n.count, *n.examples) for n in scan(sys.argv[1]).notes])\n"
        "except DataError as error: print('DataError', error)"
    )
    # Not below pytest's folder, which other users cannot enter.
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        root = make(Path(name) / "data", 2)
        (root / folder).mkdir(exist_ok=True)
        (root / folder).chmod(0o700)
        environment = {**os.environ, "XDG_CACHE_HOME": str(cache)}
        done = subprocess.run([sys.executable, "-c", child, root], capture_output=True, text=True, env=environment, check=False)
    assert done.stderr == ""
    assert all(word in done.stdout for word in expected.split()), done.stdout


def test_an_inaccessible_data_folder_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    root = make(tmp_path / "data", 2)
    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(DataError, match=r"/data cannot be listed: Permission denied\. Check its permissions"):
        scan(root)
