"""Device runner: time from a folder of camera images to a file of JSON lines."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.suites.variants import VARIANTS
from edgetl.core.bundle import Bundle
from edgetl.device.runner.loop import Runner
from edgetl.device.runner.model import Model
from edgetl.device.runner.sinks.lines import LineSink
from edgetl.device.runner.sources.folder import FolderSource
from edgetl.device.runner.waiting import Stop

pytestmark = pytest.mark.benchmark(group="device runner")
FRAMES = 128


@pytest.mark.parametrize("variant", VARIANTS)
def test_folder_to_json_lines(benchmark: BenchmarkFixture, bundle: Bundle, camera: list[bytes], tmp_path: Path, variant: str) -> None:
    """Time of 128 frames, with a loaded network."""
    images, numbers = tmp_path / "images", count()
    images.mkdir()
    for number, data in enumerate(camera):
        (images / f"{number:02d}.jpg").write_bytes(data)
    model = Model(bundle.path, variant=variant, threads=1)

    def make_runner() -> tuple[tuple[Runner], dict[str, float]]:
        stop = Stop()
        source = FolderSource(images, mode="loop", settle_s=0.0, processed="keep", stop=stop)
        runner = Runner(model, source, [LineSink(tmp_path / f"{next(numbers)}.jsonl", "jsonl")], stop=stop)
        runner.limit = FRAMES
        return (runner,), {"flush_s": 1.0}

    health = benchmark.pedantic(Runner.run, setup=make_runner, rounds=5, warmup_rounds=1)
    assert health.predicted == FRAMES
    if benchmark.stats:
        benchmark.extra_info["images_per_s"] = round(FRAMES / benchmark.stats.stats.median, 1)
