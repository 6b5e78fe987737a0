"""Training: time of a linear probe and of a partial fine-tuning, and images per second of the training loop."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

if TYPE_CHECKING:
    from edgetl.data.split import Splits

pytestmark = pytest.mark.benchmark(group="training")
IMAGES, BATCH, EPOCHS = 240, 32, 2
OPTIONS: dict[str, dict[str, Any]] = {
    "probe": {"strategy": "probe"},
    "partial": {"strategy": "partial", "unfreeze": "0.5"},
    "full": {"strategy": "full"},
}


@pytest.mark.parametrize("strategy", OPTIONS)
def test_fine_tuning(benchmark: BenchmarkFixture, make_splits: Callable[[int], Splits], tmp_path: Path, strategy: str) -> None:
    """Fine-tuning from splits to a run folder. ``images_per_s`` is the throughput of the training steps alone."""
    from edgetl.train.config.options import TrainConfig
    from edgetl.train.workflows.finetune import fine_tune

    config = TrainConfig.from_options(epochs=EPOCHS, batch_size=BATCH, augmented_views=1, patience=1000, **OPTIONS[strategy])
    splits, folders, moments = make_splits(IMAGES), (tmp_path / str(number) for number in count()), list[float]()

    def note(stage: str, done: int, total: int) -> None:  # noqa: ARG001
        if stage == "fine-tuning":
            moments.append(time.perf_counter())

    benchmark.pedantic(lambda: fine_tune(splits, config, next(folders), progress=note), rounds=2)
    if len(moments) > 1:
        benchmark.extra_info["images_per_s"] = round(BATCH / float(np.median(np.diff(moments))), 1)
