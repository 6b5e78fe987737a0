"""Scan of an image folder: classes, images, files that are left out, and errors."""

from __future__ import annotations

import io
import os
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from edgetl.core.images.decode import content_hash, load_image
from edgetl.data.folder import scan, scan_unlabeled
from edgetl.errors import DataError
from tests.core.deadline import within
from tests.data.conftest import fill, noise_image, paths, put

# --- classes and images --------------------------------------------------------------------------------------------------------------


def test_labels_are_the_sorted_folder_names(pets: Path) -> None:
    found = scan(pets)
    assert found.labels == ("cat", "dog")
    assert found.counts() == {"cat": 3, "dog": 3}


def test_samples_are_sorted_by_path_and_have_label_and_content_hash(pets: Path) -> None:
    found = scan(pets)
    assert paths(found) == ["cat/000.png", "cat/001.png", "cat/002.png", "dog/000.png", "dog/001.png", "dog/002.png"]
    assert [sample.label for sample in found.samples] == [0, 0, 0, 1, 1, 1]
    assert found.samples[4].content == content_hash(load_image(pets / "dog" / "001.png"))


def test_scan_accepts_str_and_path(pets: Path) -> None:
    assert scan(str(pets)) == scan(pets)


@pytest.mark.parametrize("name", ["a.PNG", "a.Jpg", "a.JPEG", "a.WebP", "a.BMP"])
def test_suffixes_match_in_any_case(pets: Path, name: str) -> None:
    put(pets / "cat" / name, 77)
    assert scan(pets).counts() == {"cat": 4, "dog": 3}


def test_images_in_nested_folders_belong_to_the_top_class(pets: Path) -> None:
    put(pets / "cat" / "2024" / "may" / "a.png", 77)
    found = scan(pets)
    assert found.labels == ("cat", "dog") and found.counts()["cat"] == 4


@pytest.mark.parametrize(
    ("name", "reason"),
    [(".hidden.png", "hidden"), (".thumbs/a.png", "system"), ("._a.png", "system"), (".own/a.png", "hidden"), ("@eaDir/a.png", "system")],
)
def test_hidden_and_system_files_are_left_out_and_reported(pets: Path, name: str, reason: str) -> None:
    put(pets / "cat" / "x.png", 77).rename(pets / "cat" / "moved")
    (pets / "cat" / name).parent.mkdir(exist_ok=True)
    (pets / "cat" / "moved").rename(pets / "cat" / name)
    found = scan(pets)
    assert (found.counts()["cat"], found.broken) == (3, ())
    assert [(note.reason, note.used, note.count) for note in found.notes] == [(reason, False, 1)]


@pytest.mark.parametrize("name", ["a.dat", "png", "a.png.part", "a.gif", "a.txt"])
def test_an_image_is_read_by_content_under_any_suffix(pets: Path, name: str) -> None:
    put(pets / "cat" / "x.png", 77).rename(pets / "cat" / name)
    found = scan(pets)
    assert found.counts()["cat"] == 4
    assert [(note.reason, note.used, note.examples) for note in found.notes] == [("content", True, (f"cat/{name}",))]


def test_hidden_folders_and_loose_files_are_not_classes(pets: Path) -> None:
    put(pets / ".git" / "a.png", 77)
    put(pets / "loose.png", 78)
    assert scan(pets).labels == ("cat", "dog")


def test_a_link_to_a_folder_below_a_class_is_skipped(pets: Path) -> None:
    (pets / "cat" / "loop").symlink_to(pets)
    assert scan(pets).counts() == {"cat": 3, "dog": 3}


def test_a_link_to_an_image_is_an_image(pets: Path, tmp_path: Path) -> None:
    (pets / "cat" / "link.png").symlink_to(put(tmp_path / "elsewhere.png", 77))
    assert scan(pets).counts()["cat"] == 4


def test_names_in_any_script_and_with_odd_characters_are_kept(tmp_path: Path) -> None:
    root = fill(tmp_path / "data", "犬", "chat noir", "naïve (1)")
    put(root / "犬" / "a\nb ü 🐕.png", 77)
    assert scan(root).counts() == {"chat noir": 3, "naïve (1)": 3, "犬": 4}


def test_a_file_name_that_is_not_utf8_is_read(pets: Path) -> None:
    odd = os.fsencode(pets / "cat") + b"/caf\xe9.png"
    os.rename(pets / "cat" / "000.png", os.fsdecode(odd))
    assert scan(pets).counts()["cat"] == 3


