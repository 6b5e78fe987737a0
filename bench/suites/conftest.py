"""Fixtures of the suites: images, run and bundle, and a record of the host with each result.

The network is the embedded backbone. The images are the photographs of trashnet if the reference folder exists, otherwise the digits of the
demo. The name of a benchmark contains its image set, so ``pytest-benchmark compare`` does not compare different images.

torch is imported where it is used: collection takes a second, and the suites of the device run without torch once their bundle exists.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image
from pytest_benchmark.fixture import BenchmarkFixture

from bench.paths import SHARED
from bench.suites.variants import EXPORT
from edgetl.core.bundle import Bundle, open_bundle
from edgetl.core.images.decode import load_image
from edgetl.core.system.host import versions
from edgetl.core.system.host_load import load_between, read_counters
from edgetl.core.system.host_state import describe_cpu
from tests.built import built

if TYPE_CHECKING:
    from edgetl.data.split import Splits
    from edgetl.train.artifacts.run import Run

PHOTOGRAPHS = SHARED / "data/trashnet"
CAMERA_SIZE, CAMERA_IMAGES = (640, 480), 16
# Groups of benchmarks that start processes. Their CPU time counts as that of other programs.
CHILD_PROCESSES = ("server", "start-up", "growth with bundles")
_busy = pytest.StashKey[list[str]]()


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    """Add the fingerprint of the host and the versions of the libraries to the saved result."""
    machine_info |= {"host": describe_cpu(), "versions": versions()}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """List the benchmarks that ran on a busy host."""
    if busy := config.stash.get(_busy, []):
        terminalreporter.write_line(f"busy host during {len(busy)} benchmarks, which cannot be compared: {', '.join(busy)}", yellow=True)


@pytest.fixture(autouse=True)
def _conditions(request: pytest.FixtureRequest, benchmark: BenchmarkFixture) -> Iterator[None]:
    """Record the image set and the load of the host with each result."""
    before = read_counters()
    yield
    load = load_between(before, read_counters())
    benchmark.extra_info["images"] = (benchmark.params or {}).get("dataset")
    if load is None:
        return
    benchmark.extra_info["host_load"] = load.model_dump()
    if load.busy and benchmark.enabled and benchmark.group not in CHILD_PROCESSES:
        request.config.stash.setdefault(_busy, []).append(benchmark.name)


@pytest.fixture(scope="session", params=["trashnet" if PHOTOGRAPHS.is_dir() else "digits"])
def dataset(request: pytest.FixtureRequest) -> Path:
    """Folder of the image set."""
    if request.param == "trashnet":
        return PHOTOGRAPHS
    from edgetl.train.inputs.digits import write_digits

    return built("digits", write_digits)


@pytest.fixture(scope="session")
def camera(dataset: Path) -> list[bytes]:
    """Images of a camera: JPEG files of 640 x 480 pixels, enlarged from the image set."""
    files = sorted(path for path in dataset.glob("*/*") if path.suffix in (".jpg", ".png"))
    encoded = []
    for path in files[:: len(files) // CAMERA_IMAGES][:CAMERA_IMAGES]:
        buffer = io.BytesIO()
        load_image(path).resize(CAMERA_SIZE, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
        encoded.append(buffer.getvalue())
    return encoded


@pytest.fixture(scope="session")
def run(dataset: Path) -> Run:
    """Run with a linear probe on the embedded backbone."""
    from edgetl.train.artifacts.run import open_run
    from edgetl.train.config.options import TrainConfig
    from edgetl.train.workflows.train import train

    config = TrainConfig.from_options(strategy="probe", augmented_views=1, val=0.2, test=0.2)
    return open_run(built(f"benchmarks/{dataset.name}-run", lambda out: train(dataset, config, out)))


@pytest.fixture(scope="session")
def bundle(request: pytest.FixtureRequest, dataset: Path) -> Bundle:
    """Bundle of the run with four variants."""

    def build(out: Path) -> None:
        from edgetl.export.package import export_bundle

        export_bundle(request.getfixturevalue("run").path, EXPORT, out)

    return open_bundle(built(f"benchmarks/{dataset.name}-bundle", build))


@pytest.fixture(scope="session")
def make_splits(dataset: Path) -> Callable[[int], Splits]:
    """Function that returns splits with a number of training images and 60 validation images, both balanced over the classes."""
    from edgetl.data.folder import scan
    from edgetl.data.loading import stratified
    from edgetl.data.split import Splits, split

    whole = split(scan(dataset), val=0.2, test=0.2)
    return lambda count: Splits(whole.folder, tuple(stratified(whole.train, count)), tuple(stratified(whole.val, 60)), ())
