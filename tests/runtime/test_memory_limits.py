"""Processes with too little memory: the error names the shortage and a remedy, without a traceback or advice to reinstall."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgetl.core.system.memory import is_out_of_memory, out_of_memory
from edgetl.errors import EdgetlError, OutOfMemoryError

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux limits the address space of a process")

# Limit the address space to its present size plus ``megabytes``.
LEAVE = """
import resource
def leave(megabytes):
    with open("/proc/self/statm") as file:
        limit = int(file.read().split()[0]) * resource.getpagesize() + megabytes * 1_000_000
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
"""


def run(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", LEAVE + code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("format_", "library"), [("onnx", "onnxruntime"), ("openvino", "openvino")])
def test_too_little_memory_for_an_engine_is_reported_as_such(format_: str, library: str) -> None:
    done = run(
        "import sys; from edgetl.errors import OutOfMemoryError; from edgetl.runtime.engine import load_engine\nleave(8)\n"
        "try: load_engine(sys.argv[1], [b'', b''], threads=1)\nexcept OutOfMemoryError as error: print(error)",
        format_,
    )
    assert done.stdout.startswith(f"loading {library}: this process has too little memory. It uses "), done.stderr
    assert "Its limit is" in done.stdout and "--threads 1" in done.stdout and "pip" not in done.stdout


def test_too_little_memory_for_torch_ends_a_command_with_its_exit_code(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    done = run("import sys; from edgetl.cli.app import main\nleave(8)\nmain(['inspect', sys.argv[1]])", tmp_path)
    assert done.returncode == OutOfMemoryError.exit_code, done.stderr
    assert "Traceback" not in done.stderr and "edgetl inspect: this process has too little memory" in done.stderr


def test_a_small_image_is_decoded_with_little_memory(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((50, 50, 3), np.uint8)).save(tmp_path / "a.png")
    done = run(
        "import sys; from edgetl.core.images.decode import load_image\nleave(20)\nprint(load_image(sys.argv[1]).size)", tmp_path / "a.png"
    )
    assert done.stdout.strip() == "(50, 50)", done.stderr


def test_too_little_memory_for_an_image_is_reported_as_such(tmp_path: Path) -> None:
    Image.new("L", (6000, 6000)).save(tmp_path / "large.png")
    done = run(
        "import sys; from edgetl.core.images.decode import load_image; from edgetl.errors import OutOfMemoryError\nleave(30)\n"
        "try: load_image(sys.argv[1])\nexcept OutOfMemoryError as error: print(error)",
        tmp_path / "large.png",
    )
    assert "large.png: this process has too little memory" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), True),
        (OSError(12, "Cannot allocate memory"), True),
        (ImportError("libgomp.so.1: cannot open shared object file"), False),
        (OSError(28, "No space left on device"), False),
    ],
)
def test_errors_of_libraries_are_recognized_as_out_of_memory(error: BaseException, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


def test_the_error_is_an_edgetl_error_and_a_memory_error() -> None:
    assert issubclass(OutOfMemoryError, EdgetlError) and issubclass(OutOfMemoryError, MemoryError)
    assert "the container's memory" in str(out_of_memory("decoding a.png"))
