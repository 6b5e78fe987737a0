"""Trial of a network: excessive memory or time ends only the child process."""

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

NOT_LOADED = r"\(limits: \d+ MB of memory, \d+ s of CPU time, [\d.]+ s of wall time\)\. The model was not loaded"
# Messages of the engines without memory. OpenVINO may also be killed by the library that it uses.
OUT_OF_MEMORY = r"Failed to allocate memory|bad_alloc|bad allocation|too little memory"
GIGABYTE = 10**9


def _peak_bytes() -> int:
    """Return the peak resident memory of this process."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def _forged(bundle: Bundle, work: Path, format_: str, model: bytes) -> Path:
    files = [model] if format_ == "onnx" else as_ir(model, work)
    return forge(bundle, work / "forged", f"{format_}-fp32", files)


def _assert_rejected(path: Path, message: str, limits: Limits | None = None) -> None:
    opened = open_bundle(path)
    variant = opened.manifest.variants[0]
    with pytest.raises(
        EngineError, match=rf"(?s){variant.files[0].path}: .* in a separate process failed: .*(?:{message}).*{NOT_LOADED}"
    ) as caught:
        try_variant(opened, variant, limits=limits) if limits else verify(path)
    assert "\n" not in str(caught.value)


def test_every_variant_of_a_bundle_passes_its_trial_with_little_memory(bundle: Bundle) -> None:
    for variant in bundle.manifest.variants:
        try_variant(bundle, variant)
        try_variant(bundle, variant, limits=Limits(GIGABYTE // 4))


@pytest.mark.parametrize("format_", ["onnx", "openvino"])
def test_a_network_that_needs_100_gigabytes_ends_only_the_child(bundle: Bundle, tmp_path: Path, format_: str) -> None:
    forged = _forged(bundle, tmp_path, format_, hungry(100))
    before = _peak_bytes()
    _assert_rejected(forged, OUT_OF_MEMORY)
    assert _peak_bytes() - before < 30e6, "the network was loaded in this process"


@pytest.mark.parametrize("format_", ["onnx", "openvino"])
def test_the_same_network_passes_with_a_small_size(bundle: Bundle, tmp_path: Path, format_: str) -> None:
    opened = open_bundle(_forged(bundle, tmp_path, format_, hungry(0.05)))
    try_variant(opened, opened.manifest.variants[0])


@pytest.mark.parametrize("format_", ["onnx", "openvino"])
def test_memory_beyond_the_limit_is_an_error_although_the_host_has_enough(bundle: Bundle, tmp_path: Path, format_: str) -> None:
    _assert_rejected(_forged(bundle, tmp_path, format_, hungry(0.6)), OUT_OF_MEMORY, Limits(GIGABYTE // 2))


@pytest.mark.parametrize("format_", ["onnx", "openvino"])
def test_a_network_that_exceeds_the_cpu_time_is_stopped(bundle: Bundle, tmp_path: Path, format_: str) -> None:
    forged = _forged(bundle, tmp_path, format_, slow(3000))
    _assert_rejected(
        forged, "the limit of CPU time was exceeded|the process did not finish within 60 s", Limits(GIGABYTE, cpu_s=3, wall_s=60)
    )


def test_a_network_that_exceeds_the_wall_time_is_stopped(bundle: Bundle, tmp_path: Path) -> None:
    _assert_rejected(
        _forged(bundle, tmp_path, "onnx", slow(3000)), "the process did not finish within 3 s", Limits(GIGABYTE, cpu_s=600, wall_s=3)
    )


def test_a_killed_child_is_an_error_with_the_signal_name(bundle: Bundle, tmp_path: Path) -> None:
    forged = _forged(bundle, tmp_path, "onnx", slow(3000))
    stop = threading.Timer(0.0, _kill_child)
    stop.start()
    _assert_rejected(forged, "the process was killed by SIGSEGV. The engine crashed on the file", Limits(GIGABYTE))
    stop.join()


def _kill_child() -> None:
    """Send SIGSEGV to the first child of this process that runs a trial."""
    for _ in range(1_000_000):
        children = [int(pid) for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()]
        for pid in children:
            if b"runtime.trial" in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGSEGV)
                return


def test_a_changed_file_is_an_error_before_the_trial(bundle: Bundle, tmp_path: Path) -> None:
    forged = _forged(bundle, tmp_path, "onnx", slow(3000))
    model = forged / "onnx-fp32/1/model.onnx"
    model.write_bytes(model.read_bytes()[:-1] + b"\0")
    opened = open_bundle(forged)
    with pytest.raises(IntegrityError, match=r"onnx-fp32/1/model\.onnx"):
        try_variant(opened, opened.manifest.variants[0])


def test_load_runs_a_trial_on_request(bundle: Bundle, tmp_path: Path) -> None:
    assert edgetl.load(bundle, trial=True).variant == bundle.manifest.variants[0]
    with pytest.raises(EngineError, match=OUT_OF_MEMORY):
        edgetl.load(_forged(bundle, tmp_path, "onnx", hungry(100)), trial=True)


def test_a_script_without_a_main_guard_can_run_a_trial(bundle: Bundle, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        f"import sys; sys.path[:] = {sys.path!r}\nimport edgetl\nprint(edgetl.load({str(bundle.path)!r}, trial=True).labels[0])\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr


def test_a_trial_leaves_no_process(bundle: Bundle) -> None:
    def children() -> set[str]:
        return {pid for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()}

    before = children()  # such as the resource tracker of multiprocessing, from other tests
    try_variant(bundle, bundle.manifest.variants[0])
    assert children() <= before


def test_the_command_line_reports_a_failed_trial_in_one_line(bundle: Bundle, tmp_path: Path) -> None:
    done = command("verify", _forged(bundle, tmp_path, "onnx", hungry(100)))
    assert done.returncode == EngineError.exit_code
    assert "Traceback" not in done.stderr and done.stdout == ""
    assert done.stderr.count("error:") == 1 and "onnx-fp32/1/model.onnx: the trial in a separate process failed" in done.stderr


def test_predict_runs_a_trial_with_the_trial_option(bundle: Bundle, digits: Path, tmp_path: Path) -> None:
    image = next((digits / "3").iterdir())
    assert command("predict", bundle.path, image, "--trial").returncode == 0
    done = command("predict", _forged(bundle, tmp_path, "onnx", hungry(100)), image, "--trial")
    assert (done.returncode, done.stdout) == (EngineError.exit_code, "") and "in a separate process failed" in done.stderr


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
limit_process(10**9, oom_score=1000)
try:
    print(engine.run(image + 1)[0, 0])
except EngineError as error:
    print(error)
"""


def test_openvino_without_memory_does_not_return_the_previous_output(tmp_path: Path) -> None:
    code = STALE.format(path=[entry for entry in sys.path if entry], work=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    first, second = done.stdout.splitlines()
    assert abs(float(first) - 0.25) < 1e-3 and "too little memory" in second, done.stderr
