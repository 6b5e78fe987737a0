"""Predictions on arm64: an emulated device and this host give the same labels and scores."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from edgetl.core.bundle import Bundle
from tests.arm64 import CPUS, Arm64Error, build_device, select_cpu
from tests.command import edgetl

pytestmark = [pytest.mark.slow, pytest.mark.network]

# Largest difference of a score, by precision. ONNX Runtime 1.32 cannot load some onnx-fp16 variants on CPUs with float16 arithmetic: it has
# no AveragePool for them. fp16 is therefore not compared.
TOLERANCE = {"fp32": 1e-3, "int8": 2e-2}


@pytest.fixture(scope="module")
def device() -> None:
    """Emulated device in ``.arm64/``. Tests are skipped if it cannot be built."""
    try:
        build_device()
    except Arm64Error as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module", params=CPUS)
def cpu(device: None, request: pytest.FixtureRequest) -> str:
    """Emulated CPU."""
    return str(request.param)


def _on_device(cpu: str, folder: Path, *arguments: object) -> str:
    """Run a command on the device and return its output. ``folder`` is not the checkout: the installed package is imported."""
    command = [str(select_cpu(cpu)), "-m", "edgetl.cli.app", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _compare(cpu: str, folder: Path, bundle: Bundle, images: list[Path]) -> None:
    """Predict the images with each fp32 and int8 variant on both architectures. Print and check labels and largest score differences."""
    failed = []
    for variant in (variant for variant in bundle.manifest.variants if variant.precision in TOLERANCE):
        arguments = ("predict", bundle.path, *images, "--variant", variant.name, "--threads", "1", "--json")
        here = edgetl(*arguments)
        assert here.returncode == 0, here.stderr
        outputs = here.stdout, _on_device(cpu, folder, *arguments)
        pairs = list(zip(*(json.loads(output)["predictions"] for output in outputs), strict=True))
        equal = sum(ours["label"] == theirs["label"] for ours, theirs in pairs)
        largest = max(abs(score - theirs["scores"][label]) for ours, theirs in pairs for label, score in ours["scores"].items())
        tolerance = TOLERANCE[variant.precision]
        print(f"{cpu} {variant.name}: {equal} of {len(pairs)} labels equal, largest score difference {largest:.1e} (limit {tolerance:g})")
        if equal < len(pairs) or largest > tolerance:
            failed.append(variant.name)
    assert not failed


def test_predictions_of_digits_on_arm64_equal_those_of_this_host(cpu: str, bundle: Bundle, digits: Path, tmp_path: Path) -> None:
    images = [path for folder in sorted(digits.iterdir()) for path in sorted(folder.iterdir())[:2]]
    assert len(images) == 20
    _compare(cpu, tmp_path, bundle, images)


@pytest.mark.shared
def test_predictions_of_photos_on_arm64_equal_those_of_this_host(cpu: str, photo_bundle: Bundle, shared: Path, tmp_path: Path) -> None:
    images = sorted((shared / "data/trashnet").glob("*/*.jpg"))[::120][:20]
    assert len(images) == 20
    _compare(cpu, tmp_path, photo_bundle, images)


def test_verify_on_arm64_passes_each_variant_in_a_child_process(device: None, bundle: Bundle, tmp_path: Path) -> None:
    report = json.loads(_on_device("cortex-a72", tmp_path, "verify", bundle.path, "--json"))
    assert len(report["checked"]) == len(bundle.manifest.variants) and not report["skipped"]
