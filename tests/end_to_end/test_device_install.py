"""Installation on a device: the wheel with one engine, in a fresh environment without torch."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import venv
from pathlib import Path

import httpx
import pytest

from edgetl.core.bundle import Bundle

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.slow, pytest.mark.network]


def _install(extra: str, folder: Path) -> Path:
    """Create a fresh environment with the wheel and an extra, and return its interpreter."""
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder), str(ROOT)], check=True)
    wheel = next(folder.glob("edgetl-*.whl"))
    venv.create(folder / "env", with_pip=False)
    python = folder / "env/bin/python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-compile", f"{wheel}[{extra}]"]
    subprocess.run(install, check=True)
    assert subprocess.run([str(python), "-c", "import torch"], capture_output=True, check=False).returncode != 0
    return python


def _size_mb(folder: Path) -> float:
    """Return the size of the environment, MB. It includes the byte code of the modules in use only: pip would compile all modules."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink()) / 1e6


def _environment_with_byte_code() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}


def test_a_server_installation_is_small(bundle: Bundle, photo: bytes, tmp_path: Path) -> None:
    python = _install("onnxruntime,serve", tmp_path)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(python), "-m", "edgetl.cli.app", "serve", str(bundle.path), "--port", str(port)]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=_environment_with_byte_code()
    )
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if "listening" in line:
                break
        response = httpx.post(f"http://127.0.0.1:{port}/predict", content=photo, timeout=None)
        assert response.status_code == 200 and response.json()["label"] in bundle.manifest.labels
        page = httpx.get(f"http://127.0.0.1:{port}/")
        assert page.status_code == 200 and "<h1" in page.text, "the wheel contains the web page"
    finally:
        process.terminate()
        assert process.wait() == 0
        process.stderr.close()
    size = _size_mb(tmp_path / "env")
    print(f"{size:.0f} MB")
    assert size <= 230


@pytest.mark.parametrize(("extra", "limit_mb"), [("onnxruntime", 200), ("openvino", 320)])
def test_an_installation_with_one_engine_is_small_and_complete(
    bundle: Bundle, digits: Path, tmp_path: Path, extra: str, limit_mb: int
) -> None:
    python = _install(extra, tmp_path)

    def run(*arguments: object) -> dict[str, object]:
        command = [str(python), "-m", "edgetl.cli.app", *map(str, arguments), "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=_environment_with_byte_code())
        assert done.returncode == 0, done.stderr
        result: dict[str, object] = json.loads(done.stdout)
        return result

    embedded = "from edgetl.train.config.recipe import models_folder; print(*(path.name for path in models_folder().glob('*.safetensors')))"
    shown = subprocess.run([str(python), "-c", embedded], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert shown.stdout.strip() == "edgetl_small.safetensors", "the wheel contains the embedded backbone"
    names = [variant.name for variant in bundle.manifest.variants if variant.name.startswith(extra.removesuffix("runtime"))]
    checked = run("verify", bundle.path)["checked"]
    assert isinstance(checked, list) and {item["variant"] for item in checked} == set(names)
    predictions = run("predict", bundle.path, digits / "4")["predictions"]
    assert isinstance(predictions, list) and sum(row["label"] == "4" for row in predictions) > 0.9 * len(predictions)
    assert run("evaluate", bundle.path, digits)["left_out"]
    timed = run("bench", bundle.path, "--runs", 20)
    assert isinstance(timed["variants"], list) and {row["variant"] for row in timed["variants"]} == set(names)
    assert run("inspect", bundle.path)["name"] == bundle.manifest.name
    plot = [str(python), "-m", "edgetl.cli.app", "bench", str(bundle.path), "--plot", str(tmp_path / "x.png")]
    failed = subprocess.run(plot, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (
        failed.returncode == 14
        and f"pip install '{tmp_path}/edgetl-" in failed.stderr
        and ".whl[plot]'" in failed.stderr
        and "timing" not in failed.stderr
    )
    size = _size_mb(tmp_path / "env")
    assert size <= limit_mb, f"{size:.0f} MB"
