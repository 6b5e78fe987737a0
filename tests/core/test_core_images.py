"""Images: every pixel format by golden value, every orientation upright, every kind of input alike."""

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
PICTURE: NDArray[np.uint8] = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


def encode(image: Image.Image, format_: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


def pixel(source: Image.Image | bytes) -> tuple[int, ...]:
    """The colour of the upper left pixel after loading."""
    red, green, blue = np.asarray(load_image(source))[0, 0]
    return int(red), int(green), int(blue)


def stored_as(picture: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """How a camera stores ``picture`` with this orientation, from the table of the EXIF standard (row 0 and column 0)."""
    stored = {
        1: picture,
        2: picture[:, ::-1],
        3: picture[::-1, ::-1],
        4: picture[::-1],
        5: picture.transpose(1, 0, 2),
        6: picture[:, ::-1].transpose(1, 0, 2),
        7: picture[::-1, ::-1].transpose(1, 0, 2),
        8: picture[::-1].transpose(1, 0, 2),
    }[orientation]
    return np.ascontiguousarray(stored)


def exif(orientation: int) -> bytes:
    block = Image.Exif()
    block[ORIENTATION] = orientation
    return block.tobytes()


# --- pixel formats ---------------------------------------------------------------------------------------------------------------


def test_a_grey_picture_is_repeated_on_three_channels() -> None:
    assert pixel(encode(Image.new("L", (2, 2), 77))) == (77, 77, 77)


def test_a_grey_picture_with_alpha_is_composited_over_white() -> None:
    assert pixel(encode(Image.new("LA", (2, 2), (100, 128)))) == (177, 177, 177)


@pytest.mark.parametrize(
    ("colour", "expected"),
    [
        ((100, 0, 200, 128), (177, 127, 227)),
        ((100, 0, 200, 0), (255, 255, 255)),
        ((100, 0, 200, 255), (100, 0, 200)),
    ],
)
def test_a_colour_picture_with_alpha_is_composited_over_white(colour: tuple[int, ...], expected: tuple[int, ...]) -> None:
    assert pixel(encode(Image.new("RGBA", (2, 2), colour))) == expected


def test_a_palette_picture_takes_its_colours_from_the_palette() -> None:
    image = Image.new("P", (2, 2), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    assert pixel(encode(image)) == (10, 20, 30)


@pytest.mark.parametrize(("transparency", "expected"), [(1, (255, 255, 255)), (0, (10, 20, 30)), (bytes([255, 128]), (132, 137, 142))])
def test_a_palette_picture_with_transparency_is_composited_over_white(transparency: int | bytes, expected: tuple[int, ...]) -> None:
    image = Image.new("P", (2, 2), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    assert pixel(encode(image, transparency=transparency)) == expected


def test_the_transparent_colour_of_an_rgb_picture_becomes_white() -> None:
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
def test_cmyk_is_converted_without_a_profile(ink: tuple[int, ...], expected: tuple[int, ...]) -> None:
    assert pixel(Image.new("CMYK", (2, 2), ink)) == expected


def test_a_cmyk_jpeg_keeps_its_colour() -> None:
    red, green, blue = pixel(encode(Image.new("CMYK", (16, 16), (255, 0, 0, 0)), "JPEG", quality=95))
    assert red < 6 and green > 249 and blue > 249


def test_a_one_bit_picture_becomes_black_and_white() -> None:
    image = Image.fromarray(np.array([[255, 0], [0, 255]], np.uint8)).convert("1")
    assert np.asarray(load_image(encode(image)))[:, :, 1].tolist() == [[255, 0], [0, 255]]


@pytest.mark.parametrize(("value", "expected"), [(0, 0), (128, 0), (129, 1), (256, 1), (257, 1), (32768, 128), (65278, 254), (65535, 255)])
def test_sixteen_bit_grey_is_scaled_and_never_clipped(value: int, expected: int) -> None:
    image = Image.fromarray(np.full((2, 2), value, np.uint16))
    assert image.mode == "I;16"
    assert pixel(encode(image)) == (expected, expected, expected)


def test_a_float_picture_is_refused_because_its_range_is_unknown() -> None:
    with pytest.raises(ImageError, match="no stated range"):
        load_image(Image.new("F", (2, 2), 0.5))


def test_only_the_first_frame_of_an_animation_is_read() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((250, 0, 0), (0, 250, 0))]
    assert pixel(encode(frames[0], save_all=True, append_images=frames[1:])) == (250, 0, 0)


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "BMP"])
def test_each_documented_format_is_read(format_: str) -> None:
    options = {"lossless": True} if format_ == "WEBP" else {}
    loaded = load_image(encode(Image.new("RGB", (16, 16), (128, 128, 128)), format_, **options))
    assert (loaded.mode, loaded.size) == ("RGB", (16, 16))
    assert abs(int(np.asarray(loaded)[0, 0, 0]) - 128) <= 1


# --- orientation -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_png_of_every_orientation_is_turned_upright(orientation: int) -> None:
    data = encode(Image.fromarray(stored_as(PICTURE, orientation)), exif=exif(orientation))
    assert np.array_equal(np.asarray(load_image(data)), PICTURE)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_jpeg_of_every_orientation_is_turned_upright(orientation: int) -> None:
    # Flat blocks of 8 x 8 survive JPEG unchanged, whichever way they are turned.
    blocks = np.kron(np.random.default_rng(1).integers(0, 256, (2, 3, 3)), np.ones((8, 8, 1), int)).astype(np.uint8)
    upright = load_image(encode(Image.fromarray(blocks), "JPEG", quality=95, subsampling=0))
    turned = encode(Image.fromarray(stored_as(blocks, orientation)), "JPEG", quality=95, subsampling=0, exif=exif(orientation))
    assert np.array_equal(np.asarray(load_image(turned)), np.asarray(upright))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_opened_pil_image_is_turned_upright_like_its_file(orientation: int) -> None:
    data = encode(Image.fromarray(stored_as(PICTURE, orientation)), exif=exif(orientation))
    with Image.open(io.BytesIO(data)) as image:
        assert np.array_equal(np.asarray(load_image(image)), PICTURE)


def test_a_palette_picture_is_turned_after_its_transparency_was_composited() -> None:
    image = Image.fromarray(np.array([[0, 1]], np.uint8)).convert("P")
    image.putpalette([200, 0, 0, 0, 0, 200])
    upright = np.asarray(load_image(encode(image, transparency=0, exif=exif(6))))
    assert upright.tolist() == [[[255, 255, 255]], [[0, 0, 200]]]


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_out_of_range_counts_as_upright(orientation: int) -> None:
    data = encode(Image.fromarray(PICTURE), exif=exif(orientation))
    assert np.array_equal(np.asarray(load_image(data)), PICTURE)


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
def test_a_corrupt_exif_block_counts_as_none(block: bytes) -> None:
    data = encode(Image.fromarray(PICTURE), "JPEG", exif=block)
    assert load_image(data).size == (9, 6)


# --- kinds of input --------------------------------------------------------------------------------------------------------------


def test_path_text_bytes_image_and_array_of_one_png_agree(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(PICTURE).save(path)
    with Image.open(path) as opened:
        sources: list[ImageInput] = [path, str(path), path.read_bytes(), opened, PICTURE]
        hashes = {content_hash(load_image(source)) for source in sources}
    assert hashes == {content_hash(Image.fromarray(PICTURE))}


def test_an_array_with_one_channel_equals_one_without() -> None:
    grey = PICTURE[:, :, 0]
    assert content_hash(load_image(grey)) == content_hash(load_image(grey[:, :, None]))


def test_an_array_with_alpha_is_composited_over_white() -> None:
    assert np.asarray(load_image(np.full((2, 2, 4), (100, 0, 200, 128), np.uint8)))[0, 0].tolist() == [177, 127, 227]


@pytest.mark.parametrize("view", ["negative strides", "transposed", "read-only"])
def test_the_memory_layout_of_an_array_does_not_matter(view: str) -> None:
    array = {"negative strides": PICTURE[::-1, ::-1], "transposed": PICTURE.transpose(1, 0, 2), "read-only": PICTURE.copy()}[view]
    array.flags.writeable = False
    assert np.array_equal(np.asarray(load_image(array)), array)


@pytest.mark.parametrize("dtype", [np.float32, np.int64, np.bool_, np.dtype(">u2")], ids=str)
def test_an_array_of_another_type_is_ambiguous_and_refused(dtype: Any) -> None:
    with pytest.raises(ImageError, match=r"ambiguous; give uint8 values 0\.\.255"):
        load_image(np.zeros((4, 4, 3), dtype))


@pytest.mark.parametrize("shape", [(4,), (3, 8, 9), (4, 4, 2), (4, 4, 5), (1, 4, 4, 3), (0, 4, 3), (4, 0), ()], ids=str)
def test_an_array_of_another_shape_is_refused_with_its_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ImageError, match=re.escape(f"shape {list(shape)} is not an image")):
        load_image(np.zeros(shape, np.uint8))


def test_a_source_of_another_kind_is_refused_by_its_type() -> None:
    source: Any = 7
    with pytest.raises(ImageError, match="cannot read an image from a int; give a path"):
        load_image(source)


def test_the_callers_image_is_left_as_it_was() -> None:
    image = Image.fromarray(PICTURE)
    before = image.tobytes()
    load_image(image)
    assert image.tobytes() == before and image.mode == "RGB"


# --- content hash ----------------------------------------------------------------------------------------------------------------


def test_the_same_picture_as_png_and_bmp_has_one_content_hash() -> None:
    image = Image.fromarray(PICTURE)
    assert content_hash(load_image(encode(image, "PNG"))) == content_hash(load_image(encode(image, "BMP")))


def test_a_twin_turned_by_its_exif_tag_has_the_same_content_hash() -> None:
    turned = encode(Image.fromarray(stored_as(PICTURE, 8)), exif=exif(8))
    assert content_hash(load_image(turned)) == content_hash(load_image(PICTURE))


def test_one_changed_level_changes_the_content_hash() -> None:
    other = PICTURE.copy()
    other[5, 8, 2] ^= 1
    assert content_hash(load_image(other)) != content_hash(load_image(PICTURE))


def test_the_same_bytes_in_another_shape_have_another_content_hash() -> None:
    assert content_hash(load_image(PICTURE.reshape(9, 6, 3))) != content_hash(load_image(PICTURE))


def test_the_content_hash_is_the_documented_one() -> None:
    # SHA-256 of the little-endian width and height and the RGB bytes; bundles on devices hold it.
    assert content_hash(Image.new("RGB", (2, 1), (1, 2, 3))) == "9f00d5a1588d2021cb2c99a8edbd4805038d1d9b7d761f1949be38d1fe610eed"


def test_a_loaded_picture_is_not_turned_twice(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (9, 6)).save(tmp_path / "turned.jpg", exif=exif)
    once = load_image(tmp_path / "turned.jpg")
    assert once.size == (6, 9) and load_image(once).size == (6, 9)


def test_a_folder_given_as_an_image_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=f"{tmp_path.name}: not a regular file"):
        load_image(tmp_path)


def test_a_hair_is_refused_and_a_narrow_picture_is_not(tmp_path: Path) -> None:
    Image.new("L", (1, 100_000)).save(tmp_path / "hair.png")
    with pytest.raises(ImageError, match=r"hair\.png has 1 x 100000 pixels; one side may be 1000 times"):
        load_image(tmp_path / "hair.png")
    assert load_image(Image.new("L", (1, 1000))).size == (1, 1000)
