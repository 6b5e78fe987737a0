"""Networks that need too much memory are refused before they are served, and their workers have limits."""

from __future__ import annotations

import io
import resource
from pathlib import Path

import httpx
import pytest
from PIL import Image

from edgetl.core.bundle import Bundle
from edgetl.errors import EngineError
from tests.command import edgetl
from tests.runtime.hostile import CLASSES, as_ir, forge, hungry
from tests.serve.serving import point, serving, until

EQUAL = [1 / CLASSES] * CLASSES


def _forged(bundle: Bundle, work: Path, format_: str, model: bytes) -> Path:
    files = [model] if format_ == "onnx" else as_ir(model, work)
    return forge(bundle, work / "forged", f"{format_}-fp32", files, scores=EQUAL)


@pytest.mark.parametrize("format_", ["onnx", "openvino"])
def test_a_small_file_that_takes_gigabytes_is_not_served(bundle: Bundle, tmp_path: Path, format_: str) -> None:
    forged = _forged(bundle, tmp_path, format_, hungry(3.3))
    done = edgetl("serve", forged, "--port", "1", "--insecure", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (EngineError.exit_code, ""), done.stderr
    assert "in a separate process failed" in done.stderr and "Traceback" not in done.stderr


def test_a_reload_of_a_network_that_takes_gigabytes_is_refused(bundle: Bundle, photo: bytes, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(bundle.path)
    forged = _forged(bundle, tmp_path, "onnx", hungry(3.3))
    with serving(link) as served:
        worker = served.workers()
        point(link, forged)
        served.process.send_signal(1)
        until(lambda: served.metric('edgetl_reload_total{result="refused"') == 1)
        assert "in a separate process failed" in served.said()
        assert served.workers() == worker and httpx.post(f"{served.url}/predict", content=photo).status_code == 200


@pytest.mark.parametrize("format_", ["onnx", "openvino"])
def test_a_network_that_passes_its_trial_and_then_takes_gigabytes_meets_the_workers_limit(
    bundle: Bundle, photo: bytes, tmp_path: Path, format_: str
) -> None:
    """Black passes; white needs gigabytes."""
    forged = _forged(bundle, tmp_path, format_, hungry(100, above=0.5))
    white = io.BytesIO()
    Image.new("RGB", (48, 48), "white").save(white, "PNG")
    with serving(forged, options=("--threads", "2", "--batch", "1", "--variant", f"{format_}-fp32")) as served:
        (worker,) = served.workers()
        limit, _ = resource.prlimit(worker, resource.RLIMIT_DATA)
        assert 10**9 < limit < 8 * 10**9
        assert httpx.post(f"{served.url}/predict", content=white.getvalue(), timeout=60).status_code == 500
        # ONNX Runtime goes on; of OpenVINO a new worker takes over.
        until(lambda: served.ready() and httpx.post(f"{served.url}/predict", content=photo, timeout=60).status_code == 200)


def test_good_workers_stay_far_below_their_limit(bundle: Bundle, photo: bytes) -> None:
    """The limit is for hostile networks; a real one uses a quarter at most, with several threads and batches."""
    with serving(bundle.path, options=("--threads", "2", "--batch", "4")) as served:
        for _ in range(30):
            assert httpx.post(f"{served.url}/predict", content=photo).status_code == 200
        (worker,) = served.workers()
        limit, _ = resource.prlimit(worker, resource.RLIMIT_DATA)
        status = dict(line.split(":", 1) for line in Path(f"/proc/{worker}/status").read_text().splitlines() if ":" in line)
        assert int(status["VmData"].split()[0]) * 1024 < limit / 4
