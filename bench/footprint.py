"""What a device pays: start-up times, memory, and the size of an installation with one engine."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

import numpy as np

from edgetl.measure.scenarios import measure_bundle

ROOT = Path(__file__).parents[1]
REPEATS = 7


def main(_: Path, bundle: Path, __: Path) -> None:
    for name, arguments in (
        ("python -c pass", ["-c", "pass"]),
        ("import edgetl", ["-c", "import edgetl"]),
        ("edgetl --help", ["-m", "edgetl.cli.app", "-h"]),
    ):
        print(f"{name}: {_seconds(arguments):.2f} s (median of {REPEATS} processes, interpreter included)")
    report = measure_bundle(bundle, runs=50, max_seconds=2.0)
    for row in report.variants:
        cold = row.cold
        print(
            f"{row.variant}: first answer of a fresh process {cold.first_prediction_ms / 1000:.2f} s, peak memory {cold.peak_rss_mb:.0f} MB"
        )
    for extra in ("onnxruntime", "openvino", "onnxruntime,serve"):
        size, code = _installed_bytes(extra)
        print(f"edgetl[{extra}] installed: {size / 2**20:.0f} MiB ({size / 1e6:.0f} MB, of that {code / 1e6:.0f} MB byte code)")


def _seconds(arguments: list[str]) -> float:
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def _installed_bytes(extra: str) -> tuple[int, int]:
    """Size of the files of a fresh environment without pip, and how much of it is byte code that pip compiled."""
    with tempfile.TemporaryDirectory() as work:
        venv.create(work, with_pip=False)
        python = Path(work, "bin/python")
        install = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", f"{ROOT}[{extra}]"]
        subprocess.run(install, check=True, capture_output=True)
        sizes = [(path.suffix, path.stat().st_size) for path in Path(work).rglob("*") if path.is_file() and not path.is_symlink()]
        return sum(size for _, size in sizes), sum(size for suffix, size in sizes if suffix == ".pyc")
