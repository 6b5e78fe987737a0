"""Scaled JPEG decoding (DCT scaling) as a value of the preprocessing settings."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edgetl.core.images import decode
from edgetl.core.preprocess import MIN_SCALED, PreprocessSpec, decode_factor, decode_image, preprocess
from edgetl.errors import ImageError
from tests.core.test_core_images import exif

FULL = PreprocessSpec(input_size=(32, 32), crop_pct=1.0)
SCALED = FULL.model_copy(update={"decode": "scaled"})


def smooth(width: int, height: int) -> Image.Image:
    columns, rows = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([columns, rows, columns], -1).astype(np.uint8))


def jpeg(width: int, height: int, **options: object) -> bytes:
    out = io.BytesIO()
    smooth(width, height).save(out, "JPEG", quality=95, **options)
    return out.getvalue()


@pytest.mark.parametrize(
    ("width", "height", "factor"),
    [(57, 57, 1), (58, 58, 2), (64, 64, 2), (115, 115, 2), (116, 116, 4), (231, 400, 8), (4000, 3000, 8), (32, 32, 1), (20, 20, 1)],
)
def test_the_factor_leaves_nine_tenths_of_the_resized_image(width: int, height: int, factor: int) -> None:
    assert decode_factor(width, height, SCALED) == factor


@pytest.mark.parametrize(("width", "height", "factor"), [(72, 100, 2), (100, 72, 2), (71, 100, 1), (100, 71, 1)])
def test_a_side_of_exactly_nine_tenths_is_large_enough(width: int, height: int, factor: int) -> None:
    spec = PreprocessSpec(input_size=(40, 40), crop_mode="squash", crop_pct=1.0, decode="scaled")
    assert MIN_SCALED * 40 == 72 / 2
    assert decode_factor(width, height, spec) == factor


def test_a_camera_image_is_decoded_at_half_size_for_the_usual_input() -> None:
    assert decode_factor(640, 480, PreprocessSpec(input_size=(224, 224), decode="scaled")) == 2


@given(st.integers(8, 5000), st.integers(8, 5000), st.sampled_from(["center", "squash", "border"]), st.floats(0.5, 1.2))
def test_the_decoded_image_is_never_smaller_than_the_least_size(width: int, height: int, mode: str, crop_pct: float) -> None:
    spec = PreprocessSpec.model_validate({"input_size": (48, 32), "crop_mode": mode, "crop_pct": crop_pct, "decode": "scaled"})
    factor = decode_factor(width, height, spec)
    if factor > 1 and mode == "squash":
        assert width / factor >= MIN_SCALED * int(32 / crop_pct) and height / factor >= MIN_SCALED * int(48 / crop_pct)
    assert factor in (1, 2, 4, 8) and (factor == 1 or min(width, height) / factor >= MIN_SCALED)


def test_scaled_decoding_changes_only_the_size_of_a_jpeg(tmp_path: Path) -> None:
    data = jpeg(128, 96)
    assert decode_image(data, FULL).size == (128, 96)
    assert decode_image(data, SCALED).size == (64, 48)
    (tmp_path / "a.jpg").write_bytes(data)
    for source in (data, tmp_path / "a.jpg", io.BytesIO(data)):
        assert np.array_equal(preprocess(source, SCALED), preprocess(data, SCALED))
    assert np.abs(preprocess(data, SCALED) - preprocess(data, FULL)).max() < 0.1


def test_other_formats_and_images_in_memory_are_not_scaled() -> None:
    image, out = smooth(128, 96), io.BytesIO()
    image.save(out, "PNG")
    for source in (out.getvalue(), image, np.asarray(image)):
        assert decode_image(source, SCALED).size == (128, 96)


@pytest.mark.parametrize("spec", [FULL, SCALED])
def test_a_format_that_is_not_accepted_is_an_error(spec: PreprocessSpec) -> None:
    out = io.BytesIO()
    smooth(128, 96).save(out, "PNG")
    assert decode_image(out.getvalue(), spec, formats=("PNG",)).size == (128, 96)
    with pytest.raises(ImageError, match="is not a JPEG or WebP image"):
        decode_image(out.getvalue(), spec, formats=("JPEG", "WebP"))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_factor_follows_the_upright_image(orientation: int) -> None:
    # The input is 16 wide and 64 high. Upright, an image of 128 x 128 is high enough for 1/2 only; its file may lie on its side.
    spec = PreprocessSpec(input_size=(64, 16), crop_mode="squash", crop_pct=1.0, decode="scaled")
    width, height = (60, 130) if orientation < 5 else (130, 60)
    image = decode_image(jpeg(width, height, exif=exif(orientation)), spec)
    assert image.size == (30, 65)


def test_large_images_keep_their_own_factor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "MAX_PIXELS", 2_000)
    large = PreprocessSpec(input_size=(96, 96), crop_pct=1.0, decode="scaled")
    assert decode_factor(96, 64, large) == 1 and decode_image(jpeg(96, 64), large).size == (48, 32)
    assert decode_image(jpeg(96, 64), PreprocessSpec(input_size=(8, 8), crop_pct=1.0, decode="scaled")).size == (12, 8)


def test_a_damaged_jpeg_is_an_error() -> None:
    data = jpeg(128, 96)
    with pytest.raises(ImageError, match="cannot be decoded"):
        decode_image(data[: len(data) // 2], SCALED)


def test_the_decoding_is_part_of_the_digest() -> None:
    assert FULL.digest() != SCALED.digest()
