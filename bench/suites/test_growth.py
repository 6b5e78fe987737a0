"""Growth with size: images, classes, batch, input side, threads and bundles. ``python -m bench.growth`` fits and plots the curves.

Each benchmark has one numeric parameter, the size.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from numpy.typing import NDArray
from pytest_benchmark.fixture import BenchmarkFixture

from edgetl.core.bundle import Bundle
from edgetl.core.system.host import available_cores
from edgetl.runtime.engine import load_engine, open_engine
from tests.serve.serving import Served, with_release

if TYPE_CHECKING:
    from edgetl.data.split import Splits
    from edgetl.train.artifacts.run import Run

VARIANTS = ["onnx-fp32", "openvino-fp32"]


def growth(size: str) -> pytest.MarkDecorator:
    """Return the mark of a curve, whose benchmarks are one group."""
    return pytest.mark.benchmark(group=f"growth with {size}", warmup=True, warmup_iterations=20, max_time=0.5)


@growth("images")
@pytest.mark.parametrize("images", [250, 500, 1000])
def test_linear_probe_by_images(benchmark: BenchmarkFixture, make_splits: Callable[[int], Splits], tmp_path: Path, images: int) -> None:
    from edgetl.train.config.options import TrainConfig
    from edgetl.train.workflows.finetune import fine_tune

    config, splits = TrainConfig.from_options(strategy="probe", augmented_views=1), make_splits(images)
    assert len(splits.train) == images
    folders = (tmp_path / str(number) for number in count())
    benchmark.pedantic(lambda: fine_tune(splits, config, next(folders)), rounds=1)


@growth("classes")
@pytest.mark.parametrize("classes", [2, 4, 8, 16, 32])
def test_linear_head_by_classes(benchmark: BenchmarkFixture, classes: int) -> None:
    """Fit of a linear head on 512 feature vectors of width 128, whose classes overlap."""
    from edgetl.train.heads.linear import fit_logistic
    from edgetl.train.heads.modules import LabeledFeatures

    random, labels = np.random.default_rng(0), np.arange(512) % classes
    features = random.normal(size=(len(labels), 128)) + random.normal(scale=0.2, size=(classes, 128))[labels]
    benchmark.pedantic(
        fit_logistic, (LabeledFeatures(features.astype(np.float32), labels), classes), {"seed": 0}, rounds=5, warmup_rounds=1
    )


@growth("batch")
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("batch", [1, 2, 4, 8, 16, 32])
def test_inference_by_batch(benchmark: BenchmarkFixture, bundle: Bundle, variant: str, batch: int) -> None:
    engine = open_engine(bundle, bundle.variant(variant), threads=1)
    benchmark(engine.run, _tensor(batch, bundle.manifest.preprocess.input_size[0]))


@growth("threads")
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("threads", [2**power for power in range(7) if 2**power <= available_cores()])
def test_inference_by_threads(benchmark: BenchmarkFixture, bundle: Bundle, variant: str, threads: int) -> None:
    """Inference of 16 images."""
    engine = open_engine(bundle, bundle.variant(variant), threads=threads)
    benchmark(engine.run, _tensor(16, bundle.manifest.preprocess.input_size[0]))


@growth("side")
@pytest.mark.parametrize("side", [64, 96, 128, 192, 256])
def test_inference_by_side(benchmark: BenchmarkFixture, run: Run, tmp_path: Path, side: int) -> None:
    """Inference of one image of ``side`` x ``side`` pixels with ONNX Runtime. The number of pixels grows with the square of the side."""
    from edgetl.export.convert.to_onnx import to_onnx

    to_onnx(run.load_model(), run.record.preprocess.model_copy(update={"input_size": (side, side)}), tmp_path / "model.onnx", {})
    engine = load_engine("onnx", [(tmp_path / "model.onnx").read_bytes()], threads=1)
    benchmark(engine.run, _tensor(1, side))


@growth("bundles")
@pytest.mark.parametrize("bundles", [1, 2, 4, 8])
def test_server_start_by_bundles(benchmark: BenchmarkFixture, bundle: Bundle, tmp_path: Path, bundles: int) -> None:
    """Start of ``edgetl serve`` until it accepts requests."""
    folders = [with_release(bundle, tmp_path / str(number), number) for number in range(1, bundles + 1)]

    started: list[Served] = []

    def stop() -> None:
        while started:
            started.pop().stop()

    try:
        benchmark.pedantic(lambda: started.append(Served(folders, "--variant", "onnx-fp32").wait()), setup=stop, rounds=2)
    finally:
        stop()


def _tensor(batch: int, side: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).uniform(-1, 1, (batch, 3, side, side)).astype(np.float32)
