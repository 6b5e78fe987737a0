"""Start-up of fresh processes: import, command line, and cold start until the first prediction."""

from __future__ import annotations

import subprocess
import sys

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.suites.variants import VARIANTS
from edgetl.core.bundle import Bundle
from edgetl.core.system.execution import Choice
from edgetl.measure.stages import measure_cold_start

pytestmark = pytest.mark.benchmark(group="start-up")
COMMANDS = {"python": ["-c", "pass"], "import edgetl": ["-c", "import edgetl"], "edgetl --help": ["-m", "edgetl.cli.app", "--help"]}


@pytest.mark.parametrize("command", COMMANDS)
def test_start(benchmark: BenchmarkFixture, command: str) -> None:
    arguments = [sys.executable, *COMMANDS[command]]
    benchmark.pedantic(lambda: subprocess.run(arguments, check=True, capture_output=True), rounds=7, warmup_rounds=1)


@pytest.mark.parametrize("variant", VARIANTS)
def test_cold_start(benchmark: BenchmarkFixture, bundle: Bundle, variant: str) -> None:
    cold = benchmark.pedantic(measure_cold_start, (bundle, Choice(variant=variant, threads=1)), rounds=5, warmup_rounds=1)
    benchmark.extra_info["peak_rss_mb"] = round(cold.peak_rss_mb, 1)
