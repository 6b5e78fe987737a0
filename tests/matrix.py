"""Version matrix: ``python -m tests.matrix [ROW …]`` (``make test-matrix``) tests the versions that ``pyproject.toml`` allows.

Rows: the lowest direct versions on Python 3.11, the newest on 3.12 and 3.13, and each device extra, lowest and newest, on each Python.
A full row runs ``--help`` of every command, ``edgetl demo`` and the quick tests. A device row verifies, inspects, predicts and measures
the bundle of the first demo. Needs uv, a package registry, the interpreters ``python3.11`` to ``python3.13`` on ``PATH`` and 20 GB.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).parents[1]
TEST_TOOLS = ("pytest", "hypothesis", "httpx")
# Quick tests that use every library with a lower bound.
QUICK_TESTS = (
    "tests/core",
    "tests/data",
    "tests/runtime",
    "tests/measure",
    "tests/export/test_package.py",
    "tests/train/test_backbones.py",
    "tests/train/test_weights.py",
    "tests/train/test_run.py",
    "tests/serve/test_access.py",
)
Versions = Literal["lowest", "newest"]


class RowError(Exception):
    """A command of a row failed. The message is the command and the end of its output."""


@dataclass(frozen=True)
class Row:
    """Environment: a Python version, the lowest or newest direct versions, and the extras."""

    python: str
    versions: Versions
    extras: str

    def __str__(self) -> str:
        return f"{self.python}-{self.versions}-{self.extras.replace(',', '+')}"


FULL_ROWS = (Row("3.11", "lowest", "all"), Row("3.12", "newest", "all"), Row("3.13", "newest", "all"))
DEVICE_ROWS = tuple(
    Row(python, versions, extras)
    for extras in ("onnxruntime", "openvino")
    for python in ("3.11", "3.12", "3.13")
    for versions in ("lowest", "newest")
)


def main() -> int:
    """Run the rows and return the exit code: 1 if a row failed or its interpreter is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"default: all of {', '.join(map(str, FULL_ROWS + DEVICE_ROWS))}")
    parser.add_argument("--bundle", type=Path, help="bundle for device rows, if no full row runs")
    chosen = parser.parse_args()
    rows = [row for row in FULL_ROWS + DEVICE_ROWS if not chosen.rows or str(row) in chosen.rows]
    if not rows:
        parser.error("no row has any of these names")
    failed = []
    with tempfile.TemporaryDirectory() as work:
        bundle = chosen.bundle or Path(work, "demo", "bundle")
        for row in rows:
            start = time.monotonic()
            try:
                _run_row(row, Path(work), bundle)
            except RowError as error:
                failed.append(row)
                print(f"{row}: FAILED\n{error}", flush=True)
            else:
                print(f"{row}: passed in {time.monotonic() - start:.0f} s", flush=True)
    print(f"{len(rows) - len(failed)} passed, {len(failed)} failed")
    return 1 if failed else 0


def _run_row(row: Row, work: Path, bundle: Path) -> None:
    folder = work / "env"
    python = install(_interpreter(row.python), row.versions, row.extras, folder)
    try:
        if row in FULL_ROWS:
            _run(sys.executable, "-m", "uv", "pip", "install", "--quiet", "--python", python, *TEST_TOOLS)
            _try_bench(python, work)
        else:
            try_device(python, bundle)
    finally:
        shutil.rmtree(folder)


def _interpreter(version: str) -> Path:
    """Return the interpreter of ``python3.X``. The file on ``PATH`` may be a shim of a version manager without an interpreter."""
    found = shutil.which(f"python{version}")
    if found is None:
        raise RowError(f"python{version} is not on PATH")
    return Path(_run(found, "-c", "import sys; print(sys.executable)").strip())


def install(interpreter: Path, versions: Versions, extras: str, folder: Path) -> Path:
    """Create an environment in ``folder`` with this checkout and ``extras``, in their lowest or newest direct versions.

    Returns:
        The interpreter of the environment.

    Raises:
        RowError: the versions are incompatible, or no package registry is reachable.
    """
    _run(sys.executable, "-m", "uv", "venv", "--quiet", "--python", interpreter, folder)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    resolution = "lowest-direct" if versions == "lowest" else "highest"
    _run(sys.executable, "-m", "uv", "pip", "install", "--quiet", "--python", python, "--resolution", resolution, f"{ROOT}[{extras}]")
    return python


def _try_bench(python: Path, work: Path) -> None:
    """Run a full row: help, the demo, and the quick tests."""
    try_help(python)
    _run(python, "-m", "edgetl.cli.app", "demo", "--out", work / "demo", "--overwrite")
    _run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *QUICK_TESTS, cwd=ROOT)


_HELP = """
import sys, typer.testing
from edgetl.cli.app import app
names = [item.name for item in app.registered_commands]
shown = {name: typer.testing.CliRunner().invoke(app, [name, "--help"]) for name in names}
sys.exit("; ".join(f"{name} --help: {result.exception!r}" for name, result in shown.items() if result.exit_code) or None)
"""


def try_help(python: Path) -> None:
    """Run ``--help`` of every command in one process. Incompatible versions of typer and click fail here first.

    Raises:
        RowError: a help text is a traceback.
    """
    _run(python, "-c", _HELP)


def try_device(python: Path, bundle: Path) -> None:
    """Verify, inspect, predict and measure ``bundle`` in an environment with one engine.

    Raises:
        RowError: a command failed.
    """
    try_help(python)
    golden = sorted((bundle / "golden").iterdir())[:1]
    for arguments in (("verify", bundle), ("inspect", bundle), ("predict", bundle, *golden), ("bench", bundle, "--runs", "20")):
        _run(python, "-m", "edgetl.cli.app", *arguments, "--json")


def _run(*command: object, cwd: Path | None = None) -> str:
    """Run a command and return its standard output. The default ``cwd`` is the temporary folder: the installed package is imported."""
    words = [str(item) for item in command]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=cwd or tempfile.gettempdir())
    if done.returncode:
        raise RowError(f"{' '.join(map(str, command))}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
