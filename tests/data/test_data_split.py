"""Train, validation and test splits: deterministic, stratified, with copies of an image in one split."""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetl.data.folder import ImageFolder, Part, Sample, scan
from edgetl.data.split import Splits, split
from edgetl.errors import ConfigError
from tests.data.conftest import fill

ROOT = Path("data")
PARTS: tuple[Part, ...] = ("train", "val", "test")


def content(image: object) -> str:
    return hashlib.sha256(str(image).encode()).hexdigest()


def folder(samples: list[Sample], labels: tuple[str, ...] = ("a", "b", "c")) -> ImageFolder:
    return ImageFolder(ROOT, labels, tuple(sorted(samples, key=lambda sample: sample.path)), ())


def distinct(*counts: int) -> ImageFolder:
    """Return a folder with this number of different images in each class."""
    return folder(
        [Sample(ROOT / str(label) / f"{index:04d}", label, content((label, index))) for label, n in enumerate(counts) for index in range(n)]
    )


def contents(samples: tuple[Sample, ...]) -> set[str]:
    return {sample.content for sample in samples}


def sizes(splits: Splits, label: int) -> tuple[int, int, int]:
    """Count the images of a class in train, val and test."""
    train, val, test = (sum(sample.label == label for sample in splits.part(part)) for part in PARTS)
    return train, val, test


# The number of distinct images is small: many samples are copies, some with two labels.
FOLDERS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 25)), min_size=1, max_size=60).map(
    lambda pairs: folder(
        [Sample(ROOT / str(label) / f"{index:04d}", label, content(number)) for index, (label, number) in enumerate(pairs)]
    )
)
SHARES = st.tuples(st.floats(0.01, 0.5), st.floats(0.0, 0.5))


# --- properties of every split ---------------------------------------------------------------------------------------------------


@given(FOLDERS, SHARES, st.integers(0, 3))
@settings(deadline=None, max_examples=60)
def test_copies_of_an_image_are_in_one_split(data: ImageFolder, shares: tuple[float, float], seed: int) -> None:
    result = split(data, seed=seed, val=shares[0], test=shares[1])
    train, val, test = (contents(result.part(part)) for part in PARTS)
    assert not (train & val or train & test or val & test)


@given(FOLDERS, SHARES, st.integers(0, 3))
@settings(deadline=None, max_examples=60)
def test_every_image_is_in_exactly_one_split(data: ImageFolder, shares: tuple[float, float], seed: int) -> None:
    result = split(data, seed=seed, val=shares[0], test=shares[1])
    assert Counter((*result.train, *result.val, *result.test)) == Counter(data.samples)


@given(FOLDERS, SHARES)
@settings(deadline=None, max_examples=60)
def test_every_class_keeps_an_image_in_train(data: ImageFolder, shares: tuple[float, float]) -> None:
    result = split(data, val=shares[0], test=shares[1])
    assert {sample.label for sample in result.train} == {sample.label for sample in data.samples}


@given(FOLDERS)
@settings(deadline=None, max_examples=60)
def test_the_split_does_not_depend_on_file_names_or_order(data: ImageFolder) -> None:
    renamed = [Sample(ROOT / content((sample.path, "other name")), sample.label, sample.content) for sample in data.samples]
    one, other = split(data), split(folder(renamed))
    assert [Counter((s.content, s.label) for s in one.part(p)) for p in PARTS] == [
        Counter((s.content, s.label) for s in other.part(p)) for p in PARTS
    ]


@given(FOLDERS)
@settings(deadline=None, max_examples=60)
def test_an_image_with_two_labels_is_reported_once_and_its_copies_are_in_train(data: ImageFolder) -> None:
    labels: dict[str, set[int]] = {}
    for sample in data.samples:
        labels.setdefault(sample.content, set()).add(sample.label)
    conflicting = {name for name, found in labels.items() if len(found) > 1}
    result = split(data)
    assert len(result.conflicts) == len(conflicting)
    assert not conflicting & contents((*result.val, *result.test))


# --- seeds and ratios --------------------------------------------------------------------------------------------------------------


def test_equal_seeds_give_equal_splits() -> None:
    assert split(distinct(40, 40), seed=5) == split(distinct(40, 40), seed=5)


def test_another_seed_gives_another_split() -> None:
    assert contents(split(distinct(40, 40), seed=1).val) != contents(split(distinct(40, 40), seed=2).val)


GOLDEN_VAL = ["data/0/0000", "data/0/0009", "data/1/0001", "data/1/0004"]
GOLDEN_TEST = ["data/0/0005", "data/0/0008", "data/1/0007", "data/1/0009"]


