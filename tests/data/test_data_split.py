"""Dividing a folder: the same for every call, stratified, and never one picture in two splits."""

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


def content(picture: object) -> str:
    return hashlib.sha256(str(picture).encode()).hexdigest()


def folder(samples: list[Sample], labels: tuple[str, ...] = ("a", "b", "c")) -> ImageFolder:
    return ImageFolder(ROOT, labels, tuple(sorted(samples, key=lambda sample: sample.path)), ())


def distinct(*counts: int) -> ImageFolder:
    """A folder with this many different pictures in each class."""
    return folder(
        [Sample(ROOT / str(label) / f"{index:04d}", label, content((label, index))) for label, n in enumerate(counts) for index in range(n)]
    )


def contents(samples: tuple[Sample, ...]) -> set[str]:
    return {sample.content for sample in samples}


def sizes(splits: Splits, label: int) -> tuple[int, int, int]:
    """Images of one class in train, val and test."""
    train, val, test = (sum(sample.label == label for sample in splits.part(part)) for part in PARTS)
    return train, val, test


# Pictures are drawn from few, so that many are copies, some of them under two labels.
FOLDERS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 25)), min_size=1, max_size=60).map(
    lambda pairs: folder(
        [Sample(ROOT / str(label) / f"{index:04d}", label, content(number)) for index, (label, number) in enumerate(pairs)]
    )
)
SHARES = st.tuples(st.floats(0.01, 0.5), st.floats(0.0, 0.5))


# --- properties of every division ------------------------------------------------------------------------------------------------


@given(FOLDERS, SHARES, st.integers(0, 3))
@settings(deadline=None, max_examples=60)
def test_no_picture_stands_in_two_splits(data: ImageFolder, shares: tuple[float, float], seed: int) -> None:
    result = split(data, seed=seed, val=shares[0], test=shares[1])
    train, val, test = (contents(result.part(part)) for part in PARTS)
    assert not (train & val or train & test or val & test)


@given(FOLDERS, SHARES, st.integers(0, 3))
@settings(deadline=None, max_examples=60)
def test_every_image_stands_in_exactly_one_split(data: ImageFolder, shares: tuple[float, float], seed: int) -> None:
    result = split(data, seed=seed, val=shares[0], test=shares[1])
    assert Counter((*result.train, *result.val, *result.test)) == Counter(data.samples)


@given(FOLDERS, SHARES)
@settings(deadline=None, max_examples=60)
def test_every_class_keeps_an_image_in_train(data: ImageFolder, shares: tuple[float, float]) -> None:
    result = split(data, val=shares[0], test=shares[1])
    assert {sample.label for sample in result.train} == {sample.label for sample in data.samples}


@given(FOLDERS)
@settings(deadline=None, max_examples=60)
def test_the_division_does_not_depend_on_file_names_or_order(data: ImageFolder) -> None:
    renamed = [Sample(ROOT / content((sample.path, "other name")), sample.label, sample.content) for sample in data.samples]
    one, other = split(data), split(folder(renamed))
    assert [Counter((s.content, s.label) for s in one.part(p)) for p in PARTS] == [
        Counter((s.content, s.label) for s in other.part(p)) for p in PARTS
    ]


@given(FOLDERS)
@settings(deadline=None, max_examples=60)
def test_a_picture_under_two_labels_is_reported_once_and_all_its_copies_are_in_train(data: ImageFolder) -> None:
    labels: dict[str, set[int]] = {}
    for sample in data.samples:
        labels.setdefault(sample.content, set()).add(sample.label)
    conflicting = {picture for picture, found in labels.items() if len(found) > 1}
    result = split(data)
    assert len(result.conflicts) == len(conflicting)
    assert not conflicting & contents((*result.val, *result.test))


# --- seeds and shares --------------------------------------------------------------------------------------------------------------


def test_equal_seeds_divide_equally() -> None:
    assert split(distinct(40, 40), seed=5) == split(distinct(40, 40), seed=5)


