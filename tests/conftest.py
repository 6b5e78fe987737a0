"""Fixtures of several packages: small real images, a trained run and its bundle, and both for photographs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgetl.core.bundle import Bundle, open_bundle
from edgetl.export.config import ExportConfig
from edgetl.export.package import export_bundle
from edgetl.train.artifacts.run import Run, open_run
from edgetl.train.config.options import TrainConfig
from edgetl.train.inputs.digits import write_digits
from edgetl.train.workflows.train import train
from tests.built import built
from tests.command import edgetl

SHARED = Path(os.environ.get("EDGETL_SHARED", Path(__file__).parents[2] / "shared"))


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep scan caches out of the user's cache folder."""
    old = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if old is None:
        del os.environ["XDG_CACHE_HOME"]
    else:
        os.environ["XDG_CACHE_HOME"] = old


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> None:
    """Undo the ignored SIGINT of a shell that started the tests in the background: child processes inherit it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of the reference images and weights. Tests are skipped without it."""
    if not (SHARED / "data").is_dir():
        pytest.skip(f"the reference data is not at {SHARED} (EDGETL_SHARED)")
    return SHARED


@pytest.fixture(scope="session")
def registry() -> None:
    """Require a package registry. Tests are skipped if none is reachable."""
    resolved = subprocess.run(
        [sys.executable, "-m", "uv", "pip", "compile", "-q", "-"], input="typer", capture_output=True, text=True, check=False
    )
    if resolved.returncode:
        pytest.skip(f"no package registry is reachable: {resolved.stderr.strip()[-200:]}")


@pytest.fixture(scope="session")
def digits() -> Path:
    """Image folder with the digits of the demo."""
    return built("digits", write_digits)


@pytest.fixture(scope="session")
def run(digits: Path) -> Run:
    """Run of a small convolutional network, trained on the digits for a few epochs. It is quick to export and to quantize."""
    config = TrainConfig.from_options(
        backbone="test_resnet",
        pretrained=False,
        strategy="full",
        input_size=(48, 48),
        crop_pct=1.0,
        augment="light",
        epochs=5,
        val=0.2,
        test=0.2,
    )
    return open_run(built("runs/digits", lambda out: train(digits, config, out)))


@pytest.fixture(scope="session")
def bundle(run: Run) -> Bundle:
    """Bundle of the run with six variants."""
    config = ExportConfig(name="digits", precisions=("fp32", "fp16", "int8"), max_drop=0.02, calibration_images=100)
    return open_bundle(built("bundles/digits", lambda out: export_bundle(run.path, config, out)))


@pytest.fixture(scope="session")
def photo_run(shared: Path) -> Run:
    """Run of ``edgetl train`` on trashnet with the ImageNet MobileNetV2."""

    def build(out: Path) -> None:
        backbone = f"local-dir:{shared}/weights/mobilenetv2_100.imagenet"
        done = edgetl("train", shared / "data/trashnet", "--backbone", backbone, "--strategy", "probe", "--out", out, "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["name"] == "trash"

    return open_run(built("runs/trash", build))


@pytest.fixture(scope="session")
def photo_bundle(photo_run: Run) -> Bundle:
    """Bundle of that run with four variants."""

    def build(out: Path) -> None:
        done = edgetl("export", photo_run.path, "--out", out, "--format", "onnx,openvino", "--precision", "fp32,int8")
        assert done.returncode == 0, done.stderr

    return open_bundle(built("bundles/trash", build))


@pytest.fixture(scope="session")
def photo(run: Run) -> bytes:
    """Encoded test image of the digits."""
    return run.samples("test")[0].path.read_bytes()


@pytest.fixture
def colors(tmp_path: Path) -> Path:
    """Image folder with three classes of noisy color patches, 12 images each."""
    return write_colors(tmp_path / "colors", 12)


def write_colors(root: Path, count: int, *, side: int = 40, seed: int = 0) -> Path:
    """Write ``count`` noisy PNG images for each of the classes red, green and blue."""
    rng = np.random.default_rng(seed)
    for channel, name in enumerate(("red", "green", "blue")):
        (root / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            pixels = rng.integers(0, 90, (side, side, 3))
            pixels[:, :, channel] += 120
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{index:03d}.png")
    return root


def write_squares(root: Path, count: int, *, side: int = 40, seed: int = 0) -> Path:
    """Write ``count`` gray images, each with up to three squares (red, green, blue), and a label table ``labels.csv``.

    Columns of the table: ``file``; number of squares of each color (0 or 1); ``mm`` (ten times the brightness of the background, 0..10);
    ``grade`` (number of squares).
    """
    rng = np.random.default_rng(seed)
    (root / "images").mkdir(parents=True)
    lines = ["file,red,green,blue,mm,grade"]
    for index in range(count):
        ground = rng.uniform(0.2, 0.8)
        pixels = rng.normal(255 * ground, 4, (side, side, 3))
        held = rng.random(3) < 0.5
        for channel in np.flatnonzero(held):
            top, left = 13 * channel, int(rng.integers(0, side - 12))
            pixels[top : top + 12, left : left + 12] = 25
            pixels[top : top + 12, left : left + 12, channel] = 235
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / "images" / f"{index:03d}.png")
        lines.append(f"{index:03d}.png,{','.join(str(int(value)) for value in held)},{10 * ground:.4f},{held.sum()}")
    (root / "labels.csv").write_text("\n".join(lines) + "\n", "utf-8")
    return root


@pytest.fixture(scope="session")
def squares() -> Path:
    """Images with squares, and their table."""
    return built("squares", lambda root: write_squares(root, 90))
