"""Data audit: perceptual hashes, copies, flaws, series, leakage and the cleaned list."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter

from edgetl.data.audit.audit import FeatureFindings, audit
from edgetl.data.audit.cleaned import cleaned_csv, is_cleaned_list
from edgetl.data.audit.copies import Pair, find_copies, find_identical
from edgetl.data.audit.dropped import Drop
from edgetl.data.audit.result import AuditReport, LabelIssue
from edgetl.data.content.perceptual_hash import distances, near_pairs, orient, orient_pixels, perceptual_hash
from edgetl.data.content.registration import FINE, correlate, find_details, make_thumbnail
from edgetl.data.folder import ImageFolder, scan, scan_without_limits
from edgetl.data.split import split
from edgetl.data.table.rows import Table
from edgetl.data.table.scan import scan_table
from edgetl.errors import DataError
from edgetl.train.config.options import DataConfig
from edgetl.train.config.tasks import check_leakage


def photo(seed: int, size: tuple[int, int] = (120, 96)) -> Image.Image:
    """Return an image with details of several sizes, like those of a photo."""
    random, layers = np.random.default_rng(seed), np.zeros((size[1], size[0], 3))
    for cells in (4, 8, 16, 32):
        noise = Image.fromarray(random.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        layers += np.asarray(noise.resize(size, Image.Resampling.BICUBIC), float) / 4
    return Image.fromarray(layers.astype(np.uint8))


def save(image: Image.Image, path: Path, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Folder with two classes of five different photos."""
    for seed in range(10):
        save(photo(seed), tmp_path / "photos" / ("cat" if seed < 5 else "dog") / f"{seed}.png")
    return tmp_path / "photos"


def check(folder: ImageFolder, *pairs: Pair) -> AuditReport:
    copies = [*find_identical(folder.samples), *find_copies(folder.samples)]
    return audit(folder, copies, FeatureFindings(pairs=pairs)).report


def test_the_hash_of_a_turned_image_is_the_turned_hash() -> None:
    gray = np.asarray(photo(1, (32, 32)).convert("L"))
    plain = np.array([perceptual_hash(gray)], np.uint64)
    for orientation in range(8):
        assert int(orient(plain, orientation)[0]) == perceptual_hash(orient_pixels(gray, orientation))


def test_near_pairs_equal_those_of_a_comparison_of_all_pairs() -> None:
    random = np.random.default_rng(0)
    base = random.integers(0, 2**63, 40, dtype=np.uint64)
    flips = np.array([sum(1 << int(bit) for bit in random.choice(64, count, replace=False)) for count in range(40)], np.uint64)
    hashes = np.concatenate([base, base ^ flips])
    first, second = np.triu_indices(len(hashes), 1)
    expected = np.stack([first, second], axis=1)[distances(hashes[first], hashes[second]) <= 8]
    assert near_pairs(hashes, 8).tolist() == expected.tolist()


@pytest.mark.parametrize("orientation", [1, 6])
def test_near_pairs_of_turned_images_are_found_once(orientation: int) -> None:
    random = np.random.default_rng(1)
    base = random.integers(0, 2**63, 30, dtype=np.uint64)
    hashes = np.concatenate([base, orient(base, orientation)])
    first, second = np.triu_indices(len(hashes), 1)
    turned = orient(hashes, orientation)
    near = (distances(hashes[first], turned[second]) <= 8) | (distances(turned[first], hashes[second]) <= 8)
    assert near_pairs(hashes, 8, orientation=orientation).tolist() == np.stack([first, second], axis=1)[near].tolist()