def test_another_seed_divides_differently() -> None:
    assert contents(split(distinct(40, 40), seed=1).val) != contents(split(distinct(40, 40), seed=2).val)


GOLDEN_VAL = ["data/0/0000", "data/0/0009", "data/1/0001", "data/1/0004"]
GOLDEN_TEST = ["data/0/0005", "data/0/0008", "data/1/0007", "data/1/0009"]


def test_the_division_is_the_same_in_every_release() -> None:
    # A changed division would let a new release evaluate on images that an old run was trained on.
    result = split(distinct(10, 10), seed=0)
    assert [sample.path.as_posix() for sample in result.val] == GOLDEN_VAL
    assert [sample.path.as_posix() for sample in result.test] == GOLDEN_TEST


@pytest.mark.parametrize(("val", "test"), [(0.15, 0.15), (0.1, 0.3), (0.5, 0.5), (0.3, 0.0)])
def test_each_class_is_divided_by_the_shares(val: float, test: float) -> None:
    result = split(distinct(200, 60, 20), val=val, test=test)
    for label, count in enumerate((200, 60, 20)):
        train_n, val_n, test_n = sizes(result, label)
        assert abs(val_n - count * val) <= 1 and abs(test_n - count * test) <= 1
        assert train_n == count - val_n - test_n >= 1


@pytest.mark.parametrize("count", range(3, 20))
def test_a_class_of_three_or_more_pictures_is_in_every_split(count: int) -> None:
    assert min(sizes(split(distinct(count, 50)), 0)) >= 1


def test_of_two_pictures_one_goes_to_train_and_one_to_val() -> None:
    assert sizes(split(distinct(2, 50)), 0) == (1, 1, 0)


def test_a_single_picture_goes_to_train() -> None:
    assert sizes(split(distinct(1, 50)), 0) == (1, 0, 0)


def test_copies_of_one_picture_are_one_so_that_all_of_them_go_to_train() -> None:
    copies = [Sample(ROOT / "a" / str(index), 0, content("same")) for index in range(9)]
    assert sizes(split(folder([*copies, *distinct(0, 20).samples])), 0) == (9, 0, 0)


def test_a_share_of_zero_asks_for_no_test_images() -> None:
    assert split(distinct(30, 30), test=0.0).test == ()


@pytest.mark.parametrize(
    ("val", "test"), [(0.0, 0.1), (-0.1, 0.1), (0.6, 0.1), (0.1, -0.1), (0.1, 0.51), (float("nan"), 0.1), (0.1, float("nan"))]
)
def test_a_share_out_of_range_is_refused_with_the_range(val: float, test: float) -> None:
    with pytest.raises(ConfigError, match=rf"val {val} and test {test} are shares: val lies in 0\.\.0\.5 \(not 0\), test in 0\.\.0\.5"):
        split(distinct(10, 10), val=val, test=test)


def test_a_conflict_names_the_files_and_the_labels() -> None:
    twins = [Sample(ROOT / "a" / "1.png", 0, content("x")), Sample(ROOT / "b" / "2.png", 1, content("x"))]
    (conflict,) = split(folder([*twins, *distinct(9, 9).samples])).conflicts
    assert (conflict.paths, conflict.labels) == (("a/1.png", "b/2.png"), ("a", "b"))


def test_copies_under_one_label_are_no_conflict() -> None:
    twins = [Sample(ROOT / "a" / name, 0, content("x")) for name in ("1.png", "2.png")]
    assert split(folder([*twins, *distinct(9, 9).samples])).conflicts == ()


# --- ready-made parts ------------------------------------------------------------------------------------------------------------


def ready(train: int = 10, val: int = 0, test: int = 0) -> list[Sample]:
    """Two classes with this many different pictures in each ready-made part."""
    return [
        Sample(ROOT / part / str(label) / f"{index:03d}", label, content((part, label, index)), part)
        for part, count in zip(PARTS, (train, val, test), strict=True)
        for label in range(2)
        for index in range(count)
    ]


