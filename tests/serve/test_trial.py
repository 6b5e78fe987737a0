"""Memory limits: the trial before a bundle is served, and the limit of worker processes."""

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
from tests.serve.serving import Served, serving, until

EQUAL = [1 / CLASSES] * CLASSES


def _forged(bundle: Bundle, work: Path, format_: str, model: bytes) -> Path:
    files = [model] if format_ == "onnx" else as_ir(model, work)
    return forge(bundle, work / "forged", f"{format_}-fp32", files, scores=EQUAL)


def test_model_that_needs_gigabytes_is_not_served(bundle: Bundle, tmp_path: Path) -> None:
    done = edgetl("serve", _forged(bundle, tmp_path, "openvino", hungry(3.3)), "--port", "1", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (EngineError.exit_code, ""), done.stderr
    assert "in a separate process failed" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("format_", ["onnx", "openvino"])
def test_worker_limit_stops_a_model_that_passed_its_trial(bundle: Bundle, photo: bytes, tmp_path: Path, format_: str) -> None:
    """The trial uses a black image. This model needs gigabytes for a white image only."""
    forged = _forged(bundle, tmp_path, format_, hungry(100, above=0.5))
    white = io.BytesIO()
    Image.new("RGB", (48, 48), "white").save(white, "PNG")
    with serving(forged, options=("--threads", "2", "--batch", "1", "--variant", f"{format_}-fp32")) as served:
        (worker,) = served.workers()
        limit, _ = resource.prlimit(worker, resource.RLIMIT_DATA)
        assert 10**9 < limit < 8 * 10**9
        assert httpx.post(f"{served.url}/predict", content=white.getvalue(), timeout=None).status_code == 500
        # ONNX Runtime recovers. OpenVINO does not, so the server replaces its worker.
        until(lambda: served.ready() and httpx.post(f"{served.url}/predict", content=photo, timeout=None).status_code == 200)


def test_ordinary_model_needs_a_quarter_of_the_worker_limit(served: Served, photo: bytes) -> None:
    for _ in range(30):
        assert httpx.post(f"{served.url}/predict", content=photo, timeout=None).status_code == 200
    (worker,) = served.workers()
    limit, _ = resource.prlimit(worker, resource.RLIMIT_DATA)
    status = dict(line.split(":", 1) for line in Path(f"/proc/{worker}/status").read_text().splitlines() if ":" in line)
    assert int(status["VmData"].split()[0]) * 1024 < limit / 4
