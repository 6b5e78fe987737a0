"""Predictor on one thread: loading of a bundle, and prediction from JPEG bytes to scores."""

from __future__ import annotations

from itertools import cycle

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.suites.variants import VARIANTS
from edgetl.core.bundle import Bundle
from edgetl.runtime.predictor import load

pytestmark = pytest.mark.benchmark(group="predictor", warmup=True, warmup_iterations=20, max_time=0.5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_bundle_loading(benchmark: BenchmarkFixture, bundle: Bundle, variant: str) -> None:
    benchmark.pedantic(load, (bundle.path,), {"variant": variant, "threads": 1}, rounds=5, warmup_rounds=1)


@pytest.mark.parametrize("variant", VARIANTS)
def test_prediction(benchmark: BenchmarkFixture, bundle: Bundle, camera: list[bytes], variant: str) -> None:
    predictor, images = load(bundle, variant=variant, threads=1), cycle(camera)
    benchmark(lambda: predictor.predict(next(images)))


@pytest.mark.parametrize("variant", VARIANTS)
def test_prediction_of_16_images(benchmark: BenchmarkFixture, bundle: Bundle, camera: list[bytes], variant: str) -> None:
    predictor = load(bundle, variant=variant, threads=1)
    benchmark(predictor.predict, camera)
