"""Image files that are damaged, too large or not images are errors with the file name."""

from __future__ import annotations

import io
import os
import struct
import threading
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


OTHER_FORMATS = {
    "text": b"These are words, not pixels.\n" * 20,
    "GIF": encode(Image.fromarray(IMAGE), "GIF"),
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "PostScript": encode(Image.fromarray(IMAGE), "EPS"),
    "PDF": encode(Image.fromarray(IMAGE), "PDF"),
    "ICO": encode(Image.fromarray(IMAGE), "ICO"),
    "PSD": b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 6, 9, 8, 3) + bytes(200),
    "FITS": b"SIMPLE  =                    T".ljust(80) + b"BITPIX  =                    8".ljust(2800),
    "HEIC": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200),
}


@pytest.mark.parametrize("kind", OTHER_FORMATS)
def test_another_format_is_an_error_with_any_suffix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:  # B2, B5, B12
    """Pillow runs Ghostscript to decode PostScript. edgetl decodes only its formats, so no program starts."""
    for program in ("gs", "gswin32c", "gswin64c"):
        (tmp_path / program).write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
        (tmp_path / program).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "other.png").write_bytes(OTHER_FORMATS[kind])
    with pytest.raises(ImageError, match=r"other\.png is not a JPEG, PNG, WebP, BMP or TIFF image"):
        load_image(tmp_path / "other.png")
    assert not (tmp_path / "started").exists()


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


def chunk(kind: bytes, data: bytes) -> bytes:
    """Return a chunk of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def test_only_the_first_of_10000_frames_is_decoded() -> None:  # B10
    """The other frames of this APNG file are not valid, so decoding one of them would be an error."""
    first = encode(Image.fromarray(IMAGE))
    control = struct.pack(">IIIIHHBB", 9, 6, 0, 0, 1, 10, 0, 0)
    frames = [
        chunk(b"fcTL", struct.pack(">I", 2 * index - 1) + control) + chunk(b"fdAT", struct.pack(">I", 2 * index) + b"not compressed")
        for index in range(1, 10_000)
    ]
    animation = chunk(b"acTL", struct.pack(">II", 10_000, 0)) + chunk(b"fcTL", bytes(4) + control)
    data = first[:33] + animation + first[33:-12] + b"".join(frames) + first[-12:]
    with Image.open(io.BytesIO(data)) as opened:
        assert getattr(opened, "n_frames", 1) == 10_000
    start = time.process_time()
    assert np.array_equal(np.asarray(load_image(data)), IMAGE)
    assert time.process_time() - start < 1


BLOCKS = np.kron(np.array([[10, 200], [90, 250]]), np.ones((8, 8), int)).astype(np.uint8)
# ``jpegtran -arithmetic`` of libjpeg-turbo 2.1, from ``BLOCKS`` with quality 90.
ARITHMETIC = bytes.fromhex(
    "ffd8ffe000104a46494600010100000100010000ffdb0043000302020302020303030304030304050805050404050a070706080c0a0c0c0b0a0b0b0d0e12100d"
    "0e110e0b0b1016101113141515150c0f171816141812141514ffc9000b080010001001011100ffcc000600101005ffda0008010100003f00ff00ecfc6dba0497"
    "ecffd9"
)


@pytest.mark.parametrize("options", [{"progressive": True}, {"restart_marker_blocks": 1}, {"icc_profile": b"no profile"}], ids=str)
def test_all_encodings_of_a_jpeg_give_equal_pixels(options: dict[str, Any]) -> None:  # B11
    expected = np.asarray(load_image(encode(Image.fromarray(BLOCKS), "JPEG", quality=90)))
    assert np.array_equal(np.asarray(load_image(encode(Image.fromarray(BLOCKS), "JPEG", quality=90, **options))), expected)


def test_an_arithmetic_coded_jpeg_is_decoded_or_an_error() -> None:  # B11
    """Some builds of Pillow do not decode it."""
    try:
        pixels = np.asarray(load_image(ARITHMETIC))[:, :, 0]
    except ImageError as error:
        assert "cannot be decoded" in str(error) or "is not a JPEG" in str(error)
    else:
        assert np.abs(pixels.astype(int) - BLOCKS).max() <= 2


@pytest.mark.parametrize("after", [b"\0", b"<script>", b"PK\3\4" + bytes(100), encode(Image.new("RGB", (40, 40)))], ids=len)
@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "BMP"])
def test_bytes_after_the_end_of_an_image_are_ignored(format_: str, after: bytes) -> None:  # B11
    """The first bytes decide about the format, so a file cannot be a different image for another part of edgetl."""
    data = encode(Image.fromarray(IMAGE), format_)
    assert np.array_equal(np.asarray(load_image(data + after)), np.asarray(load_image(data)))


def test_an_exif_block_of_64_kilobytes_is_read() -> None:  # B9
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "x" * 65_000
    data = encode(Image.fromarray(IMAGE), "JPEG", exif=exif)
    assert len(data) > 65_000
    assert load_image(data).size == (6, 9)


def test_a_file_without_permission_is_an_error(tmp_path: Path) -> None:  # B14
    path = tmp_path / "secret.png"
    path.write_bytes(encode(Image.fromarray(IMAGE)))
    path.chmod(0)
    user = os.geteuid()
    if user == 0:  # the permissions of files do not restrict root
        os.seteuid(65534)
    try:
        with pytest.raises(ImageError, match=r"secret\.png: Permission denied"):
            load_image(path)
    finally:
        os.seteuid(user)


def test_a_file_that_is_written_while_it_is_read_gives_an_image_or_an_error(tmp_path: Path) -> None:  # B14
    contents = [encode(Image.fromarray(pixels), "BMP") for pixels in (IMAGE, np.tile(255 - IMAGE, (40, 40, 1)))]
    path, done = tmp_path / "a.bmp", threading.Event()
    path.write_bytes(contents[0])

    def write() -> None:
        with path.open("r+b", buffering=0) as file:
            while not done.is_set():
                contents.reverse()
                file.truncate(len(contents[0]) // 2)
                file.seek(0)
                file.write(contents[0])

    thread = threading.Thread(target=write)
    thread.start()
    results = set()
    try:
        for _ in range(300):
            try:
                results.add(load_image(path).mode)
            except ImageError as error:
                assert "a.bmp" in str(error)
                results.add("error")
    finally:
        done.set()
        thread.join()
    assert results <= {"RGB", "error"}


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
