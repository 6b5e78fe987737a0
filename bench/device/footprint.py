"""Footprint on a device: start-up times, memory, and size of an installation with one engine.

``python -m bench.device.footprint [--run RUN] [--bundle BUNDLE]``. The installations need a package registry.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

import numpy as np

from bench.trashnet import run_and_bundle
from edgetl.measure.config import BenchConfig
from edgetl.measure.stages import measure_bundle

ROOT = Path(__file__).parents[2]
REPEATS = 7


def main() -> None:
    """Print one line for each figure."""
    with run_and_bundle("bench.device.footprint", __doc__) as (_, bundle):
        measure(bundle)


def measure(bundle: Path) -> None:
    for name, arguments in (
        ("python -c pass", ["-c", "pass"]),
        ("import edgetl", ["-c", "import edgetl"]),
        ("edgetl --help", ["-m", "edgetl.cli.app", "-h"]),
    ):
        print(f"{name}: {_seconds(arguments):.2f} s (median of {REPEATS} processes, with interpreter start)")
    report = measure_bundle(bundle, BenchConfig(runs=50, max_seconds=2.0))
    for row in report.variants:
        cold = row.cold
        print(f"{row.variant}: first prediction {cold.first_prediction_ms / 1000:.2f} s, peak memory {cold.peak_rss_mb:.0f} MB")
    for extra in ("onnxruntime", "openvino", "onnxruntime,serve"):
        print(f"edgetl[{extra}], installed with --no-compile, after one command: {_installed_mb(extra, bundle):.0f} MB")


def _seconds(arguments: list[str]) -> float:
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def _installed_mb(extra: str, bundle: Path) -> float:
    """Return the size of a fresh environment without pip, MB (10^6 bytes), including the byte code that one command writes."""
    with tempfile.TemporaryDirectory() as work:
        venv.create(work, with_pip=False)
        python = Path(work, "bin/python")
        install = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-compile", f"{ROOT}[{extra}]"]
        subprocess.run(install, check=True, capture_output=True)
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
        subprocess.run([python, "-m", "edgetl.cli.app", "verify", bundle], check=True, capture_output=True, env=environment)
        return sum(path.stat().st_size for path in Path(work).rglob("*") if path.is_file() and not path.is_symlink()) / 1e6


if __name__ == "__main__":
    main()
