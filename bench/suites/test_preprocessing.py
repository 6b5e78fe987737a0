"""Preprocessing on one core: JPEG decoding, resize and normalization of a camera image."""

from __future__ import annotations

from itertools import cycle

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from edgetl.core.preprocess import PreprocessSpec, decode_image, normalize, preprocess, to_pixels

pytestmark = pytest.mark.benchmark(group="preprocessing", warmup=True, warmup_iterations=20, max_time=0.5)
SPEC = PreprocessSpec(input_size=(128, 128), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


@pytest.mark.parametrize("decode", ["full", "scaled"])
def test_decoding(benchmark: BenchmarkFixture, camera: list[bytes], decode: str) -> None:
    spec, images = SPEC.model_copy(update={"decode": decode}), cycle(camera)
    benchmark(lambda: decode_image(next(images), spec))


@pytest.mark.parametrize("resize", ["fused", "two-step"])
def test_resize(benchmark: BenchmarkFixture, camera: list[bytes], resize: str) -> None:
    spec, images = SPEC.model_copy(update={"resize": resize}), cycle([decode_image(data, SPEC) for data in camera])
    benchmark(lambda: to_pixels(next(images), spec))


def test_normalization(benchmark: BenchmarkFixture) -> None:
    pixels, out = np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8), np.empty((3, 128, 128), np.float32)
    benchmark(normalize, pixels, SPEC, out)


def test_preprocessing(benchmark: BenchmarkFixture, camera: list[bytes]) -> None:
    images = cycle(camera)
    benchmark(lambda: preprocess(next(images), SPEC))
