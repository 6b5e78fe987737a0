"""TIFF files: the first page, upright and within limits; unsupported files are refused with the reason."""

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
from tests.core.test_core_images import ORIENTATION, PICTURE, stored_as

# Pillow's wheels carry zstd from 12.0 on.
NEEDS_ZSTD = pytest.mark.skipif(int(PIL.__version__.split(".")[0]) < 12, reason="this Pillow writes no zstd")


def tags(**values: int) -> dict[str, Any]:
    """Options of ``Image.save`` that set tags, such as ``_254=1``."""
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    for name, value in values.items():
        directory[int(name[1:])] = value
    return {"tiffinfo": directory}


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", pytest.param("zstd", marks=NEEDS_ZSTD)])
def test_a_tiff_file_is_read_whatever_its_suffix(tmp_path: Path, compression: str) -> None:
    (tmp_path / "photo.jpg").write_bytes(encode(Image.fromarray(PICTURE), "TIFF", compression=compression))
    assert np.array_equal(np.asarray(load_image(tmp_path / "photo.jpg")), PICTURE)


def test_a_big_tiff_is_read() -> None:
    assert np.array_equal(np.asarray(load_image(encode(Image.fromarray(PICTURE), "TIFF", big_tiff=True))), PICTURE)


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_of_a_tiff_file_becomes_upright(orientation: int, compression: str) -> None:
    stored = Image.fromarray(stored_as(PICTURE, orientation))
    data = encode(stored, "TIFF", compression=compression, **tags(**{f"_{ORIENTATION}": orientation}))
    assert np.array_equal(np.asarray(load_image(data)), PICTURE)


def test_the_first_page_of_several_is_read() -> None:
    pages = [Image.fromarray(PICTURE), Image.new("RGB", (9, 6))]
    data = encode(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    assert np.array_equal(np.asarray(load_image(data)), PICTURE)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK"])
def test_a_tiff_file_has_the_same_pixels_as_the_image_that_was_saved(mode: str) -> None:
    image = Image.fromarray(PICTURE).convert(mode)
    assert np.array_equal(np.asarray(load_image(encode(image, "TIFF"))), np.asarray(load_image(image)))


def test_sixteen_bit_gray_of_a_tiff_file_is_scaled_as_of_a_png() -> None:
    values: NDArray[np.uint16] = np.array([[0, 256, 32768, 65535]] * 2, np.uint16)
    assert np.asarray(load_image(encode(Image.fromarray(values), "TIFF")))[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize(
    ("image", "options", "reason"),
    [
        (Image.new("F", (9, 6)), {}, "floating-point pixels have no stated range"),
        (Image.fromarray(PICTURE), {"compression": "lzma"}, r"its compression \(lzma\) is not read; save it with LZW"),
        (Image.new("RGB", (9, 6)), {"save_all": True, "append_images": [Image.new("RGB", (9, 6))], **tags(_254=1)}, "preview"),
    ],
    ids=["float", "compression", "raw file"],
)
def test_what_is_not_read_is_refused_with_the_reason(image: Image.Image, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        load_image(encode(image, "TIFF", **options))


def gray_tiff(extra: dict[int, int], pixels: bytes) -> bytes:
    """An uncompressed gray TIFF file of 2 x 2 pixels, with or instead of its tags those of ``extra``."""
    values = {256: 2, 257: 2, 258: 8, 259: 1, 262: 1, 273: 0, 277: 1, 278: 2, 279: len(pixels), **extra}
    size = 8 + 2 + 12 * len(values) + 4
    values[273] = size
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(values.items()))
    return b"II*\0" + struct.pack("<IH", 8, len(values)) + entries + bytes(4) + pixels


def test_a_tile_much_larger_than_the_image_is_refused_before_decoding() -> None:
    assert load_image(gray_tiff({}, b"\1\2\3\4")).size == (2, 2)
    with pytest.raises(ImageError, match="one of its tiles has more than 40 million pixels"):
        load_image(gray_tiff({259: 8, 322: 16384, 323: 16384, 324: 0, 325: 4}, b"\1\2\3\4"))


def test_sixteen_bits_that_count_from_white_are_refused() -> None:
    with pytest.raises(ImageError, match="WhiteIsZero"):
        load_image(gray_tiff({258: 16, 262: 0}, bytes(8)))


def test_a_tiff_header_that_claims_too_many_pixels_is_refused_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 50)
    with pytest.raises(ImageError, match=r"9 x 6 pixels.*the limit of TIFF"):
        load_image(encode(Image.fromarray(PICTURE), "TIFF"))


@pytest.mark.parametrize("percent", [5, 30, 60, 90])
def test_a_truncated_tiff_file_is_an_image_error(percent: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encode(Image.fromarray(noise), "TIFF", compression="tiff_lzw")
    with pytest.raises(ImageError):
        load_image(data[: len(data) * percent // 100])


def test_the_formats_of_a_server_leave_tiff_out() -> None:
    with pytest.raises(ImageError, match="is not a JPEG, PNG, WebP or BMP image"):
        load_image(encode(Image.fromarray(PICTURE), "TIFF"), formats=SERVED_FORMATS)


def test_an_opened_tiff_image_is_read() -> None:
    with Image.open(io.BytesIO(encode(Image.fromarray(PICTURE), "TIFF"))) as image:
        assert np.array_equal(np.asarray(load_image(image)), PICTURE)