def test_class_names_are_compared_in_unicode_normal_form_c(tmp_path: Path) -> None:
    names = [unicodedata.normalize(form, "été") for form in ("NFC", "NFD")]
    root = fill(tmp_path / "data", *names, "hiver")
    found = scan(root)
    assert found.labels == ("hiver", unicodedata.normalize("NFC", "été"))
    assert found.counts() == {"hiver": 3, unicodedata.normalize("NFC", "été"): 6}


def test_an_image_with_a_wrong_suffix_is_read_by_content(pets: Path) -> None:
    noise_image(77).save(pets / "cat" / "really-a-png.jpg", "PNG")
    assert scan(pets).counts()["cat"] == 4


def test_copies_of_an_image_have_equal_content_hashes(pets: Path) -> None:
    with Image.open(pets / "cat" / "000.png") as image:
        image.save(pets / "cat" / "copy.bmp")
    found = scan(pets)
    contents = {path: sample.content for path, sample in zip(paths(found), found.samples, strict=True)}
    assert contents["cat/copy.bmp"] == contents["cat/000.png"] != contents["cat/001.png"]


def test_progress_is_reported_after_each_decoded_file(pets: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    scan(pets, progress=lambda stage, done, total: calls.append((stage, done, total)))
    assert calls == [("checking images", done, 6) for done in range(1, 7)]


# --- fingerprint -----------------------------------------------------------------------------------------------------------------


def test_the_fingerprint_does_not_depend_on_paths_or_order(pets: Path, tmp_path: Path) -> None:
    before = scan(pets).fingerprint()
    (pets / "cat" / "000.png").rename(pets / "cat" / "zzz.png")
    moved = pets.rename(tmp_path / "elsewhere")
    assert scan(moved).fingerprint() == before


def test_the_fingerprint_changes_with_the_label_of_an_image(pets: Path) -> None:
    before = scan(pets).fingerprint()
    (pets / "cat" / "000.png").rename(pets / "dog" / "moved.png")
    assert scan(pets).fingerprint() != before


def test_the_fingerprint_changes_with_the_name_of_a_class(pets: Path) -> None:
    before = scan(pets).fingerprint()
    (pets / "cat").rename(pets / "puss")
    assert scan(pets).fingerprint() != before


# --- broken images ---------------------------------------------------------------------------------------------------------------


def test_a_broken_file_is_left_out_and_reported_with_its_reason(tmp_path: Path) -> None:
    root = fill(tmp_path / "data", "a", "b", count=10)
    (root / "a" / "000.png").write_bytes(b"not an image")
    found = scan(root)
    assert [item.path for item in found.broken] == [root / "a" / "000.png"]
    assert "000.png is not a JPEG, PNG, WebP, BMP or TIFF image" in found.broken[0].reason
    assert found.counts() == {"a": 9, "b": 10}


def test_broken_files_of_unlabeled_images_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = fill(tmp_path / "data", "a")
    for index in range(6):
        (root / "a" / f"bad{index}.png").write_bytes(b"")
    assert len(scan_unlabeled(root)) == 3
    (text,) = caplog.messages
    assert "data: 6 of 9 images cannot be decoded (a/bad0.png, a/bad1.png, a/bad2.png, a/bad3.png, a/bad4.png, …) and are left out." in text
    assert "First reason: " in text and "bad0.png is empty" in text


@pytest.mark.parametrize("kind", ["empty", "truncated", "broken link", "FIFO", "link to itself"])
def test_unreadable_files_are_left_out(tmp_path: Path, kind: str) -> None:
    root = fill(tmp_path / "data", "a", "b", count=10)
    path = root / "a" / "bad.png"
    buffer = io.BytesIO()
    noise_image(0).save(buffer, "PNG")
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind.endswith(("link", "itself")):
        path.symlink_to("nowhere" if kind == "broken link" else path.name)
    else:
        path.write_bytes(b"" if kind == "empty" else buffer.getvalue()[:-30])
    with within(60):
        found = scan(root)
    assert [item.path.name for item in found.broken] == ["bad.png"]


def test_ten_percent_of_broken_files_are_accepted(tmp_path: Path) -> None:
    root = fill(tmp_path / "data", "a", "b", count=10)
    for name in ("000.png", "001.png"):
        (root / "a" / name).write_bytes(b"not an image")
    assert len(scan(root).broken) == 2


def test_more_than_ten_percent_of_broken_files_are_an_error(tmp_path: Path) -> None:
    root = fill(tmp_path / "data", "a", "b", count=10)
    for name in ("000.png", "001.png", "002.png"):
        (root / "b" / name).write_bytes(b"not an image")
    with pytest.raises(
        DataError,
        match=r"/data: 3 of 20 images cannot be decoded \(b/000\.png, b/001\.png, b/002\.png\)\. The limit is 10%\. First reason: "
        r".*000\.png is not a JPEG, PNG, WebP, BMP or TIFF image\. Copy the folder again",
    ):
        scan(root)


# --- errors ------------------------------------------------------------------------------------------------------------------------


def test_the_error_for_a_missing_folder_shows_its_path(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"/nowhere does not exist\. Give a folder with one folder of images for each class"):
        scan(tmp_path / "nowhere")


def test_a_file_instead_of_a_folder_is_an_error(pets: Path) -> None:
    with pytest.raises(DataError, match=r"000\.png is a file\. Give a folder"):
        scan(pets / "cat" / "000.png")


def test_the_error_for_an_empty_folder_lists_the_image_formats(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no images in class folders\. Put JPEG, PNG, WebP, BMP or TIFF files into one"):
        scan(tmp_path)


def test_the_error_for_loose_images_shows_the_layout(tmp_path: Path) -> None:
    put(tmp_path / "loose" / "a.png", 0)
    with pytest.raises(DataError, match=r"/loose has no images in class folders\. .*/loose/cat.* 1 image left out: not in a class folder"):
        scan(tmp_path / "loose")


def test_a_single_class_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"/data has one class \(cat\)\. A classifier needs at least 2 class folders"):
        scan(fill(tmp_path / "data", "cat"))


def test_a_class_with_one_image_is_an_error(pets: Path) -> None:
    put(pets / "emu" / "only.png", 77)
    with pytest.raises(DataError, match=r"/pets: too few readable images in emu \(1\)\. Each class folder needs at least 2\. Add images"):
        scan(pets)


def test_an_empty_class_folder_is_an_error(pets: Path) -> None:
    (pets / "emu").mkdir()
    with pytest.raises(DataError, match=r"too few readable images in emu \(0\)"):
        scan(pets)


def test_broken_images_do_not_count_as_images_of_a_class(tmp_path: Path) -> None:
    root = fill(fill(tmp_path / "data", "a", count=20), "b", count=2, seed=5000)
    (root / "b" / "000.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"too few readable images in b \(1\)"):
        scan(root)


# --- labels of a trained model -----------------------------------------------------------------------------------------------------


def test_known_labels_keep_their_order(pets: Path) -> None:
    found = scan(pets, known_labels=["dog", "cat"])
    assert found.labels == ("dog", "cat")
    assert [sample.label for sample in found.samples] == [1, 1, 1, 0, 0, 0]


def test_known_classes_may_be_absent_or_small(tmp_path: Path) -> None:
    root = fill(tmp_path / "data", "cat", count=1)
    assert scan(root, known_labels=["ant", "cat", "dog"]).counts() == {"ant": 0, "cat": 1, "dog": 0}


def test_a_class_that_the_model_does_not_have_is_an_error(pets: Path) -> None:
    with pytest.raises(DataError, match=r"/pets has classes that the model does not have: dog\. It has cat, emu\. Give a folder"):
        scan(pets, known_labels=["cat", "emu"])


def test_too_many_broken_files_are_an_error_with_known_labels(pets: Path) -> None:
    (pets / "cat" / "000.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"1 of 6 images cannot be decoded"):
        scan(pets, known_labels=["cat", "dog"])


# --- ready-made splits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [("train", "val", "test"), ("Training", "VALID", "Test"), ("train", "validation", "test")])
def test_ready_made_splits_are_detected_by_folder_names(tmp_path: Path, names: tuple[str, str, str]) -> None:
    for number, name in enumerate(names):
        fill(tmp_path / "data" / name, "cat", "dog", seed=100 * number)
    found = scan(tmp_path / "data")
    assert found.labels == ("cat", "dog")
    parts = {sample.path.relative_to(found.root).parts[0]: sample.part for sample in found.samples}
    assert parts == dict(zip(names, ("train", "val", "test"), strict=True))


def test_a_folder_called_train_next_to_class_folders_is_a_class(tmp_path: Path) -> None:
    found = scan(fill(tmp_path / "data", "train", "plane"))
    assert found.labels == ("plane", "train") and {sample.part for sample in found.samples} == {None}


def test_a_class_folder_may_be_empty_in_one_split(tmp_path: Path) -> None:
    root = tmp_path / "data"
    fill(root / "train", "cat", "dog")
    (root / "val" / "cat").mkdir(parents=True)
    assert scan(root).counts() == {"cat": 3, "dog": 3}
