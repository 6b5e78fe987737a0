"""Trial of a network from elsewhere: its demands can end only a child process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import edgetl
from edgetl.core.bundle import Bundle, open_bundle
from edgetl.errors import EngineError, IntegrityError
from edgetl.runtime.trial import Limits, try_variant
from edgetl.runtime.verify import verify
from tests.command import edgetl as command
from tests.runtime.hostile import as_ir, forge, hungry, slow

NOT_HERE = r"\(allowed: \d+ MB of memory, \d+ s of computing, [\d.]+ s in all\)\. It was not loaded here"
# What the engines say without memory; OpenVINO may also be ended by the library that it computes with.
WITHOUT_MEMORY = r"Failed to allocate memory|bad_alloc|bad allocation|for lack of memory|too little memory"
GIGABYTE = 10**9


def _peak_bytes() -> int:
    """The largest memory that this process ever had resident."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def _forged(bundle: Bundle, work: Path, format_: str, model: bytes) -> Path:
    files = [model] if format_ == "onnx" else as_ir(model, work)
    return forge(bundle, work / "forged", f"{format_}-fp32", files)


def _refused(path: Path, words: str, limits: Limits | None = None) -> str:
    opened = open_bundle(path)
    variant = opened.manifest.variants[0]
    with pytest.raises(
        EngineError, match=rf"(?s){variant.files[0].path}: .* in a process of its own failed: .*(?:{words}).*{NOT_HERE}"
    ) as caught:
        try_variant(opened, variant, limits=limits) if limits else verify(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_variant_of_a_bundle_passes_its_trial_with_memory_to_spare(bundle: Bundle) -> None:
    for variant in bundle.manifest.variants:
        try_variant(bundle, variant)
        try_variant(bundle, variant, limits=Limits(GIGABYTE // 4))


@pytest.mark.parametrize("format_", ["onnx", "openvino"])
def test_a_network_that_wants_100_gigabytes_dies_alone(bundle: Bundle, tmp_path: Path, format_: str) -> None:
    forged = _forged(bundle, tmp_path, format_, hungry(100))
    before = _peak_bytes()
    _refused(forged, WITHOUT_MEMORY)
    assert _peak_bytes() - before < 30e6, "this process's memory grew with the model's"


@pytest.mark.parametrize("format_", ["onnx", "openvino"])
def test_the_same_network_passes_where_it_wants_little(bundle: Bundle, tmp_path: Path, format_: str) -> None:
    opened = open_bundle(_forged(bundle, tmp_path, format_, hungry(0.05)))
    try_variant(opened, opened.manifest.variants[0])


@pytest.mark.parametrize("format_", ["onnx", "openvino"])
def test_memory_beyond_the_limit_is_refused_far_below_the_machines(bundle: Bundle, tmp_path: Path, format_: str) -> None:
    _refused(_forged(bundle, tmp_path, format_, hungry(0.6)), WITHOUT_MEMORY, Limits(GIGABYTE // 2))


@pytest.mark.parametrize("format_", ["onnx", "openvino"])
def test_a_network_that_computes_for_minutes_is_stopped(bundle: Bundle, tmp_path: Path, format_: str) -> None:
    forged = _forged(bundle, tmp_path, format_, slow(3000))
    _refused(forged, "it computed for longer than it may|it did not end within 60 s", Limits(GIGABYTE, cpu_s=3, wall_s=60))


def test_the_clock_stops_it_where_computing_time_is_not_limited(bundle: Bundle, tmp_path: Path) -> None:
    _refused(_forged(bundle, tmp_path, "onnx", slow(3000)), "it did not end within 3 s", Limits(GIGABYTE, cpu_s=600, wall_s=3))


def test_a_child_that_is_killed_is_told_by_the_signals_name(bundle: Bundle, tmp_path: Path) -> None:
    forged = _forged(bundle, tmp_path, "onnx", slow(3000))
    stop = threading.Timer(0.0, _kill_child)
    stop.start()
    _refused(forged, "it was killed by SIGSEGV, as happens when an engine crashes", Limits(GIGABYTE))
    stop.join()


def _kill_child() -> None:
    """Send SIGSEGV to the first child of this process that runs a trial."""
    for _ in range(1_000_000):
        children = [int(pid) for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()]
        for pid in children:
            if b"runtime.trial" in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGSEGV)
                return


def test_a_changed_file_is_not_even_tried(bundle: Bundle, tmp_path: Path) -> None:
    forged = _forged(bundle, tmp_path, "onnx", slow(3000))
    model = forged / "onnx-fp32/1/model.onnx"
    model.write_bytes(model.read_bytes()[:-1] + b"\0")
    opened = open_bundle(forged)
    with pytest.raises(IntegrityError, match=r"onnx-fp32/1/model\.onnx"):
        try_variant(opened, opened.manifest.variants[0])


def test_python_users_ask_for_a_trial_when_they_load(bundle: Bundle, tmp_path: Path) -> None:
    assert edgetl.load(bundle, trial=True).variant == bundle.manifest.variants[0]
    with pytest.raises(EngineError, match=WITHOUT_MEMORY):
        edgetl.load(_forged(bundle, tmp_path, "onnx", hungry(100)), trial=True)


def test_a_script_without_a_main_guard_may_ask_for_a_trial(bundle: Bundle, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        f"import sys; sys.path[:] = {sys.path!r}\nimport edgetl\nprint(edgetl.load({str(bundle.path)!r}, trial=True).labels[0])\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr


def test_a_trial_leaves_no_process(bundle: Bundle) -> None:
    def children() -> set[str]:
        return {pid for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()}

    before = children()  # those of other tests, such as multiprocessing's resource tracker
    try_variant(bundle, bundle.manifest.variants[0])
    assert children() <= before


def test_the_command_line_says_it_in_one_line(bundle: Bundle, tmp_path: Path) -> None:
    done = command("verify", _forged(bundle, tmp_path, "onnx", hungry(100)))
    assert done.returncode == EngineError.exit_code
    assert "Traceback" not in done.stderr and done.stdout == ""
    assert done.stderr.count("error:") == 1 and "onnx-fp32/1/model.onnx: loading it and running one image" in done.stderr


def test_predict_tries_a_bundle_where_it_is_asked_to(bundle: Bundle, digits: Path, tmp_path: Path) -> None:
    image = next((digits / "3").iterdir())
    assert command("predict", bundle.path, image, "--trial").returncode == 0
    done = command("predict", _forged(bundle, tmp_path, "onnx", hungry(100)), image, "--trial")
    assert (done.returncode, done.stdout) == (EngineError.exit_code, "") and "in a process of its own failed" in done.stderr


STALE = """
import sys; sys.path[:] = {path!r}
from pathlib import Path
import numpy as np
from edgetl.errors import EngineError
from edgetl.runtime.engine import load_engine
from edgetl.runtime.trial import limit_process
from tests.runtime.hostile import as_ir, hungry
engine = load_engine("openvino", as_ir(hungry(100, above=0.5), Path({work!r})), threads=1)
image = np.zeros((1, 3, 48, 48), np.float32)
print(engine.run(image + 0.25)[0, 0])
limit_process(10**9, first_to_die=1000)
try:
    print(engine.run(image + 1)[0, 0])
except EngineError as error:
    print(error)
"""


def test_openvino_without_memory_does_not_repeat_the_last_images_output(tmp_path: Path) -> None:
    code = STALE.format(path=[entry for entry in sys.path if entry], work=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    first, second = done.stdout.splitlines()
    assert abs(float(first) - 0.25) < 1e-3 and "for lack of memory" in second, done.stderr