def test_the_split_is_the_same_in_every_release() -> None:
    # With another split a new release would evaluate on training images of an old run.
    result = split(distinct(10, 10), seed=0)
    assert [sample.path.as_posix() for sample in result.val] == GOLDEN_VAL
    assert [sample.path.as_posix() for sample in result.test] == GOLDEN_TEST


@pytest.mark.parametrize(("val", "test"), [(0.15, 0.15), (0.1, 0.3), (0.5, 0.5), (0.3, 0.0)])
def test_each_class_is_split_by_the_ratios(val: float, test: float) -> None:
    result = split(distinct(200, 60, 20), val=val, test=test)
    for label, count in enumerate((200, 60, 20)):
        train_n, val_n, test_n = sizes(result, label)
        assert abs(val_n - count * val) <= 1 and abs(test_n - count * test) <= 1
        assert train_n == count - val_n - test_n >= 1


@pytest.mark.parametrize("count", range(3, 20))
def test_a_class_with_three_or_more_images_is_in_every_split(count: int) -> None:
    assert min(sizes(split(distinct(count, 50)), 0)) >= 1


def test_thirty_images_of_three_classes_are_rounded_to_two_of_each_class() -> None:
    splits = split(distinct(10, 10, 10))
    assert [len(splits.part(part)) for part in PARTS] == [18, 6, 6]


def test_a_class_with_two_images_is_in_train_and_val() -> None:
    assert sizes(split(distinct(2, 50)), 0) == (1, 1, 0)


def test_a_class_with_one_image_is_in_train() -> None:
    assert sizes(split(distinct(1, 50)), 0) == (1, 0, 0)


def test_all_copies_of_the_only_image_of_a_class_are_in_train() -> None:
    copies = [Sample(ROOT / "a" / str(index), 0, content("same")) for index in range(9)]
    assert sizes(split(folder([*copies, *distinct(0, 20).samples])), 0) == (9, 0, 0)


def test_a_test_ratio_of_zero_gives_no_test_images() -> None:
    assert split(distinct(30, 30), test=0.0).test == ()


@pytest.mark.parametrize(
    ("val", "test"), [(0.0, 0.1), (-0.1, 0.1), (0.6, 0.1), (0.1, -0.1), (0.1, 0.51), (float("nan"), 0.1), (0.1, float("nan"))]
)
def test_the_error_for_a_ratio_out_of_range_shows_the_range(val: float, test: float) -> None:
    with pytest.raises(ConfigError, match=rf"val {val} and test {test} are out of range: val must be above 0"):
        split(distinct(10, 10), val=val, test=test)


def test_a_label_conflict_lists_the_files_and_the_labels() -> None:
    twins = [Sample(ROOT / "a" / "1.png", 0, content("x")), Sample(ROOT / "b" / "2.png", 1, content("x"))]
    (conflict,) = split(folder([*twins, *distinct(9, 9).samples])).conflicts
    assert (conflict.paths, conflict.labels) == (("a/1.png", "b/2.png"), ("a", "b"))


def test_copies_with_one_label_are_not_a_conflict() -> None:
    twins = [Sample(ROOT / "a" / name, 0, content("x")) for name in ("1.png", "2.png")]
    assert split(folder([*twins, *distinct(9, 9).samples])).conflicts == ()


def test_the_default_seed_is_0_and_a_folder_without_copies_has_no_notes() -> None:
    assert split(distinct(40, 40)) == split(distinct(40, 40), seed=0)
    assert split(distinct(9, 9)).notes == ()


# --- ready-made splits -----------------------------------------------------------------------------------------------------------


def ready(train: int = 10, val: int = 0, test: int = 0) -> list[Sample]:
    """Return two classes with this number of different images in each ready-made split."""
    return [
        Sample(ROOT / part / str(label) / f"{index:03d}", label, content((part, label, index)), part)
        for part, count in zip(PARTS, (train, val, test), strict=True)
        for label in range(2)
        for index in range(count)
    ]


def test_ready_made_splits_do_not_depend_on_the_ratios_and_the_seed() -> None:
    data = folder(ready(10, 3, 4))
    result = split(data, seed=9, val=0.5, test=0.5)
    assert all(sample.part == part for part in PARTS for sample in result.part(part))
    assert [len(result.part(part)) for part in PARTS] == [20, 6, 8]
    assert (result.moved, result.conflicts) == ((), ())


