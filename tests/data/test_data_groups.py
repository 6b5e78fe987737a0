"""Groups of images stay in one split, class ratios are kept, and groups in several ready-made splits are reported."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetl.data.folder import ImageFolder, Part, Sample
from edgetl.data.groups import count_groups, crossing_alarm, describe_grouping, group_by_path
from edgetl.data.loading import groups_of
from edgetl.data.split import Splits, split
from edgetl.errors import ConfigError

ROOT = Path("data")
PARTS: tuple[Part, ...] = ("train", "val", "test")


def sample(label: int, number: object, group: str = "", *, part: Part | None = None) -> Sample:
    content = hashlib.sha256(str(number).encode()).hexdigest()
    return Sample(ROOT / f"{group or 'x'}_{label}_{number}.png", label, content, part, group=group)


def folder(samples: list[Sample]) -> ImageFolder:
    ordered = tuple(sorted(samples, key=lambda item: item.path))
    return ImageFolder(ROOT, ("a", "b", "c"), ordered, (), grouping="column group")


def parts_of(splits: Splits) -> dict[str, set[Part]]:
    found: dict[str, set[Part]] = {}
    for name in PARTS:
        for item in splits.part(name):
            found.setdefault(item.group or item.content, set()).add(name)
    return found


GROUPED = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 12), st.integers(0, 30)), min_size=4, max_size=80).map(
    lambda rows: folder([sample(label, number, f"g{group}" if group else "") for label, group, number in dict.fromkeys(rows)])
)


@given(GROUPED, st.integers(0, 3))
@settings(deadline=None, max_examples=80)
def test_groups_and_copies_are_in_one_split_and_train_has_every_class(data: ImageFolder, seed: int) -> None:
    result = split(data, seed=seed)
    assert Counter((*result.train, *result.val, *result.test)) == Counter(data.samples)
    contents = [{item.content for item in result.part(part)} for part in PARTS]
    assert not (contents[0] & contents[1] or contents[0] & contents[2] or contents[1] & contents[2])
    assert all(len(parts) == 1 for parts in parts_of(result).values())
    assert {item.label for item in result.train} == {item.label for item in data.samples}


@pytest.mark.parametrize("seed", range(3))
def test_class_ratios_are_kept_with_groups(seed: int) -> None:
    rng = np.random.default_rng(seed)
    # Each patient has 1 to 8 images, mostly of one class.
    rows = [
        (patient, int((patient % 3 + (rng.random() < 0.1)) % 3), index) for patient in range(120) for index in range(rng.integers(1, 9))
    ]
    result = split(folder([sample(label, (patient, index), f"p{patient}") for patient, label, index in rows]), seed=seed)
    totals = Counter(label for _, label, _ in rows)
    for part in ("val", "test"):
        found = Counter(item.label for item in result.part(part))
        assert all(abs(found[label] / totals[label] - 0.15) < 0.03 for label in totals)


def test_a_class_with_three_groups_is_in_every_split_and_the_seed_changes_the_split() -> None:
    data = folder(
        [sample(label, (label, group, index), f"{label}-{group}") for label in (0, 1) for group in range(3) for index in range(4)]
    )
    results = [split(data, seed=seed) for seed in range(5)]
    assert all({item.label for item in result.part(part)} == {0, 1} for result in results for part in PARTS)
    assert len({tuple(item.path for item in result.val) for result in results}) > 1
    assert split(data, seed=2) == results[2]


# Number of images of each group of three classes: 20, 16 and 7 images.
SIZES = ((6, 4, 3, 3, 2, 1, 1), (5, 5, 2, 2, 1, 1), (3, 2, 1, 1))
GOLDEN_VAL = {0: ["03", "05", "13", "14", "21"], 1: ["02", "06", "12", "15", "21"]}
GOLDEN_TEST = {0: ["02", "06", "12", "15", "23"], 1: ["03", "05", "13", "14", "22"]}


@pytest.mark.parametrize("seed", [0, 1])
def test_the_split_of_groups_is_the_same_in_every_release(seed: int) -> None:
    """A fifth of each class is in val and in test, as well as whole groups allow."""
    rows = [(label, group, index) for label, sizes in enumerate(SIZES) for group, size in enumerate(sizes) for index in range(size)]
    result = split(
        folder([sample(label, (label, group, index), f"{label}{group}") for label, group, index in rows]), seed=seed, val=0.2, test=0.2
    )
    counts = [Counter(item.label for item in result.part(part)) for part in PARTS]
    assert counts == [{0: 12, 1: 10, 2: 4}, {0: 4, 1: 3, 2: 2}, {0: 4, 1: 3, 2: 1}]
    assert sorted({item.group for item in result.val}) == GOLDEN_VAL[seed]
    assert sorted({item.group for item in result.test}) == GOLDEN_TEST[seed]
    assert all(list(result.part(part)) == sorted(result.part(part), key=lambda item: item.path) for part in PARTS)


def test_a_group_with_an_image_of_two_labels_stays_in_train() -> None:
    rows = [sample(index % 2, index, f"p{index // 4}") for index in range(80)]
    for seed in range(4):
        result = split(folder([*rows, sample(1, 0, "p0"), sample(0, 5, "p7")]), seed=seed)
        assert not {"p0", "p1", "p7"} & {item.group for item in (*result.val, *result.test)}


def test_a_group_with_an_image_of_two_labels_stays_in_a_ready_made_train_split() -> None:
    rows = [sample(index % 2, index, f"p{index // 4}", part="train") for index in range(80)]
    result = split(folder([*rows, sample(1, 0, "p0", part="train"), sample(0, 99, part="train")]), val=0.2)
    assert "p0" not in {item.group for item in result.val} and len(result.train) + len(result.val) == 82 and len(result.conflicts) == 1
    assert list(result.train) == sorted(result.train, key=lambda item: item.path) and result.moved == ()
    assert len(result.val) == 16 and {item.label for item in result.val} == {0, 1}


def test_groups_with_images_of_two_labels_stay_in_train_beyond_its_ratio() -> None:
    """Two labels for each image of eight of the groups: train has 16 of 22 images before the other groups are dealt out."""
    unclear = [sample(label, index, f"u{index}") for index in range(8) for label in (0, 1)]
    result = split(folder([*unclear, *(sample(index % 2, ("clear", index), f"c{index}") for index in range(6))]))
    assert set(unclear) <= set(result.train) and len(result.val) + len(result.test) == 6


def test_groups_with_images_of_two_labels_count_for_the_ratio_of_train() -> None:
    """20 images: 14 are wanted in train, and ten of these have two labels."""
    unclear = [sample(label, index, f"u{index}") for index in range(5) for label in (0, 1)]
    result = split(folder([*unclear, *(sample(index % 2, ("clear", index), f"c{index}") for index in range(10))]))
    assert set(unclear) <= set(result.train)
    assert [len(result.part(part)) for part in PARTS] == [14, 4, 2]


@pytest.mark.parametrize("seed", range(8))
def test_a_rare_class_counts_as_much_as_a_common_one(seed: int) -> None:
    """Five groups of two images of a and one of b, and ten groups of three images of a: a fifth of each class is in val and in test."""
    rows = [sample(int(index == 2), (group, index), group) for group in (f"mixed{n}" for n in range(5)) for index in range(3)]
    rows += [sample(0, (group, index), group) for group in (f"plain{n}" for n in range(10)) for index in range(3)]
    result = split(folder(rows), seed=seed, val=0.2, test=0.2)
    assert [Counter(item.label for item in result.part(part)) for part in PARTS] == [{0: 24, 1: 3}, {0: 8, 1: 1}, {0: 8, 1: 1}]


def test_a_split_without_a_class_gets_the_smallest_group_of_train_and_nothing_else() -> None:
    """By the ratios val has the group of two images of class a. Test gets that of three, and keeps its three images of class b."""
    groups = [("a1", 0, 5), ("a2", 0, 3), ("a3", 0, 2), *((f"b{index:02d}", 1, 1) for index in range(20))]
    result = split(folder([sample(label, (group, index), group) for group, label, size in groups for index in range(size)]))
    assert [sorted({item.group for item in result.part(part) if item.label == 0}) for part in PARTS] == [["a1"], ["a3"], ["a2"]]
    assert [sum(item.label for item in result.part(part)) for part in PARTS] == [14, 3, 3]


def test_a_class_that_train_lacks_is_moved_with_its_group() -> None:
    """The group of four is in train first. Its class is then in val, because the other group must be in train for class b."""
    rows = [sample(0, index, "large") for index in range(4)] + [sample(label, ("small", label), "small") for label in (0, 1)]
    result = split(folder(rows), val=0.2, test=0.2)
    assert parts_of(result) == {"small": {"train"}, "large": {"val"}}


def test_groups_with_copies_of_an_image_are_merged() -> None:
    data = folder([sample(0, f"{group}{index}", group) for group in "abcdefgh" for index in range(3)] + [sample(0, "a0", "b")])
    found = parts_of(split(data))
    assert found["a"] == found["b"]


def test_images_without_a_group_have_no_group_numbers() -> None:
    samples = [sample(label, (label, index)) for label in (0, 1) for index in range(20)]
    assert groups_of(samples) is None
    assert count_groups(split(ImageFolder(ROOT, ("a", "b"), tuple(samples), ()))) is None


def test_groups_in_several_ready_made_splits_are_kept_and_counted() -> None:
    rows = [("train", "p1"), ("train", "p2"), ("val", "p2"), ("test", "p1"), ("test", "p1"), ("test", "p3")]
    data = folder([sample(index % 2, index, group, part=part) for index, (part, group) in enumerate(rows)])  # type: ignore[arg-type]
    result = split(data)
    assert [len(result.part(part)) for part in PARTS] == [2, 1, 3]
    alarm = crossing_alarm(result)
    assert alarm is not None and "2 of 3 groups" in alarm and "1 validation and 2 test images" in alarm
    grouping = count_groups(result)
    assert grouping is not None and (grouping.groups, grouping.crossing) == (3, 2)
    assert "2 of them are in several ready-made splits" in describe_grouping(grouping)


def test_a_missing_val_split_takes_whole_groups_from_train() -> None:
    rows = [sample(index % 2, index, f"p{index // 4}", part="train") for index in range(80)]
    result = split(folder([*rows, sample(0, 0, "p0", part="train")]), val=0.2)
    assert len(result.val) == 16 and all(len(parts) == 1 for parts in parts_of(result).values())
    assert crossing_alarm(result) is None


def test_a_path_pattern_defines_groups_and_unmatched_images_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    samples = tuple(Sample(ROOT / name, 0, name) for name in ("cat/p1_a.png", "cat/p1_b.png", "dog/p2_a.png", "dog/other.png"))
    found = group_by_path(ImageFolder(ROOT, ("cat", "dog"), samples, ()), r"/(p\d+)_")
    assert [item.group for item in found.samples] == ["p1", "p1", "p2", ""]
    assert "1 image without a group" in caplog.text and [note.examples for note in found.notes] == [("dog/other.png",)]
    whole = group_by_path(ImageFolder(ROOT, ("cat", "dog"), samples, ()), r"^\w+")
    assert [item.group for item in whole.samples] == ["cat", "cat", "dog", "dog"]


@pytest.mark.parametrize(("pattern", "message"), [("(", "neither a column nor a regular expression"), ("bird", "matches no path, such as")])
def test_an_invalid_or_unmatched_pattern_is_an_error(pattern: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        group_by_path(folder([sample(0, 1), sample(1, 2)]), pattern)


def test_group_numbers_are_equal_for_copies_of_an_image() -> None:
    found = groups_of([sample(0, 1, "a"), sample(0, 2, "a"), sample(0, 3), sample(1, 3), sample(0, 4, "b")])
    assert found is not None and found.tolist() == [0, 0, 1, 1, 2]


def test_describe_grouping_warns_without_groups() -> None:
    assert "none given. Images of one object" in describe_grouping(None)
    assert describe_grouping(None).endswith("Set --group of `edgetl train` to keep them together")
    assert describe_grouping(None, "anomaly").endswith("Give folders train/ and test/ to keep them together")