def test_ready_made_parts_are_kept_whatever_the_shares_and_the_seed() -> None:
    data = folder(ready(10, 3, 4))
    result = split(data, seed=9, val=0.5, test=0.5)
    assert all(sample.part == part for part in PARTS for sample in result.part(part))
    assert [len(result.part(part)) for part in PARTS] == [20, 6, 8]
    assert (result.moved, result.conflicts) == ((), ())


def test_a_missing_val_is_taken_from_train_and_never_from_test() -> None:
    result = split(folder(ready(20, 0, 5)), val=0.2)
    assert {sample.part for sample in (*result.train, *result.val)} == {"train"}
    assert sizes(result, 0) == sizes(result, 1) == (16, 4, 5)


def test_a_missing_test_stays_empty() -> None:
    assert split(folder(ready(20, 5, 0))).test == ()


@pytest.mark.parametrize(
    ("earlier", "later"),
    [("train", "val"), ("train", "test"), ("val", "test")],
)
def test_a_picture_in_two_parts_stays_in_the_later_and_the_dropped_copy_is_named(earlier: Part, later: Part) -> None:
    copies = [Sample(ROOT / part / "0" / "copy.png", 0, content("x"), part) for part in (earlier, later)]
    result = split(folder([*ready(10, 5, 5), *copies]))
    assert [part for part in PARTS if content("x") in contents(result.part(part))] == [later]
    assert result.moved == (f"{earlier}/0/copy.png",)


def test_copies_within_one_part_are_kept_and_not_reported() -> None:
    copies = [Sample(ROOT / "train" / "0" / name, 0, content("x"), "train") for name in ("1.png", "2.png")]
    result = split(folder([*ready(10, 5, 5), *copies]))
    assert sum(sample.content == content("x") for sample in result.train) == 2
    assert result.moved == ()


@given(st.lists(st.tuples(st.sampled_from(PARTS), st.integers(0, 1), st.integers(0, 20)), max_size=40), st.booleans())
@settings(deadline=None, max_examples=60)
def test_no_picture_of_a_ready_made_folder_stands_in_two_splits(rows: list[tuple[Part, int, int]], has_val: bool) -> None:
    kept = [row for row in rows if has_val or row[0] != "val"]
    samples = [Sample(ROOT / part / str(label) / f"x{index}", label, content(n), part) for index, (part, label, n) in enumerate(kept)]
    result = split(folder([*samples, *ready(3)]))
    train, val, test = (contents(result.part(part)) for part in PARTS)
    assert not (train & val or train & test or val & test)
    dropped = contents(result.folder.samples) - (train | val | test)
    labels = {name: {sample.label for sample in samples if sample.content == name} for name in dropped}
    assert all(len(found) > 1 for found in labels.values()), "only a picture with two labels may be dropped"


def test_three_pictures_of_a_class_go_to_all_three_splits() -> None:
    samples = [Sample(ROOT / str(label) / f"{n}", label, content(10 * label + n)) for label in (0, 1) for n in range(3)]
    result = split(folder(samples), val=0.5)
    for part in PARTS:
        assert {sample.label for sample in result.part(part)} == {0, 1}


def test_a_ready_made_picture_with_two_labels_measures_nothing() -> None:
    twins = [Sample(ROOT / "train" / "0" / "twin", 0, content(900), "train"), Sample(ROOT / "test" / "1" / "twin", 1, content(900), "test")]
    result = split(folder([*ready(3), *twins]))
    assert twins[0] in result.train and twins[1] not in result.test
    assert result.moved == ("test/1/twin",) and len(result.conflicts) == 1


def test_copies_that_are_dropped_from_ready_made_splits_are_reported(tmp_path: Path) -> None:
    root = tmp_path / "data"
    fill(root / "train", "cat", "dog")
    fill(root / "test", "cat", "dog", seed=50)
    shutil.copy(root / "test" / "cat" / "001.png", root / "train" / "cat" / "copy.png")
    (note,) = (note for note in split(scan(root)).notes if not note.used)
    assert (note.reason, note.count, note.examples) == ("copy", 1, ("train/cat/copy.png",))
