"""TIFF files: first page, orientation, limits, and errors for unsupported files."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin

from edgetl.core.images import decode as images
from edgetl.core.images.decode import SERVED_FORMATS, load_image
from edgetl.errors import ImageError
from tests.core.test_core_image_files import encode
from tests.core.test_core_images import IMAGE, ORIENTATION, stored_as

# Wheels of Pillow have zstd since version 12.0.
NEEDS_ZSTD = pytest.mark.skipif(int(PIL.__version__.split(".")[0]) < 12, reason="this Pillow cannot write zstd")


def tags(**values: int) -> dict[str, Any]:
    """Return options of ``Image.save`` that set tags, such as ``_254=1``."""
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    for name, value in values.items():
        directory[int(name[1:])] = value
    return {"tiffinfo": directory}


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", pytest.param("zstd", marks=NEEDS_ZSTD)])
def test_a_tiff_file_is_read_with_any_suffix(tmp_path: Path, compression: str) -> None:
    (tmp_path / "photo.jpg").write_bytes(encode(Image.fromarray(IMAGE), "TIFF", compression=compression))
    assert np.array_equal(np.asarray(load_image(tmp_path / "photo.jpg")), IMAGE)


def test_a_big_tiff_is_read() -> None:
    assert np.array_equal(np.asarray(load_image(encode(Image.fromarray(IMAGE), "TIFF", big_tiff=True))), IMAGE)


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_of_a_tiff_file_is_applied(orientation: int, compression: str) -> None:
    stored = Image.fromarray(stored_as(IMAGE, orientation))
    data = encode(stored, "TIFF", compression=compression, **tags(**{f"_{ORIENTATION}": orientation}))
    assert np.array_equal(np.asarray(load_image(data)), IMAGE)


def test_the_first_of_several_pages_is_read() -> None:
    pages = [Image.fromarray(IMAGE), Image.new("RGB", (9, 6))]
    data = encode(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    assert np.array_equal(np.asarray(load_image(data)), IMAGE)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK"])
def test_a_tiff_file_has_the_same_pixels_as_the_image_that_was_saved(mode: str) -> None:
    image = Image.fromarray(IMAGE).convert(mode)
    assert np.array_equal(np.asarray(load_image(encode(image, "TIFF"))), np.asarray(load_image(image)))


def test_16_bit_gray_of_a_tiff_file_is_scaled_as_in_png() -> None:
    values: NDArray[np.uint16] = np.array([[0, 256, 32768, 65535]] * 2, np.uint16)
    assert np.asarray(load_image(encode(Image.fromarray(values), "TIFF")))[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize(
    ("image", "options", "reason"),
    [
        (Image.new("F", (9, 6)), {}, "the range of floating-point pixels is unknown"),
        (Image.fromarray(IMAGE), {"compression": "lzma"}, r"its compression \(lzma\) is not supported\. Save it with LZW"),
        (Image.new("RGB", (9, 6)), {"save_all": True, "append_images": [Image.new("RGB", (9, 6))], **tags(_254=1)}, "preview"),
    ],
    ids=["float", "compression", "raw file"],
)
def test_the_error_for_an_unsupported_tiff_file_shows_the_reason(image: Image.Image, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        load_image(encode(image, "TIFF", **options))


def gray_tiff(extra: dict[int, int], pixels: bytes) -> bytes:
    """Write an uncompressed gray TIFF file of 2 x 2 pixels. ``extra`` adds or replaces tags."""
    values = {256: 2, 257: 2, 258: 8, 259: 1, 262: 1, 273: 0, 277: 1, 278: 2, 279: len(pixels), **extra}
    size = 8 + 2 + 12 * len(values) + 4
    values[273] = size
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(values.items()))
    return b"II*\0" + struct.pack("<IH", 8, len(values)) + entries + bytes(4) + pixels


def test_a_tile_much_larger_than_the_image_is_an_error() -> None:
    assert load_image(gray_tiff({}, b"\1\2\3\4")).size == (2, 2)
    with pytest.raises(ImageError, match="one of its tiles has more than 40 million pixels"):
        load_image(gray_tiff({259: 8, 322: 16384, 323: 16384, 324: 0, 325: 4}, b"\1\2\3\4"))


def test_16_bits_with_white_as_zero_are_an_error() -> None:
    with pytest.raises(ImageError, match="WhiteIsZero"):
        load_image(gray_tiff({258: 16, 262: 0}, bytes(8)))


def test_too_many_pixels_in_a_tiff_header_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 50)
    with pytest.raises(ImageError, match=r"9 x 6 pixels.*The limit of TIFF"):
        load_image(encode(Image.fromarray(IMAGE), "TIFF"))


@pytest.mark.parametrize("percent", [5, 30, 60, 90])
def test_a_truncated_tiff_file_is_an_image_error(percent: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encode(Image.fromarray(noise), "TIFF", compression="tiff_lzw")
    with pytest.raises(ImageError):
        load_image(data[: len(data) * percent // 100])


def test_the_formats_of_the_server_do_not_include_tiff() -> None:
    with pytest.raises(ImageError, match="is not a JPEG, PNG, WebP or BMP image"):
        load_image(encode(Image.fromarray(IMAGE), "TIFF"), formats=SERVED_FORMATS)


def test_an_opened_tiff_image_is_read() -> None:
    with Image.open(io.BytesIO(encode(Image.fromarray(IMAGE), "TIFF"))) as image:
        assert np.array_equal(np.asarray(load_image(image)), IMAGE)
