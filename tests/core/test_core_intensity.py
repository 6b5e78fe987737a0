"""Intensity rules for images with more than 8 bits per channel."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError

from edgetl.core.images.decode import ImageInput, content_hash, examine, load_image
from edgetl.core.images.intensity import FULL_RANGE, Intensity, check_choice, resolve_intensity, to_8_bits
from edgetl.core.preprocess import PreprocessSpec, preprocess
from edgetl.errors import ConfigError
from tests.core.test_core_image_files import encode
from tests.core.test_core_images import exif

TWELVE = Intensity(high=4095)
# 12-bit values with 256 different gray levels.
GRAY: NDArray[np.uint16] = (np.arange(256, dtype=np.uint16) * 16 + 5).reshape(16, 16)
COLOR: NDArray[np.uint16] = np.dstack((GRAY, GRAY[::-1], GRAY.T))


def raw_png(values: NDArray[np.uint16]) -> bytes:
    """Write a 16-bit RGB PNG, which Pillow can read but not write."""
    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks)
    return b"\x89PNG\r\n\x1a\n" + body


def levels_of(image: Image.Image) -> int:
    return len(np.unique(np.asarray(image)[:, :, 0]))


def test_12_bit_gray_keeps_its_levels_with_a_12_bit_rule() -> None:
    data = encode(Image.fromarray(GRAY))
    assert levels_of(load_image(data)) <= 17
    assert levels_of(load_image(data, intensity=TWELVE)) >= 255


def test_12_bit_color_keeps_its_levels_with_a_12_bit_rule() -> None:
    expected = to_8_bits(COLOR, TWELVE)
    assert levels_of(load_image(raw_png(COLOR))) <= 17
    assert np.array_equal(np.asarray(load_image(raw_png(COLOR), intensity=TWELVE)), expected)
    assert np.array_equal(np.asarray(load_image(COLOR, intensity=TWELVE)), expected)


def test_16_bit_color_of_a_tiff_file_is_read_by_the_rule(shared: Path) -> None:
    path = shared / "data" / "odd-images" / "tiff_16bit_RGB.tiff"
    assert np.array_equal(
        np.asarray(load_image(path))[0, :3, 0] >> 4, np.asarray(load_image(path, intensity=Intensity(high=65280)))[0, :3, 0] >> 4
    )


def test_all_kinds_of_input_follow_the_rule(tmp_path: Path) -> None:
    (tmp_path / "gray.png").write_bytes(encode(Image.fromarray(GRAY)))
    sources: list[ImageInput] = [
        tmp_path / "gray.png",
        (tmp_path / "gray.png").read_bytes(),
        Image.fromarray(GRAY),
        GRAY,
        encode(Image.fromarray(GRAY), "TIFF"),
    ]
    assert len({content_hash(load_image(source, intensity=TWELVE)) for source in sources}) == 1


def test_the_default_rule_equals_the_rule_of_older_runs() -> None:
    values = np.arange(65536, dtype=np.uint16)
    older = ((values.astype(np.int64) * 255 + 32767) // 65535).astype(np.uint8)
    assert np.array_equal(to_8_bits(values, FULL_RANGE), older)
    assert np.array_equal(to_8_bits(values.astype(np.int32), FULL_RANGE), older)


def test_values_outside_the_range_are_clipped_and_a_constant_image_is_black() -> None:
    values = np.array([-5, 0, 128, 255, 4000], np.int32)
    assert to_8_bits(values, Intensity(high=255)).tolist() == [0, 0, 128, 255, 255]
    assert to_8_bits(np.full(9, 7, np.uint16), Intensity(rule="percentile", low=0.5, high=99.5)).tolist() == [0] * 9


def test_percentiles_are_computed_for_each_image() -> None:
    rule = resolve_intensity("percentile", FULL_RANGE, [])
    dark, bright = (np.asarray(load_image(GRAY * factor, intensity=rule)) for factor in (1, 8))
    assert np.array_equal(dark, bright) and (dark.min(), dark.max()) == (0, 255)


def test_the_orientation_of_a_16_bit_image_is_applied() -> None:
    turned = load_image(encode(Image.fromarray(GRAY), exif=exif(6)), intensity=TWELVE)
    assert np.array_equal(np.asarray(turned)[:, :, 0], np.rot90(to_8_bits(GRAY, TWELVE), -1))


def test_8_bit_images_are_not_changed() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(load_image(encode(Image.fromarray(pixels)), intensity=TWELVE)), pixels)


@pytest.mark.parametrize(
    ("choice", "levels", "expected"),
    [
        ("auto", [], FULL_RANGE),
        ("auto", [(0, 4080), (3, 900)], TWELVE),
        ("auto", [(0, 255)], Intensity(high=255)),
        ("auto", [(0, 30)], Intensity(high=255)),
        ("auto", [(0, 65535)], FULL_RANGE),
        ("auto", [(-1000, 3000)], Intensity(low=-1000, high=3000)),
        ("clip", [(0, 4080)], Intensity(high=255)),
        ("scale", [(100, 4080), (50, 900)], Intensity(low=50, high=4080)),
        ("percentile", [(0, 4080)], Intensity(rule="percentile", low=0.5, high=99.5)),
        ("10,1000", [(0, 4080)], Intensity(low=10, high=1000)),
    ],
)
def test_resolve_intensity_returns_the_rule_of_a_choice(choice: str, levels: list[tuple[int, int]], expected: Intensity) -> None:
    assert resolve_intensity(choice, FULL_RANGE, levels) == expected


def test_auto_keeps_the_rule_of_the_backbone() -> None:
    assert resolve_intensity("auto", TWELVE, [(0, 65535)]) == TWELVE


def test_the_error_for_a_range_without_images_shows_the_remedy() -> None:
    with pytest.raises(ConfigError, match=r"--intensity 0,4095"):
        resolve_intensity("scale", FULL_RANGE, [])


@pytest.mark.parametrize("text", ["", "auto,", "5", "5,5", "9,1", "nan,1", "0,inf", "1,2,3", "scale,3"])
def test_an_invalid_choice_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="LOW,HIGH"):
        check_choice(text)


@pytest.mark.parametrize("fields", [{"low": 9.0, "high": 9.0}, {"rule": "percentile", "low": 0.0, "high": 101.0}, {"high": 1e12}])
def test_an_invalid_rule_is_an_error(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Intensity.model_validate(fields)


def test_examine_measures_the_value_range_of_16_bit_images_only(tmp_path: Path) -> None:
    files = {"gray.png": encode(Image.fromarray(GRAY)), "color.png": raw_png(COLOR), "plain.png": encode(Image.new("RGB", (9, 6)))}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    assert [examine(tmp_path / name).levels for name in files] == [(5, 4085), (5, 4085), None]


def test_preprocess_applies_the_rule_of_the_spec() -> None:
    spec = PreprocessSpec(input_size=(16, 16), crop_pct=1.0)
    assert PreprocessSpec.model_validate_json(spec.model_dump_json()).intensity == FULL_RANGE
    wide = spec.model_copy(update={"intensity": TWELVE})
    assert PreprocessSpec.model_validate_json(wide.model_dump_json()) == wide
    assert preprocess(GRAY, wide).max() > preprocess(GRAY, spec).max() + 3
