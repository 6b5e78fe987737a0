"""Engines on one thread: loading of a variant, and inference from tensor to logits."""

from __future__ import annotations

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.suites.variants import VARIANTS
from edgetl.core.bundle import Bundle
from edgetl.runtime.engine import open_engine

pytestmark = pytest.mark.benchmark(group="engines", warmup=True, warmup_iterations=20, max_time=0.5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_engine_loading(benchmark: BenchmarkFixture, bundle: Bundle, variant: str) -> None:
    benchmark.pedantic(open_engine, (bundle, bundle.variant(variant)), {"threads": 1}, rounds=5, warmup_rounds=1)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("batch", [1, 16])
def test_inference(benchmark: BenchmarkFixture, bundle: Bundle, variant: str, batch: int) -> None:
    engine = open_engine(bundle, bundle.variant(variant), threads=1)
    tensor = np.random.default_rng(0).uniform(-1, 1, (batch, 3, *bundle.manifest.preprocess.input_size)).astype(np.float32)
    benchmark(engine.run, tensor)