def test_the_search_for_copies_reports_its_progress(photos: Path) -> None:
    save(photo(3), photos / "cat" / "copy.jpg", quality=60)
    calls: list[tuple[str, int, int]] = []
    split(scan(photos), progress=lambda *call: calls.append(call))
    assert ("searching copies", 8, 8) in calls and calls[-1][0] == "comparing copies" and calls[-1][1] == calls[-1][2] > 0


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "resized": lambda image: image.resize((90, 72)),
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "turned by 90": lambda image: image.transpose(Image.Transpose.ROTATE_90),
    "turned by 180": lambda image: image.transpose(Image.Transpose.ROTATE_180),
    "brighter": lambda image: image.point(lambda value: min(255, value + 8)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_is_found_and_different_photos_are_not(photos: Path, change: str) -> None:
    save(CHANGES[change](photo(3)), photos / "cat" / "changed.jpg", quality=60)
    (found,) = check(scan(photos)).copies
    assert found.kind == "copy" and found.files == ("cat/3.png", "cat/changed.jpg") and not found.conflict


def test_a_crop_correlates_with_its_photo_and_other_photos_do_not() -> None:
    whole, part, other = photo(1), photo(1).crop((14, 12, 110, 88)), photo(2)
    for band in (None, FINE):
        details = [find_details(make_thumbnail(image), *([band] if band else [])) for image in (whole, part, other)]
        assert correlate(details[0], details[1]) > 0.85 and correlate(details[0], details[2]) < 0.7


def test_copies_with_other_colors_are_not_copies(photos: Path) -> None:
    red, green, blue = photo(3).split()
    save(Image.merge("RGB", (blue.point(lambda value: value // 2), red, green)), photos / "cat" / "colors.png")
    assert not check(scan(photos)).copies


def test_copies_with_different_labels_are_a_conflict_and_leave_the_cleaned_list(photos: Path) -> None:
    save(photo(3), photos / "dog" / "other.jpg", quality=80)
    report = check(scan(photos))
    assert [item.files for item in report.copies if item.conflict] == [("cat/3.png", "dog/other.jpg")]
    assert {item.file for item in report.removed} == {"cat/3.png", "dog/other.jpg"}


def test_flaws_are_reported_with_their_values(photos: Path) -> None:
    save(photo(20).filter(ImageFilter.GaussianBlur(6)), photos / "cat" / "blurred.png")
    save(photo(21).point(lambda value: value // 9), photos / "cat" / "dark.png")
    save(Image.new("RGB", (120, 96), "gray"), photos / "dog" / "gray.png")
    save(photo(22, (900, 600)), photos / "dog" / "large.png")
    found = {item.file: item.flaw for item in check(scan(photos)).flaws}
    assert found == {"cat/blurred.png": "blurred", "cat/dark.png": "dark", "dog/gray.png": "uniform", "dog/large.png": "odd-size"}


def test_broken_files_and_small_classes_are_findings_and_no_errors(tmp_path: Path) -> None:
    save(photo(1), tmp_path / "few" / "cat" / "a.png")
    (tmp_path / "few" / "cat" / "b.png").write_bytes(b"no image")
    report = check(scan_without_limits(tmp_path / "few"))
    assert [item.file for item in report.broken] == ["cat/b.png"] and report.small_classes == ("cat",)


def test_uniform_images_with_different_labels_are_flaws_and_no_conflict(photos: Path) -> None:
    for name in ("cat/gray.png", "cat/again.png", "dog/gray.png"):
        save(Image.new("RGB", (120, 96), "gray"), photos / name)
    report = check(scan(photos))
    assert [(item.files, item.conflict) for item in report.copies] == [(("cat/again.png", "cat/gray.png"), False)]


def test_an_empty_class_is_named_and_does_not_count_for_the_imbalance(photos: Path) -> None:
    (photos / "fox").mkdir()
    save(photo(20), photos / "dog" / "more.png")
    report = check(scan_without_limits(photos))
    assert (report.empty_classes, report.small_classes, report.imbalance) == (["fox"], ("cat", "dog"), 1.2)


def test_dropped_kinds_leave_the_cleaned_list_and_the_others_are_counted(photos: Path) -> None:
    save(photo(21).point(lambda value: value // 9), photos / "cat" / "dark.png")
    folder = scan(photos)
    issues = tuple(
        LabelIssue(file=f"cat/{number}.png", label="cat", suggested="dog", given_probability=0, suggested_probability=1, strong=number == 3)
        for number in (3, 4)
    )
    findings = FeatureFindings(pairs=(Pair(0, 1, "near-duplicate", 0.9),), label_issues=issues)
    report = audit(folder, [], findings).report
    assert not report.removed
    assert report.remaining == {"near-duplicates": 1, "label-errors": 2, "strong-label-errors": 1, "dark": 1, "small-classes": 2}
    found = audit(folder, [], findings, drop=("near-duplicates", "strong-label-errors", "dark"))
    assert {item.file: item.reason for item in found.report.removed} == {
        "cat/1.png": "near-duplicate of cat/0.png",
        "cat/3.png": "possible label error: cat, dog?",
        "cat/dark.png": "dark: brightness 0.05",
    }
    assert found.report.remaining == {"label-errors": 1, "small-classes": 2} and "dark.png" not in cleaned_csv(folder, found.removed, {})
    everything: tuple[Drop, ...] = ("small-classes",)
    assert not audit(folder, [], findings, drop=everything).report.remaining


def _shot(path: Path, seed: int, moment: str) -> None:
    exif = Image.Exif()
    exif[0x010F], exif[0x0110] = "Maker", "Model"
    exif.get_ifd(0x8769)[0x9003] = moment
    save(photo(seed), path, exif=exif)


def test_photos_of_one_camera_within_seconds_are_a_burst(photos: Path) -> None:
    for number, moment in enumerate(("10:00:00", "10:00:02", "10:30:00")):
        _shot(photos / "cat" / f"shot{number}.jpg", 30 + number, f"2026:05:01 {moment}")
    (burst,) = check(scan(photos)).series
    assert burst.source == "burst" and burst.name == "Maker Model" and burst.files == ("cat/shot0.jpg", "cat/shot1.jpg")


def test_numbered_names_are_series_unless_they_are_the_names_of_classes(photos: Path) -> None:
    for seed in range(12):
        save(photo(40 + seed), photos / "dog" / f"visit{seed // 3}_{seed:03}.png")
        save(photo(60 + seed), photos / "cat" / f"cat_{seed}.png")
    assert [(item.name, len(item.files)) for item in check(scan(photos)).series] == [(f"visit{number}", 3) for number in range(4)]


@pytest.fixture
def ready_made(tmp_path: Path) -> Path:
    """Ready-made splits with an identical image, a copy and a crop of training images in the test."""
    root = tmp_path / "ready"
    for seed in range(8):
        save(photo(seed), root / "train" / ("cat" if seed < 4 else "dog") / f"{seed}.png")
        save(photo(100 + seed), root / "test" / ("cat" if seed < 4 else "dog") / f"{seed}.png")
    save(photo(0), root / "test" / "cat" / "same.png")
    save(photo(1), root / "test" / "cat" / "copy.jpg", quality=70)
    save(photo(2).crop((10, 8, 108, 86)), root / "test" / "cat" / "crop.png")
    return root


def test_leakage_counts_each_image_once_at_its_lowest_level(ready_made: Path) -> None:
    folder = scan(ready_made)
    names = [sample.path.relative_to(ready_made).as_posix() for sample in folder.samples]
    crop = Pair(names.index("train/cat/2.png"), names.index("test/cat/crop.png"), "near-duplicate", 0.9)
    (test,) = check(folder, crop).leakage
    assert (test.part, test.images, test.identical, test.near_duplicates, test.same_group) == ("test", 11, 1, 2, 0)


def test_the_cleaned_list_is_a_table_that_keeps_the_test_images(ready_made: Path, tmp_path: Path) -> None:
    folder = scan(ready_made)
    found = audit(folder, [*find_identical(folder.samples), *find_copies(folder.samples)], FeatureFindings())
    table = tmp_path / "keep.csv"
    table.write_text(cleaned_csv(folder, found.removed, found.groups), "utf-8")
    read = scan_table(ready_made, Table(table, "classification"))
    names = {sample.path.relative_to(ready_made).as_posix() for sample in read.samples}
    assert is_cleaned_list(table) and read.labels == ("cat", "dog")
    assert {item.file for item in found.report.removed} == {"train/cat/0.png", "train/cat/1.png"}
    assert names == {sample.path.relative_to(ready_made).as_posix() for sample in folder.samples} - {"train/cat/0.png", "train/cat/1.png"}
    assert {sample.part for sample in read.samples} == {"train", "test"}


def test_changed_copies_stay_in_one_split_unless_they_are_ignored(photos: Path) -> None:
    for seed in range(5):
        for number in range(3):
            save(photo(seed).resize((110 - 8 * number, 90)), photos / "cat" / f"copy{seed}_{number}.jpg", quality=80)
    folder = scan(photos)
    sets = [{f"cat/{seed}.png", *(f"cat/copy{seed}_{number}.jpg" for number in range(3))} for seed in range(5)]

    def divided(*, together: bool) -> int:
        splits = split(folder, val=0.3, test=0.2, together=together)
        parts = [{sample.path.relative_to(photos).as_posix() for sample in part} for part in (splits.train, splits.val, splits.test)]
        return sum(sum(not part.isdisjoint(members) for part in parts) > 1 for members in sets)

    assert divided(together=True) == 0 < divided(together=False)


def test_test_images_that_are_copies_of_training_images_are_an_error_unless_accepted(ready_made: Path) -> None:
    splits = split(scan(ready_made))
    assert splits.leaked == ("test/cat/copy.jpg",) and splits.moved == ("train/cat/0.png",)
    with pytest.raises(DataError, match=r"1 of 11 test images \(9.1%\) are copies of training images, such as test/cat/copy.jpg"):
        check_leakage(splits, DataConfig())
    check_leakage(splits, DataConfig(allow_leakage=True))
