"""Detection of segmentation masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgetl.data.content.colors import count_colors
from edgetl.data.folder import scan
from tests.data.conftest import fill


def photo(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)


def mask(path: Path, *values: int, seed: int = 0, palette: bool = False) -> None:
    """Write an image of blocks with a few gray levels, or with palette colors on black."""
    path.parent.mkdir(parents=True, exist_ok=True)
    chosen = np.random.default_rng(seed).choice(values or (0, 255), (8, 8)).astype(np.uint8)
    image = Image.fromarray(chosen.repeat(8, 0).repeat(8, 1))
    if palette:
        image = Image.fromarray(
            np.where(np.asarray(image) > 0, np.asarray(image) % 3 + 1, 0).astype(np.uint8)[:, :64] * (np.arange(64) > 40)
        )
        image = image.convert("L").convert("P")
        image.putpalette([0, 0, 0, 200, 0, 0, 0, 200, 0, 0, 0, 200])
    image.save(path)


MASKS = [
    ("cat/a.jpg", "cat/a.png"),
    ("cat/a.jpg", "cat/a.bmp"),
    ("cat/benign (1).png", "cat/benign (1)_mask.png"),
    ("cat/a.png", "cat/a_mask_1.png"),
    ("cat/a.jpg", "cat/a_segmentation.png"),
    ("cat/images/a.png", "cat/masks/a.png"),
    ("cat/Imgs/a.jpg", "cat/Ground-Truth/a.png"),
    ("cat/a.jpg", "cat/SegmentationClass/a.png"),
    ("cat/a.jpg", "dog/masks/a.jpg"),
]


@pytest.mark.parametrize(("image", "other"), MASKS, ids=str)
def test_an_image_with_two_gray_levels_and_the_name_of_another_image_is_a_mask(tmp_path: Path, image: str, other: str) -> None:
    root = fill(tmp_path / "data", "cat", "dog")
    photo(root / image)
    mask(root / other)
    found = scan(root)
    assert sum(found.counts().values()) == 7
    assert [(note.reason, note.used, note.examples) for note in found.notes] == [("mask", False, (other,))]


@pytest.mark.parametrize("values", [(0, 1), (0, 1, 2), (38, 75), (0, 60, 120, 180, 240)], ids=str)
def test_masks_with_several_gray_levels_are_detected(tmp_path: Path, values: tuple[int, ...]) -> None:
    root = fill(tmp_path / "data", "cat", "dog")
    photo(root / "cat" / "a.jpg")
    mask(root / "cat" / "a.png", *values)
    assert [note.reason for note in scan(root).notes] == ["mask"]


def test_a_palette_mask_is_detected(tmp_path: Path) -> None:
    root = fill(tmp_path / "data", "cat", "dog")
    photo(root / "cat" / "a.jpg")
    mask(root / "cat" / "a.png", palette=True)
    assert [note.reason for note in scan(root).notes] == ["mask"]


def test_photos_with_equal_names_are_not_masks(tmp_path: Path) -> None:
    root = fill(tmp_path / "data", "cat", "dog")
    for name, seed in (("a.jpg", 1), ("a.png", 2), ("a_mask.png", 3), ("masks/a.png", 4)):
        photo(root / "cat" / name, seed)
    found = scan(root)
    assert found.counts()["cat"] == 7 and found.notes == ()


def test_black_and_white_drawings_without_photos_are_images(tmp_path: Path) -> None:
    root = tmp_path / "data"
    for index in range(6):
        mask(root / ("letters" if index % 2 else "masks") / f"{index}.png", seed=index)
    found = scan(root)
    assert found.counts() == {"letters": 3, "masks": 3} and found.notes == ()


def test_a_mask_without_a_photo_is_an_image(tmp_path: Path) -> None:
    root = fill(tmp_path / "data", "cat", "dog")
    mask(root / "cat" / "alone_mask.png")
    assert scan(root).counts()["cat"] == 4


def test_a_jpeg_mask_has_few_main_colors_and_a_gray_photo_has_many(tmp_path: Path) -> None:
    mask(tmp_path / "mask.jpg")
    photo(tmp_path / "photo.png")
    with Image.open(tmp_path / "mask.jpg") as stored, Image.open(tmp_path / "photo.png") as gray:
        few, many = count_colors(stored.convert("RGB")), count_colors(gray.convert("L").convert("RGB"))
    assert few.main <= 8 < 100 < many.main and few.plain and many.plain


def test_colors_are_counted_on_a_grid() -> None:
    assert count_colors(Image.new("RGB", (4000, 3000), "red")).distinct == 1
    narrow = count_colors(Image.new("RGB", (1, 5000)))
    assert (narrow.distinct, narrow.main, narrow.plain) == (1, 1, True)


def test_drawings_with_mask_names_and_without_photos_are_kept(tmp_path: Path) -> None:
    root = tmp_path / "data"
    for index in range(3):
        for label in ("masks", "hats"):
            mask(root / label / f"{label}{index}.png", seed=index)
    assert scan(root).counts() == {"hats": 3, "masks": 3}
