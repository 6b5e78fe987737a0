"""Suites of ``make bench``: they collect, run, and write results that ``pytest-benchmark compare`` and ``bench.growth`` read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.growth import plot, read_curves

ROOT = Path(__file__).parents[2]


def _run_suites(*options: str, shared: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "bench/suites", "-q", "-p", "no:cacheprovider", *options]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, "EDGETL_SHARED": str(shared)}, capture_output=True, text=True, check=False)


def test_suites_are_collected_and_run_without_reference_images(tmp_path: Path) -> None:
    done = _run_suites("--benchmark-disable", "-k", "test_normalization", shared=tmp_path)
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout


@pytest.mark.slow
def test_every_benchmark_runs_on_the_digits(tmp_path: Path) -> None:
    done = _run_suites("--benchmark-disable", shared=tmp_path)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_results_contain_host_versions_and_images(tmp_path: Path) -> None:
    options = ["--benchmark-max-time=0.01", f"--benchmark-json={tmp_path}/result.json", "-k", "test_normalization or test_decoding"]
    assert _run_suites(*options, shared=tmp_path).returncode == 0
    result = json.loads((tmp_path / "result.json").read_text("utf-8"))
    assert result["machine_info"]["host"]["cpu"] and result["machine_info"]["versions"]["edgetl"]
    assert {item["extra_info"]["images"] for item in result["benchmarks"]} == {"digits", None}
    compared = subprocess.run(
        [sys.executable, "-m", "pytest_benchmark", "compare", tmp_path / "result.json"], capture_output=True, text=True
    )
    assert compared.returncode == 0 and "test_normalization" in compared.stdout + compared.stderr, compared.stderr


def test_growth_fits_the_exponent_of_a_curve(tmp_path: Path) -> None:
    items = [
        {
            "fullname": f"bench/suites/test_growth.py::test_fit_by_images[{size}]",
            "name": f"test_fit_by_images[{size}]",
            "params": {"dataset": "digits", "images": size},
            "stats": {"min": 0.001 * size**1.5},
        }
        for size in (200, 100, 400)
    ]
    (tmp_path / "result.json").write_text(json.dumps({"benchmarks": items}))
    (curve,) = read_curves(tmp_path / "result.json")
    assert (curve.title, curve.label, curve.sizes) == ("fit by images", "digits", (100, 200, 400))
    assert curve.exponent == pytest.approx(1.5)
    (axes,) = plot([curve], "host").axes
    assert axes.get_title() == "fit by images" and axes.get_xscale() == axes.get_yscale() == "log"
