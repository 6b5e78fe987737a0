"""Detection of image formats by file signature."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from edgetl.core.images.decode import FORMATS
from edgetl.core.images.file_types import HEADER_BYTES, image_format


@pytest.mark.parametrize("format_", [*FORMATS, "GIF", "AVIF", "DDS"])
def test_images_written_by_pillow_are_recognized(format_: str) -> None:
    buffer = io.BytesIO()
    try:
        Image.new("RGB", (4, 4)).save(buffer, format_)
    except (KeyError, OSError):
        pytest.skip(f"this Pillow cannot write {format_}")
    assert image_format(buffer.getvalue()[:HEADER_BYTES]) == format_


@pytest.mark.parametrize("data", [b"", b"BM", b"BMW is a make of cars, and this a text", b"RIFF1234WAVE", b"\0\0\0\x18ftypmp42", b"<svg/>"])
def test_other_files_are_not_recognized(data: bytes) -> None:
    assert image_format(data) is None


def test_dicom_is_recognized_after_its_preamble() -> None:
    assert image_format(bytes(128) + b"DICM") == "DICOM"
