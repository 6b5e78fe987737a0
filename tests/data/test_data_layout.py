"""Layout of a data folder: split folders, class folders, and errors for ambiguous folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgetl.data.folder import scan
from edgetl.data.layout import part_of, parts_of
from edgetl.data.selection import Selection
from edgetl.errors import DataError
from tests.data.conftest import fill


@pytest.mark.parametrize(
    ("part", "names"),
    [
        ("train", "train TRAIN Training training_set training-set train_data TrainData trainset train2017 train_images images_train trn"),
        ("val", "val VALID Validation valid_set validation-set dev dev_set eval evaluation val2017 val_images"),
        ("test", "test TEST Testing test_set test-set testdata test_images holdout tst"),
        (None, "trains trainer station test_tube testers value valve evil develop contest train_station images data set train1"),
    ],
)
def test_split_names_are_recognized_and_similar_words_are_not(part: str | None, names: str) -> None:
    assert {name: part_of(name) for name in names.split()} == dict.fromkeys(names.split(), part)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("seg_train", "seg_test", "seg_pred"), {"seg_train": "train", "seg_test": "test"}),
        (("asl_alphabet_train", "asl_alphabet_test"), {"asl_alphabet_train": "train", "asl_alphabet_test": "test"}),
        (("train_x", "valid_x"), {"train_x": "train", "valid_x": "val"}),
        (("express_train", "steam_train"), {}),
        (("blood_test", "urine_test"), {}),
        (("train_station", "test_tube"), {}),
    ],
    ids=str,
)
def test_names_with_a_common_stem_are_splits_only_with_a_training_split(names: tuple[str, ...], expected: object) -> None:
    assert parts_of(names) == expected


def layout(root: Path, *folders: str) -> Path:
    """Make folders with three images each. ``name/`` is an empty folder."""
    for number, folder in enumerate(folders):
        (root / folder).mkdir(parents=True, exist_ok=True)
        if not folder.endswith("/"):
            path = Path(folder)
            fill(root / path.parent, path.name, seed=100 * number)
    return root


AMBIGUOUS = {
    "two folders for one split": (
        ("train/a", "train/b", "val/a", "valid/b"),
        r"val/ and valid/ both look like the val split\. .*--exclude valid",
    ),
    "evaluation and validation": (
        ("training/a", "training/b", "validation/a", "evaluation/a"),
        r"evaluation/ and validation/ both look like the val split",
    ),
    "class names with split names": (
        ("train_cat", "test_cat", "train_dog", "test_dog"),
        r"both look like the test split",
    ),
    "training class next to the splits": (("train/a", "train/b", "test/a", "a"), r"a/ like classes\. .*--exclude a,"),
    "class folder next to a single split": (("train/a", "train/b", "c"), r"train/ looks like a split, and c/ like classes.*--exclude c,"),
    "test folder next to classes": (("a", "b", "test"), r"test/ looks like a split, and a/, b/ like classes\. .*--exclude test"),
    "splits without training": (
        ("val/a", "val/b", "test/a"),
        r"has val/ and test/ and no training split|test/ and val/ and no training split",
    ),
    "splits in classes": (
        ("cat/train", "cat/test", "dog/train"),
        r"cat/ has splits \(test/, train/\)\. Put the splits above the classes",
    ),
    "one split in each class": (("cat/train", "dog/test"), r"train/cat instead of cat/train"),
    "splits in a split": (("train/train/a", "train/test/a", "test/a"), r"train is a split and has folders that look like splits"),
    "folds": (("fold1", "fold2", "fold3"), r"has folds for cross-validation \(fold1, fold2, fold3\), not classes"),
}


@pytest.mark.parametrize("case", AMBIGUOUS)
def test_the_error_for_an_ambiguous_layout_shows_the_remedy(tmp_path: Path, case: str) -> None:
    folders, message = AMBIGUOUS[case]
    with pytest.raises(DataError, match=message):
        scan(layout(tmp_path / "data", *folders))


def test_the_suggested_exclude_option_makes_the_layout_unambiguous(tmp_path: Path) -> None:
    root = layout(tmp_path / "data", "a", "b", "test")
    assert scan(root, selection=Selection(exclude=("test",))).labels == ("a", "b")
    root = layout(tmp_path / "nested", "cat/train", "cat/test", "dog/train", "dog/test")
    assert scan(root, selection=Selection(exclude=("*/test",))).counts() == {"cat": 3, "dog": 3}


@pytest.mark.parametrize("sibling", ["logs", "unlabeled", "__pycache__", "annotations", "extra images"])
def test_folders_next_to_splits_do_not_turn_splits_into_classes(tmp_path: Path, sibling: str) -> None:
    found = scan(layout(tmp_path / "data", "train/a", "train/b", "val/a", "val/b", sibling))
    assert found.labels == ("a", "b") and {sample.part for sample in found.samples} == {"train", "val"}
    assert sum(note.count for note in found.notes if not note.used) == 3


def test_the_scan_reports_a_class_called_train(tmp_path: Path) -> None:
    (note,) = scan(layout(tmp_path / "data", "train", "plane")).notes
    assert note.describe() == "1 folder read as a class, although its name is that of a split: train."


def test_evaluation_reads_splits_without_a_training_split(tmp_path: Path) -> None:
    found = scan(layout(tmp_path / "data", "val/a", "test/b"), known_labels=("a", "b"))
    assert found.counts() == {"a": 3, "b": 3} and found.notes == ()


def test_folders_with_the_labels_of_a_model_are_classes(tmp_path: Path) -> None:
    found = scan(layout(tmp_path / "data", "train", "test"), known_labels=("train", "test"))
    assert found.counts() == {"train": 3, "test": 3}


def test_a_folder_without_images_is_reported_and_not_a_class(tmp_path: Path) -> None:
    root = layout(tmp_path / "data", "a", "b", "notes/")
    (root / "notes" / "readme.txt").write_text("collected in May")
    found = scan(root)
    assert found.labels == ("a", "b")
    assert [(note.reason, note.count) for note in found.notes] == [("other", 1), ("no-images", 1)]


def test_a_class_with_unsupported_formats_is_an_error(tmp_path: Path) -> None:
    root = layout(tmp_path / "data", "a", "b", "phone/")
    for index in range(4):
        (root / "phone" / f"{index}.heic").write_bytes(b"\0\0\0\x18ftypheic")
    with pytest.raises(DataError, match=r"too few readable images in phone \(0\).*phone has 4 files in unsupported formats"):
        scan(root)
    assert scan(root, selection=Selection(exclude=("phone",))).labels == ("a", "b")
