"""Image decoding: pixel formats, orientations, kinds of input, content hash."""

from __future__ import annotations

import io
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from edgetl.core.images.decode import ImageInput, content_hash, load_image
from edgetl.errors import ImageError

ORIENTATION = 0x0112
IMAGE: NDArray[np.uint8] = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


def encode(image: Image.Image, format_: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


def pixel(source: Image.Image | bytes) -> tuple[int, ...]:
    """Return the color of the upper left pixel after loading."""
    red, green, blue = np.asarray(load_image(source))[0, 0]
    return int(red), int(green), int(blue)


def stored_as(image: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Return the pixels that a camera stores with this orientation, by the table of the EXIF standard (row 0 and column 0)."""
    stored = {
        1: image,
        2: image[:, ::-1],
        3: image[::-1, ::-1],
        4: image[::-1],
        5: image.transpose(1, 0, 2),
        6: image[:, ::-1].transpose(1, 0, 2),
        7: image[::-1, ::-1].transpose(1, 0, 2),
        8: image[::-1].transpose(1, 0, 2),
    }[orientation]
    return np.ascontiguousarray(stored)


def exif(orientation: int) -> bytes:
    block = Image.Exif()
    block[ORIENTATION] = orientation
    return block.tobytes()


# --- pixel formats ---------------------------------------------------------------------------------------------------------------


def test_gray_is_repeated_on_three_channels() -> None:
    assert pixel(encode(Image.new("L", (2, 2), 77))) == (77, 77, 77)


def test_gray_with_alpha_is_composited_over_white() -> None:
    assert pixel(encode(Image.new("LA", (2, 2), (100, 128)))) == (177, 177, 177)


@pytest.mark.parametrize(
    ("color", "expected"),
    [
        ((100, 0, 200, 128), (177, 127, 227)),
        ((100, 0, 200, 0), (255, 255, 255)),
        ((100, 0, 200, 255), (100, 0, 200)),
    ],
)
def test_rgba_is_composited_over_white(color: tuple[int, ...], expected: tuple[int, ...]) -> None:
    assert pixel(encode(Image.new("RGBA", (2, 2), color))) == expected


def test_palette_images_use_the_colors_of_the_palette() -> None:
    image = Image.new("P", (2, 2), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    assert pixel(encode(image)) == (10, 20, 30)


@pytest.mark.parametrize(("transparency", "expected"), [(1, (255, 255, 255)), (0, (10, 20, 30)), (bytes([255, 128]), (132, 137, 142))])
def test_palette_transparency_is_composited_over_white(transparency: int | bytes, expected: tuple[int, ...]) -> None:
    image = Image.new("P", (2, 2), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    assert pixel(encode(image, transparency=transparency)) == expected


def test_the_transparent_color_of_an_rgb_png_becomes_white() -> None:
    assert pixel(encode(Image.new("RGB", (2, 2), (1, 2, 3)), transparency=(1, 2, 3))) == (255, 255, 255)


@pytest.mark.parametrize(
    ("ink", "expected"),
    [
        ((0, 0, 0, 0), (255, 255, 255)),
        ((255, 0, 0, 0), (0, 255, 255)),
        ((0, 0, 0, 255), (0, 0, 0)),
        ((128, 0, 0, 128), (63, 127, 127)),
    ],
)
def test_cmyk_is_converted_without_a_color_profile(ink: tuple[int, ...], expected: tuple[int, ...]) -> None:
    assert pixel(Image.new("CMYK", (2, 2), ink)) == expected


def test_a_cmyk_jpeg_keeps_its_color() -> None:
    red, green, blue = pixel(encode(Image.new("CMYK", (16, 16), (255, 0, 0, 0)), "JPEG", quality=95))
    assert red < 6 and green > 249 and blue > 249


def test_a_one_bit_image_becomes_black_and_white() -> None:
    image = Image.fromarray(np.array([[255, 0], [0, 255]], np.uint8)).convert("1")
    assert np.asarray(load_image(encode(image)))[:, :, 1].tolist() == [[255, 0], [0, 255]]


@pytest.mark.parametrize(("value", "expected"), [(0, 0), (128, 0), (129, 1), (256, 1), (257, 1), (32768, 128), (65278, 254), (65535, 255)])
def test_16_bit_gray_is_scaled_and_not_clipped(value: int, expected: int) -> None:
    image = Image.fromarray(np.full((2, 2), value, np.uint16))
    assert image.mode == "I;16"
    assert pixel(encode(image)) == (expected, expected, expected)


def test_a_floating_point_image_is_an_error() -> None:
    with pytest.raises(ImageError, match="range of floating-point pixels is unknown"):
        load_image(Image.new("F", (2, 2), 0.5))


def test_the_first_frame_of_an_animation_is_read() -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ((250, 0, 0), (0, 250, 0))]
    assert pixel(encode(frames[0], save_all=True, append_images=frames[1:])) == (250, 0, 0)


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "BMP"])
def test_all_documented_formats_are_read(format_: str) -> None:
    options = {"lossless": True} if format_ == "WEBP" else {}
    loaded = load_image(encode(Image.new("RGB", (16, 16), (128, 128, 128)), format_, **options))
    assert (loaded.mode, loaded.size) == ("RGB", (16, 16))
    assert abs(int(np.asarray(loaded)[0, 0, 0]) - 128) <= 1


# --- orientation -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_of_a_png_is_applied(orientation: int) -> None:
    data = encode(Image.fromarray(stored_as(IMAGE, orientation)), exif=exif(orientation))
    assert np.array_equal(np.asarray(load_image(data)), IMAGE)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_of_a_jpeg_is_applied(orientation: int) -> None:
    # JPEG does not change flat blocks of 8 x 8 pixels in any orientation.
    blocks = np.kron(np.random.default_rng(1).integers(0, 256, (2, 3, 3)), np.ones((8, 8, 1), int)).astype(np.uint8)
    upright = load_image(encode(Image.fromarray(blocks), "JPEG", quality=95, subsampling=0))
    turned = encode(Image.fromarray(stored_as(blocks, orientation)), "JPEG", quality=95, subsampling=0, exif=exif(orientation))
    assert np.array_equal(np.asarray(load_image(turned)), np.asarray(upright))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_of_an_opened_pil_image_is_applied(orientation: int) -> None:
    data = encode(Image.fromarray(stored_as(IMAGE, orientation)), exif=exif(orientation))
    with Image.open(io.BytesIO(data)) as image:
        assert np.array_equal(np.asarray(load_image(image)), IMAGE)


def test_the_orientation_is_applied_after_palette_transparency() -> None:
    image = Image.fromarray(np.array([[0, 1]], np.uint8)).convert("P")
    image.putpalette([200, 0, 0, 0, 0, 200])
    upright = np.asarray(load_image(encode(image, transparency=0, exif=exif(6))))
    assert upright.tolist() == [[[255, 255, 255]], [[0, 0, 200]]]


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_invalid_orientation_is_ignored(orientation: int) -> None:
    data = encode(Image.fromarray(IMAGE), exif=exif(orientation))
    assert np.array_equal(np.asarray(load_image(data)), IMAGE)


# A TIFF header, then one directory: (count of entries,) tag, type, count, value.
ASCII_ORIENTATION = b"II*\0\x08\0\0\0" + struct.pack("<HHHI4sI", 1, ORIENTATION, 2, 4, b"abc\0", 0)
CORRUPT_EXIF = {
    "empty": b"Exif\0\0",
    "text": b"Exif\0\0garbage",
    "directory beyond the end": b"Exif\0\0II*\0\xff\xff\xff\xff",
    "more entries than bytes": b"Exif\0\0II*\0\x08\0\0\0\xff\xff",
    "cut in an entry": exif(6)[:20],
    "orientation as text": b"Exif\0\0" + ASCII_ORIENTATION,
}


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("block", CORRUPT_EXIF.values(), ids=CORRUPT_EXIF.keys())
def test_a_corrupt_exif_block_is_ignored(block: bytes) -> None:
    data = encode(Image.fromarray(IMAGE), "JPEG", exif=block)
    assert load_image(data).size == (9, 6)


# --- kinds of input --------------------------------------------------------------------------------------------------------------


def test_path_str_bytes_image_and_array_give_equal_pixels(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(IMAGE).save(path)
    with Image.open(path) as opened:
        sources: list[ImageInput] = [path, str(path), path.read_bytes(), opened, IMAGE]
        hashes = {content_hash(load_image(source)) for source in sources}
    assert hashes == {content_hash(Image.fromarray(IMAGE))}


def test_an_array_with_one_channel_equals_an_array_without_channels() -> None:
    gray = IMAGE[:, :, 0]
    assert content_hash(load_image(gray)) == content_hash(load_image(gray[:, :, None]))


def test_an_array_with_alpha_is_composited_over_white() -> None:
    assert np.asarray(load_image(np.full((2, 2, 4), (100, 0, 200, 128), np.uint8)))[0, 0].tolist() == [177, 127, 227]


@pytest.mark.parametrize("view", ["negative strides", "transposed", "read-only"])
def test_the_memory_layout_of_an_array_does_not_matter(view: str) -> None:
    array = {"negative strides": IMAGE[::-1, ::-1], "transposed": IMAGE.transpose(1, 0, 2), "read-only": IMAGE.copy()}[view]
    array.flags.writeable = False
    assert np.array_equal(np.asarray(load_image(array)), array)


@pytest.mark.parametrize("dtype", [np.float32, np.int64, np.bool_, np.dtype(">u2")], ids=str)
def test_an_array_of_another_type_is_an_error(dtype: Any) -> None:
    with pytest.raises(ImageError, match=r"ambiguous\. Give uint8 values 0\.\.255"):
        load_image(np.zeros((4, 4, 3), dtype))


@pytest.mark.parametrize("shape", [(4,), (3, 8, 9), (4, 4, 2), (4, 4, 5), (1, 4, 4, 3), (0, 4, 3), (4, 0), ()], ids=str)
def test_the_error_for_an_invalid_array_shows_its_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ImageError, match=re.escape(f"shape {list(shape)} is not an image")):
        load_image(np.zeros(shape, np.uint8))


def test_the_error_for_an_invalid_source_shows_its_type() -> None:
    source: Any = 7
    with pytest.raises(ImageError, match=r"cannot read an image from a int\. Give a path"):
        load_image(source)


def test_load_image_does_not_change_its_argument() -> None:
    image = Image.fromarray(IMAGE)
    before = image.tobytes()
    load_image(image)
    assert image.tobytes() == before and image.mode == "RGB"


# --- content hash ----------------------------------------------------------------------------------------------------------------


def test_png_and_bmp_copies_have_equal_content_hashes() -> None:
    image = Image.fromarray(IMAGE)
    assert content_hash(load_image(encode(image, "PNG"))) == content_hash(load_image(encode(image, "BMP")))


def test_a_copy_with_an_exif_orientation_has_the_same_content_hash() -> None:
    turned = encode(Image.fromarray(stored_as(IMAGE, 8)), exif=exif(8))
    assert content_hash(load_image(turned)) == content_hash(load_image(IMAGE))


def test_a_changed_pixel_changes_the_content_hash() -> None:
    other = IMAGE.copy()
    other[5, 8, 2] ^= 1
    assert content_hash(load_image(other)) != content_hash(load_image(IMAGE))


def test_the_content_hash_depends_on_the_shape() -> None:
    assert content_hash(load_image(IMAGE.reshape(9, 6, 3))) != content_hash(load_image(IMAGE))


def test_the_content_hash_does_not_change_between_releases() -> None:
    # SHA-256 of the little-endian width and height and the RGB bytes; bundles on devices store it.
    assert content_hash(Image.new("RGB", (2, 1), (1, 2, 3))) == "9f00d5a1588d2021cb2c99a8edbd4805038d1d9b7d761f1949be38d1fe610eed"


def test_the_orientation_is_applied_only_once(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (9, 6)).save(tmp_path / "turned.jpg", exif=exif)
    once = load_image(tmp_path / "turned.jpg")
    assert once.size == (6, 9) and load_image(once).size == (6, 9)


def test_the_error_for_a_folder_shows_its_path(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=f"{tmp_path.name}: not a regular file"):
        load_image(tmp_path)


def test_an_extreme_aspect_ratio_is_an_error(tmp_path: Path) -> None:
    Image.new("L", (1, 100_000)).save(tmp_path / "narrow.png")
    with pytest.raises(ImageError, match=r"narrow\.png has 1 x 100000 pixels\. One side may be at most 1000 times"):
        load_image(tmp_path / "narrow.png")
    assert load_image(Image.new("L", (1, 1000))).size == (1, 1000)
