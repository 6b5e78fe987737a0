"""Preprocessing compared with timm: bit-identical with two-step resize, within one gray level with fused resize."""

from __future__ import annotations

import hashlib
import itertools
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError
from timm.data import create_transform

from edgetl.core.files.platforms import peak_memory_bytes
from edgetl.core.images.decode import MAX_PIXELS
from edgetl.core.images.intensity import Intensity
from edgetl.core.preprocess import CropMode, Interpolation, PreprocessSpec, normalize, pixels_of, preprocess, to_batch, to_pixels

CROP_MODES: tuple[CropMode, ...] = ("center", "squash", "border")
CROP_PCTS = (0.875, 0.9, 1.0, 1.2)
FILTERS: tuple[Interpolation, ...] = ("bicubic", "bilinear")
SIZES_PER_CASE = 9


def noise(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def input_size(rng: np.random.Generator, *, square: bool) -> tuple[int, int]:
    height, width = (int(side) for side in rng.integers(8, 129, 2))
    return (height, height) if square else (height, width)


def timm_tensor(image: Image.Image, spec: PreprocessSpec) -> NDArray[np.float32]:
    transform = create_transform(
        (3, *spec.input_size),
        is_training=False,
        interpolation=spec.interpolation,
        crop_pct=spec.crop_pct,
        crop_mode=spec.crop_mode,
        mean=spec.mean,
        std=spec.std,
    )
    result: NDArray[np.float32] = transform(image).numpy()
    return result


def levels_apart(image: Image.Image, spec: PreprocessSpec) -> int:
    """Return the largest difference between the two resize methods, gray levels."""
    two_step = spec.model_copy(update={"resize": "two-step"})
    fused, reference = (np.asarray(to_pixels(image, each)).astype(int) for each in (spec, two_step))
    return int(abs(fused - reference).max())


@pytest.mark.parametrize(("crop_mode", "crop_pct", "filter_"), list(itertools.product(CROP_MODES, CROP_PCTS, FILTERS)))
def test_two_step_is_bit_identical_to_the_evaluation_transform_of_timm(
    crop_mode: CropMode, crop_pct: float, filter_: Interpolation
) -> None:
    rng = np.random.default_rng([CROP_MODES.index(crop_mode), CROP_PCTS.index(crop_pct), FILTERS.index(filter_)])
    for index in range(SIZES_PER_CASE):
        width, height = (int(side) for side in rng.integers(1, 400, 2))
        image = noise(rng, width, height)
        size = input_size(rng, square=index % 2 == 0)
        spec = PreprocessSpec(input_size=size, crop_mode=crop_mode, crop_pct=crop_pct, interpolation=filter_, resize="two-step")
        assert np.array_equal(preprocess(image, spec), timm_tensor(image, spec)), f"{width} x {height} to {size}"


@pytest.mark.parametrize("size", [(1, 1), (1, 60), (60, 1), (2, 3), (31, 64), (256, 256), (257, 255)])
@pytest.mark.parametrize("crop_mode", CROP_MODES)
def test_two_step_equals_timm_at_sizes_where_rounding_matters(size: tuple[int, int], crop_mode: CropMode) -> None:
    image = noise(np.random.default_rng(3), *size)
    spec = PreprocessSpec(input_size=(64, 64), crop_mode=crop_mode, resize="two-step")
    assert np.array_equal(preprocess(image, spec), timm_tensor(image, spec))


def test_two_step_equals_timm_with_another_mean_and_std() -> None:
    image = noise(np.random.default_rng(4), 90, 70)
    spec = PreprocessSpec(input_size=(48, 48), crop_mode="border", resize="two-step", mean=(0.5, 0.4, 0.3), std=(0.5, 0.25, 0.2))
    assert np.array_equal(preprocess(image, spec), timm_tensor(image, spec))


@pytest.mark.parametrize("filter_", ["bilinear", "bicubic", "lanczos", "hamming"])
@pytest.mark.parametrize("crop_mode", CROP_MODES)
def test_fused_is_within_one_gray_level_of_two_step_on_noise(crop_mode: CropMode, filter_: Interpolation) -> None:
    rng = np.random.default_rng([7, CROP_MODES.index(crop_mode), len(filter_)])
    worst = 0
    for index in range(15):
        width, height = (int(side) for side in rng.integers(1, 500, 2))
        size = input_size(rng, square=index % 2 == 0)
        spec = PreprocessSpec(input_size=size, crop_mode=crop_mode, crop_pct=CROP_PCTS[index % 4], interpolation=filter_)
        worst = max(worst, levels_apart(noise(rng, width, height), spec))
    assert worst <= 1


def test_fused_is_within_one_gray_level_on_a_camera_image() -> None:
    image = noise(np.random.default_rng(8), 2016, 1512)
    assert levels_apart(image, PreprocessSpec(input_size=(224, 224))) <= 1


@pytest.mark.parametrize(
    ("size", "changes"),
    [
        ((100, 250), {}),
        ((100, 201), {}),
        ((120, 90), {"interpolation": "nearest"}),
        ((120, 90), {"interpolation": "box"}),
        ((100, 77), {"interpolation": "box"}),
        ((120, 90), {"crop_mode": "squash"}),
    ],
    ids=["2.5 times as high as wide", "more than twice as high", "nearest", "box", "box at a pixel border", "squash"],
)
def test_fused_equals_two_step_where_rounding_or_the_order_of_the_passes_matters(size: tuple[int, int], changes: dict[str, Any]) -> None:
    rng = np.random.default_rng(12)
    for side in (24, 37, 64):
        spec = PreprocessSpec.model_validate({"input_size": (side, side), **changes})
        assert levels_apart(noise(rng, *size), spec) == 0


def test_fused_is_within_one_gray_level_if_the_crop_is_far_from_the_border() -> None:
    """The crop of a wide or very large image needs few of its rows and columns. The margin of the widest filter must suffice."""
    for width, height in ((900, 300), (2000, 1900), (300, 301)):
        for filter_ in ("lanczos", "bicubic"):
            spec = PreprocessSpec.model_validate({"input_size": (16, 16), "crop_pct": 0.2, "interpolation": filter_})
            assert levels_apart(noise(np.random.default_rng(13), width, height), spec) <= 1


def test_fused_is_used_up_to_twice_as_high_as_wide() -> None:
    """A difference of one gray level shows which method made the pixels."""
    for height in (200, 300):
        assert levels_apart(noise(np.random.default_rng(0), 150, height), PreprocessSpec(input_size=(96, 96))) == 1


@pytest.mark.parametrize("size", [(63, 64), (64, 63)])
def test_an_image_one_pixel_smaller_than_the_crop_is_padded(size: tuple[int, int]) -> None:
    """Half a pixel on each side is rounded: the image is at the left and at the top."""
    image = noise(np.random.default_rng(14), *size)
    spec = PreprocessSpec(input_size=(64, 64), crop_mode="border", crop_pct=1.0)
    expected = Image.new("RGB", (64, 64), (124, 116, 104))
    expected.paste(image)
    assert np.array_equal(np.asarray(to_pixels(image, spec)), np.asarray(expected))


def test_a_resized_image_above_the_limit_of_pixels_is_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The resized image has 109 x 218 pixels. At the limit it is computed as a whole."""
    image = noise(np.random.default_rng(0), 150, 300)
    fused = PreprocessSpec(input_size=(96, 96))
    two_step = fused.model_copy(update={"resize": "two-step"})
    monkeypatch.setattr("edgetl.core.preprocess.MAX_PIXELS", 109 * 218)
    whole = np.asarray(to_pixels(image, two_step))
    monkeypatch.setattr("edgetl.core.preprocess.MAX_PIXELS", 109 * 218 - 1)
    part = np.asarray(to_pixels(image, two_step))
    assert np.array_equal(part, np.asarray(to_pixels(image, fused))) and not np.array_equal(part, whole)


@pytest.mark.parametrize("size", [(1, 550_000), (550_000, 1), (1, 40_000_000), (40_000_000, 1), (2, 600_001), (600_001, 2)])
@pytest.mark.parametrize("resize", ["fused", "two-step"])
@pytest.mark.parametrize("crop_pct", [0.1, 0.875, 1.0])
def test_an_extremely_narrow_image_is_cropped_before_it_is_resized(
    size: tuple[int, int], resize: Literal["fused", "two-step"], crop_pct: float
) -> None:
    """The resized image would have up to 4e11 pixels. Pillow cannot make it."""
    image = Image.new("RGB", size, (10, 200, 30))
    spec = PreprocessSpec(input_size=(96, 96), crop_pct=crop_pct, resize=resize)
    before = peak_memory_bytes()
    pixels = to_batch([image], spec, "uint8")
    assert pixels.shape == (1, 96, 96, 3) and (pixels == (10, 200, 30)).all()
    assert peak_memory_bytes() - before < 10e6
    normalized = np.empty((3, 96, 96), np.float32)
    normalize(pixels[0], spec, normalized)
    assert np.array_equal(to_batch([image], spec, "float"), [normalized])


def test_a_wide_image_is_resized_as_its_transpose() -> None:
    """Both passes of a very wide image compute only the crop. Its pixels differ by at most 1 from those of the tall image."""
    tall = noise(np.random.default_rng(0), 3, 100_000)
    spec = PreprocessSpec(input_size=(96, 96), interpolation="bilinear")
    assert MAX_PIXELS < 109 * 109 * 100_000 / 3
    wide = np.asarray(to_pixels(tall.transpose(Image.Transpose.TRANSPOSE), spec), np.int16)
    difference = np.abs(wide - np.asarray(to_pixels(tall, spec), np.int16).transpose(1, 0, 2))
    assert difference.max() <= 1 and np.ptp(wide) > 50


def test_border_keeps_at_least_one_column_of_a_thin_image() -> None:
    white = Image.new("RGB", (1, 500), (255, 255, 255))
    spec = PreprocessSpec(input_size=(64, 64), crop_mode="border", crop_pct=1.0, mean=(0.0, 0.0, 0.0))
    columns = np.asarray(to_pixels(white, spec)).min(axis=(0, 2))
    rows = np.asarray(to_pixels(white.rotate(90, expand=True), spec)).min(axis=(1, 2))
    assert columns.tolist() == rows.tolist() == [255 if index == 31 else 0 for index in range(64)]


def test_images_of_16_bits_are_converted_by_the_intensity_rule() -> None:
    image = Image.fromarray(np.full((20, 20), 1000, np.uint16))
    spec = PreprocessSpec(input_size=(16, 16), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), intensity=Intensity(low=0.0, high=2550.0))
    assert preprocess(image, spec) == pytest.approx(100 / 255)


def test_a_batch_has_normalized_planes_or_pixels() -> None:
    images = [noise(np.random.default_rng(seed), 50, 40) for seed in range(3)]
    spec = PreprocessSpec(input_size=(24, 32))
    batch, pixels = to_batch(images, spec, "float"), to_batch(images, spec, "uint8")
    assert (batch.dtype.name, batch.shape) == ("float32", (3, 3, 24, 32))
    assert (pixels.dtype.name, pixels.shape) == ("uint8", (3, 24, 32, 3))
    assert all(np.array_equal(row, preprocess(image, spec)) for row, image in zip(batch, images, strict=True))
    assert all(np.array_equal(row, np.asarray(to_pixels(image, spec))) for row, image in zip(pixels, images, strict=True))


@pytest.mark.parametrize("seed", range(3))
def test_pixels_of_inverts_normalize_for_every_gray_level(seed: int) -> None:
    rng = np.random.default_rng(seed)
    spec = PreprocessSpec.model_validate(
        {"input_size": (16, 48), "mean": rng.uniform(0, 1, 3).tolist(), "std": rng.uniform(0.05, 1, 3).tolist()}
    )
    pixels = np.stack([rng.permutation(np.tile(np.arange(256, dtype=np.uint8), 9)).reshape(16, 48, 3) for _ in range(2)])
    batch = np.empty((2, 3, 16, 48), np.float32)
    for row, image in zip(batch, pixels, strict=True):
        normalize(image, spec, row)
    found = pixels_of(batch, spec)
    assert found.dtype == np.uint8 and np.array_equal(found, pixels)


@pytest.mark.parametrize("resize", ["fused", "two-step"])
@pytest.mark.parametrize("size", [(40, 40), (24, 56)])
def test_the_result_is_a_contiguous_float32_array_with_three_planes(size: tuple[int, int], resize: str) -> None:
    spec = PreprocessSpec.model_validate({"input_size": size, "resize": resize})
    tensor = preprocess(noise(np.random.default_rng(0), 77, 53), spec)
    assert (tensor.dtype.name, tensor.shape, tensor.flags.c_contiguous) == ("float32", (3, *size), True)


@pytest.mark.parametrize("crop_mode", CROP_MODES)
@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1)])
def test_an_image_one_pixel_wide_gives_finite_values(size: tuple[int, int], crop_mode: CropMode) -> None:
    image = noise(np.random.default_rng(0), *size)
    tensor = preprocess(image, PreprocessSpec(input_size=(32, 32), crop_mode=crop_mode))
    assert tensor.shape == (3, 32, 32) and bool(np.isfinite(tensor).all())


def test_channels_are_normalized_separately() -> None:
    spec = PreprocessSpec(input_size=(8, 8), mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 1.0))
    tensor = preprocess(Image.new("RGB", (20, 30), (255, 0, 51)), spec)
    expected = [np.full((8, 8), value, np.float32) for value in (1.0, -1.0, 0.2)]
    assert np.array_equal(tensor, np.stack(expected))


def test_border_pads_with_the_mean_color() -> None:
    spec = PreprocessSpec(input_size=(64, 64), crop_mode="border", crop_pct=1.0)
    tensor = preprocess(Image.new("RGB", (200, 50), (255, 255, 255)), spec)
    assert float(abs(tensor[:, :20]).max()) < 0.01
    assert float(tensor[:, 26:38].min()) > 1.0


def test_center_pads_with_black_if_the_crop_is_larger_than_the_image() -> None:
    spec = PreprocessSpec(input_size=(60, 60), crop_pct=1.2, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    tensor = preprocess(Image.new("RGB", (80, 80), (255, 255, 255)), spec)
    assert float(tensor[:, :5].max()) == 0.0
    assert float(tensor[:, 5:55, 5:55].min()) == 1.0


def test_a_path_and_an_image_in_memory_give_the_same_tensor(tmp_path: Path) -> None:
    image = noise(np.random.default_rng(0), 50, 40)
    image.save(tmp_path / "a.png")
    spec = PreprocessSpec(input_size=(32, 32))
    assert np.array_equal(preprocess(tmp_path / "a.png", spec), preprocess(image, spec))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("input_size", (32, 40)),
        ("crop_mode", "squash"),
        ("crop_pct", 0.9),
        ("interpolation", "bilinear"),
        ("resize", "two-step"),
        ("mean", (0.485, 0.456, 0.407)),
        ("std", (0.229, 0.224, 0.226)),
        ("intensity", {"rule": "scale", "low": 0.0, "high": 4095.0}),
        ("decode", "scaled"),
    ],
)
def test_the_digest_changes_with_every_field(field: str, value: object) -> None:
    spec = PreprocessSpec(input_size=(32, 32))
    changed = PreprocessSpec.model_validate({**spec.model_dump(), field: value})
    assert changed.digest() != spec.digest()


def test_the_description_shows_the_settings_of_resize_and_crop() -> None:
    spec = PreprocessSpec(input_size=(96, 160), crop_mode="border", crop_pct=0.9, interpolation="bilinear", resize="two-step")
    assert spec.describe() == "96 x 160 RGB, border crop (--crop-pct 0.9), bilinear, two-step resize"


def test_the_digest_of_equal_specs_is_equal() -> None:
    one, other = PreprocessSpec(input_size=(32, 32)), PreprocessSpec(input_size=(32, 32), crop_mode="center", crop_pct=0.875)
    assert one.digest() == other.digest() == hashlib.sha256(one.model_dump_json().encode()).hexdigest()


def test_the_digest_test_covers_every_field() -> None:
    assert set(PreprocessSpec.model_fields) == {
        "input_size",
        "crop_mode",
        "crop_pct",
        "interpolation",
        "resize",
        "mean",
        "std",
        "intensity",
        "decode",
    }


@pytest.mark.parametrize(
    "wrong",
    [
        {"input_size": (7, 32)},
        {"input_size": (32, 4097)},
        {"input_size": (32, 32, 3)},
        {"crop_pct": 0.0},
        {"crop_pct": 1.6},
        {"crop_pct": float("nan")},
        {"std": (0.2, 0.0, 0.2)},
        {"mean": (0.5, 0.5)},
        {"mean": (0.5, 0.5, float("inf"))},
        {"interpolation": "cubic"},
        {"crop_mode": "centre"},
        {"color": "RGB"},
    ],
    ids=str,
)
def test_the_error_for_an_invalid_value_shows_its_field(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        PreprocessSpec.model_validate({"input_size": (32, 32), **wrong})
