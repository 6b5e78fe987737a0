"""Large images: JPEG files are decoded at a reduced scale, other files are an error."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from edgetl.core.images import decode as images
from edgetl.core.images.decode import content_hash, load_image, scale_factor
from edgetl.core.images.jpeg import has_several_scans
from edgetl.errors import ImageError
from tests.core.test_core_image_files import encode, png_header
from tests.core.test_core_images import exif

# A smooth image: averaging and DCT scaling give nearly the same pixels.
SMOOTH: NDArray[np.uint8] = np.stack(np.meshgrid(np.linspace(0, 255, 96), np.linspace(0, 255, 64), indexing="xy") * 2, -1)[..., :3].astype(
    np.uint8
)


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lower the limits. An image of 96 x 64 pixels is then decoded to 48 x 32."""
    monkeypatch.setattr(images, "MAX_PIXELS", 2_000)
    monkeypatch.setattr(images, "MAX_PROGRESSIVE_PIXELS", 4_000)
    monkeypatch.setattr(images, "MAX_SCALED_PIXELS", 10_000)


def jpeg(**options: Any) -> bytes:
    return encode(Image.fromarray(SMOOTH), "JPEG", quality=95, **options)


@pytest.mark.parametrize(
    ("width", "height", "factor"),
    [(8000, 5000, 1), (8001, 5000, 2), (8064, 6048, 2), (12000, 9000, 2), (16320, 12240, 4), (65500, 3816, 4), (16382, 16382, 4)],
)
def test_scale_factor_leaves_at_most_40_million_pixels(width: int, height: int, factor: int) -> None:
    assert scale_factor(width, height) == factor


def test_a_48_megapixel_photo_is_used(tmp_path: Path) -> None:
    Image.new("L", (8064, 6048), 200).save(tmp_path / "phone.jpg")
    image = load_image(tmp_path / "phone.jpg")
    assert (image.mode, image.size, image.getpixel((100, 100))) == ("RGB", (4032, 3024), (200, 200, 200))


@pytest.mark.usefixtures("small_limits")
def test_a_large_jpeg_is_decoded_at_half_the_size() -> None:
    half = np.asarray(Image.fromarray(SMOOTH).reduce(2)).astype(int)
    assert np.abs(np.asarray(load_image(jpeg())) - half).max() <= 4


@pytest.mark.usefixtures("small_limits")
def test_the_orientation_of_a_large_jpeg_is_applied() -> None:
    upright, turned = load_image(jpeg()), load_image(jpeg(exif=exif(6)))
    assert (upright.size, turned.size) == ((48, 32), (32, 48))
    assert np.array_equal(np.asarray(turned), np.rot90(np.asarray(upright), -1))


@pytest.mark.usefixtures("small_limits")
def test_a_large_jpeg_has_equal_pixels_from_path_bytes_and_opened_file(tmp_path: Path) -> None:
    (tmp_path / "large.jpg").write_bytes(jpeg())
    with Image.open(tmp_path / "large.jpg") as opened:
        hashes = {content_hash(load_image(source)) for source in (tmp_path / "large.jpg", jpeg(), opened)}
        assert opened.size == (96, 64), "the image of the caller is not changed"
    assert len(hashes) == 1


@pytest.mark.usefixtures("small_limits")
def test_an_image_or_array_in_memory_is_averaged() -> None:
    expected = np.asarray(Image.fromarray(SMOOTH).reduce(2))
    assert np.array_equal(np.asarray(load_image(Image.fromarray(SMOOTH))), expected)
    assert np.array_equal(np.asarray(load_image(SMOOTH)), expected)


def test_the_error_for_a_large_png_shows_its_size(tmp_path: Path) -> None:
    (tmp_path / "scan.png").write_bytes(png_header(9000, 22000))
    with pytest.raises(ImageError) as error:
        load_image(tmp_path / "scan.png")
    assert "scan.png has 9000 x 22000 pixels, 198 million. The limit of PNG is 40 million" in str(error.value)
    assert "decode" not in str(error.value) and "attack" not in str(error.value)


@pytest.mark.usefixtures("small_limits")
@pytest.mark.parametrize("format_", ["PNG", "WEBP", "BMP", "TIFF"])
def test_other_large_files_are_an_error(format_: str) -> None:
    data = encode(Image.fromarray(SMOOTH), format_)
    sources: list[bytes | Image.Image] = [data] + ([Image.open(io.BytesIO(data))] if format_ != "WEBP" else [])
    for source in sources:
        with pytest.raises(ImageError, match=rf"96 x 64 pixels, 0 million\. The limit of {format_}"):
            load_image(source)


@pytest.mark.usefixtures("small_limits")
def test_a_large_progressive_jpeg_is_an_error() -> None:
    with pytest.raises(ImageError, match="The limit of progressive JPEG is 0 million"):
        load_image(jpeg(progressive=True))


@pytest.mark.usefixtures("small_limits")
def test_a_jpeg_above_the_largest_size_is_an_error() -> None:
    with pytest.raises(ImageError, match="The limit of JPEG"):
        load_image(encode(Image.new("L", (200, 100)), "JPEG"))


def test_has_several_scans_reads_the_header() -> None:
    assert not has_several_scans(jpeg())
    assert not has_several_scans(encode(Image.new("L", (9, 6)), "JPEG"))
    assert has_several_scans(jpeg(progressive=True))
    # One component in the first scan of a file of three.
    scan = jpeg().index(b"\xff\xda")
    assert has_several_scans(jpeg()[: scan + 4] + b"\x01" + jpeg()[scan + 5 :])
    assert has_several_scans(jpeg()[:20])