def test_a_missing_val_split_is_taken_from_train() -> None:
    result = split(folder(ready(20, 0, 5)), val=0.2)
    assert {sample.part for sample in (*result.train, *result.val)} == {"train"}
    assert sizes(result, 0) == sizes(result, 1) == (16, 4, 5)


def test_the_seed_decides_which_images_a_missing_val_split_takes() -> None:
    data = folder(ready(20, 0, 5))
    zero, one = (split(data, seed=seed) for seed in (0, 1))
    assert contents(zero.val) != contents(one.val)
    plain = [Sample(sample.path, sample.label, sample.content) for sample in ready(20)]
    assert [sample.content for sample in one.val] == [sample.content for sample in split(folder(plain), seed=1, test=0.0).val]


def test_an_image_outside_the_ready_made_splits_is_in_train() -> None:
    other = Sample(ROOT / "other.png", 0, content("other"))
    twins = [Sample(ROOT / "again.png", 0, content("x")), Sample(ROOT / "train" / "0" / "x.png", 0, content("x"), "train")]
    result = split(folder([*ready(10, 5, 5), other, *twins]))
    assert {other, *twins} <= set(result.train) and result.moved == ()


def test_a_missing_test_split_stays_empty() -> None:
    assert split(folder(ready(20, 5, 0))).test == ()


@pytest.mark.parametrize(
    ("earlier", "later"),
    [("train", "val"), ("train", "test"), ("val", "test")],
)
def test_an_image_in_two_ready_made_splits_stays_in_the_later_one(earlier: Part, later: Part) -> None:
    copies = [Sample(ROOT / part / "0" / "copy.png", 0, content("x"), part) for part in (earlier, later)]
    result = split(folder([*ready(10, 5, 5), *copies]))
    assert [part for part in PARTS if content("x") in contents(result.part(part))] == [later]
    assert result.moved == (f"{earlier}/0/copy.png",)


def test_copies_within_a_ready_made_split_are_kept() -> None:
    copies = [Sample(ROOT / "train" / "0" / name, 0, content("x"), "train") for name in ("1.png", "2.png")]
    result = split(folder([*ready(10, 5, 5), *copies]))
    assert sum(sample.content == content("x") for sample in result.train) == 2
    assert result.moved == ()


@given(st.lists(st.tuples(st.sampled_from(PARTS), st.integers(0, 1), st.integers(0, 20)), max_size=40), st.booleans())
@settings(deadline=None, max_examples=60)
def test_copies_in_ready_made_splits_are_in_one_split(rows: list[tuple[Part, int, int]], has_val: bool) -> None:
    kept = [row for row in rows if has_val or row[0] != "val"]
    samples = [Sample(ROOT / part / str(label) / f"x{index}", label, content(n), part) for index, (part, label, n) in enumerate(kept)]
    result = split(folder([*samples, *ready(3)]))
    train, val, test = (contents(result.part(part)) for part in PARTS)
    assert not (train & val or train & test or val & test)
    dropped = contents(result.folder.samples) - (train | val | test)
    labels = {name: {sample.label for sample in samples if sample.content == name} for name in dropped}
    assert all(len(found) > 1 for found in labels.values()), "only an image with two labels may be dropped"


def test_three_images_of_a_class_are_in_three_splits() -> None:
    samples = [Sample(ROOT / str(label) / f"{n}", label, content(10 * label + n)) for label in (0, 1) for n in range(3)]
    result = split(folder(samples), val=0.5)
    for part in PARTS:
        assert {sample.label for sample in result.part(part)} == {0, 1}


def test_an_image_with_two_labels_is_dropped_from_ready_made_test_split() -> None:
    twins = [Sample(ROOT / "train" / "0" / "twin", 0, content(900), "train"), Sample(ROOT / "test" / "1" / "twin", 1, content(900), "test")]
    result = split(folder([*ready(3), *twins]))
    assert twins[0] in result.train and twins[1] not in result.test
    assert result.moved == ("test/1/twin",) and len(result.conflicts) == 1


def test_copies_dropped_from_ready_made_splits_are_reported(tmp_path: Path) -> None:
    root = tmp_path / "data"
    fill(root / "train", "cat", "dog")
    fill(root / "test", "cat", "dog", seed=50)
    shutil.copy(root / "test" / "cat" / "001.png", root / "train" / "cat" / "copy.png")
    (note,) = (note for note in split(scan(root)).notes if not note.used)
    assert (note.reason, note.count, note.examples) == ("copy", 1, ("train/cat/copy.png",))
