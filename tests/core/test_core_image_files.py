"""Image files that are damaged, too large or not images are errors with the file name."""

from __future__ import annotations

import io
import os
import struct
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from edgetl.core.images.decode import MAX_FILE_BYTES, load_image
from edgetl.errors import ImageError
from tests.core.deadline import within

IMAGE: NDArray[np.uint8] = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


def encode(image: Image.Image, format_: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """Return a PNG of a few bytes with the given size in its header."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 64)), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks)
    return b"\x89PNG\r\n\x1a\n" + body


def test_the_error_for_a_missing_file_shows_its_path() -> None:
    with pytest.raises(ImageError, match=r"no-such\.png: No such file"):
        load_image("no-such.png")


def test_a_fifo_is_an_error_without_waiting(tmp_path: Path) -> None:
    path = tmp_path / "pipe.png"
    os.mkfifo(path)
    with within(60), pytest.raises(ImageError, match=r"pipe\.png: not a regular file"):
        load_image(path)


def test_a_path_with_a_nul_is_an_image_error() -> None:
    with pytest.raises(ImageError, match="null"):
        load_image("a\0b.png")


def test_the_error_for_a_broken_link_shows_its_path(tmp_path: Path) -> None:
    (tmp_path / "link.png").symlink_to("nowhere")
    with pytest.raises(ImageError, match=r"link\.png: No such file"):
        load_image(tmp_path / "link.png")


def test_an_empty_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "void.png").touch()
    with pytest.raises(ImageError, match=r"void\.png is empty"):
        load_image(tmp_path / "void.png")


@pytest.mark.parametrize("kind", ["text", "GIF", "SVG", "PostScript"])
def test_another_format_is_an_error_with_any_suffix(tmp_path: Path, kind: str) -> None:
    contents = {
        "text": b"These are words, not pixels.\n" * 20,
        "GIF": encode(Image.fromarray(IMAGE), "GIF"),
        "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 6\n%%EndComments\n",
    }
    (tmp_path / "other.png").write_bytes(contents[kind])
    with pytest.raises(ImageError, match=r"other\.png is not a JPEG, PNG, WebP, BMP or TIFF image"):
        load_image(tmp_path / "other.png")


@pytest.mark.parametrize("percent", [10, 30, 50, 70, 90])
@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "BMP"])
def test_the_error_for_a_truncated_file_shows_its_path(tmp_path: Path, format_: str, percent: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encode(Image.fromarray(noise), format_)
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) * percent // 100])
    with pytest.raises(ImageError, match=r"cut\.jpg (cannot be decoded|is not a JPEG)"):
        load_image(tmp_path / "cut.jpg")


def test_the_error_for_a_wrong_png_checksum_shows_its_path(tmp_path: Path) -> None:
    data = bytearray(encode(Image.fromarray(IMAGE)))
    data[29] ^= 0xFF  # the first byte of IHDR's CRC
    (tmp_path / "crc.png").write_bytes(data)
    with pytest.raises(ImageError, match=r"crc\.png"):
        load_image(tmp_path / "crc.png")


@pytest.mark.parametrize("side", [50_000, 8_000])
def test_too_many_pixels_in_the_header_are_an_error_before_decoding(tmp_path: Path, side: int) -> None:
    (tmp_path / "bomb.png").write_bytes(png_header(side, side))
    start = time.process_time()
    with pytest.raises(ImageError, match=r"bomb\.png .*(limit|pixels)"):
        load_image(tmp_path / "bomb.png")
    assert time.process_time() - start < 0.5


def test_an_image_without_pixels_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "zero.png").write_bytes(png_header(0, 10))
    with pytest.raises(ImageError, match=r"zero\.png"):
        load_image(tmp_path / "zero.png")


def test_a_decompression_bomb_in_a_text_chunk_is_an_image_error(tmp_path: Path) -> None:
    text = b"zTXt" + b"key\0\0" + zlib.compress(b"\0" * 80_000_000)
    chunk = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
    data = encode(Image.fromarray(IMAGE))
    (tmp_path / "text.png").write_bytes(data[:33] + chunk + data[33:])
    with pytest.raises(ImageError, match=r"text\.png cannot be decoded"):
        load_image(tmp_path / "text.png")


def test_an_image_in_memory_above_the_limit_is_an_error() -> None:
    with pytest.raises(ImageError, match=r"16000 x 16000 pixels, 256 million\. The limit in memory is 250 million"):
        load_image(Image.new("1", (16_000, 16_000)))


def test_a_file_above_the_size_limit_is_an_error(tmp_path: Path) -> None:
    with open(tmp_path / "large.png", "wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(ImageError, match=rf"large\.png has {MAX_FILE_BYTES + 1} bytes\. The limit is {MAX_FILE_BYTES}"):
        load_image(tmp_path / "large.png")


@given(st.binary(max_size=200))
@settings(deadline=None, max_examples=60)
def test_random_bytes_are_an_error(data: bytes) -> None:
    with pytest.raises(ImageError, match=f"image of {len(data)} bytes"):
        load_image(data)


@given(st.sampled_from(["JPEG", "PNG", "WEBP", "BMP"]), st.data())
@settings(deadline=None, max_examples=60)
def test_a_file_with_one_damaged_byte_gives_an_rgb_image_or_an_image_error(format_: str, data: st.DataObject) -> None:
    file = bytearray(encode(Image.fromarray(IMAGE), format_))
    place = data.draw(st.integers(0, len(file) - 1))
    file[place] ^= data.draw(st.integers(1, 255))
    try:
        outcome = load_image(bytes(file)).mode
    except ImageError as error:
        outcome = str(error)
    assert outcome == "RGB" or f"image of {len(file)} bytes" in outcome
