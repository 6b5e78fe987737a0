"""What a field device installs: the wheel with one engine, in a fresh environment, without torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from edgetl.core.bundle import Bundle

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.slow, pytest.mark.network]


@pytest.mark.parametrize(("extra", "limit_mb"), [("onnxruntime", 200), ("openvino", 320)])
def test_one_engine_is_enough_and_small(bundle: Bundle, digits: Path, tmp_path: Path, extra: str, limit_mb: int) -> None:
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), str(ROOT)], check=True)
    wheel = next(tmp_path.glob("edgetl-*.whl"))
    env = tmp_path / "env"
    venv.create(env, with_pip=False)
    python = env / "bin/python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-compile", f"{wheel}[{extra}]"]
    subprocess.run(install, check=True)

    def run(*arguments: object) -> dict[str, object]:
        command = [str(python), "-m", "edgetl.cli.app", *map(str, arguments), "--json"]
        writing = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=writing)
        assert done.returncode == 0, done.stderr
        result: dict[str, object] = json.loads(done.stdout)
        return result

    assert subprocess.run([str(python), "-c", "import torch"], capture_output=True, check=False).returncode != 0
    embedded = "from edgetl.train.embedded import embedded_names, read_embedded; print(read_embedded(embedded_names()[0])[1].name)"
    shown = subprocess.run([str(python), "-c", embedded], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert shown.stdout.strip() == "edgetl_small", "the wheel carries the embedded backbone"
    names = [variant.name for variant in bundle.manifest.variants if variant.name.startswith(extra.removesuffix("runtime"))]
    checked = run("verify", bundle.path)["checked"]
    assert isinstance(checked, list) and {item["variant"] for item in checked} == set(names)
    predictions = run("predict", bundle.path, digits / "4")["predictions"]
    assert isinstance(predictions, list) and sum(row["label"] == "4" for row in predictions) > 0.9 * len(predictions)
    assert run("evaluate", bundle.path, digits)["left_out"]
    timed = run("bench", bundle.path, "--runs", 20)
    assert isinstance(timed["variants"], list) and {row["variant"] for row in timed["variants"]} == set(names)
    assert run("inspect", bundle.path)["name"] == bundle.manifest.name
    picture = [str(python), "-m", "edgetl.cli.app", "bench", str(bundle.path), "--plot", str(tmp_path / "x.png")]
    refused = subprocess.run(picture, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert refused.returncode == 14 and "pip install 'edgetl[plot]'" in refused.stderr and "timing" not in refused.stderr
    # Byte code of what the commands above used is there by now; pip would have compiled all of every library.
    size = sum(path.stat().st_size for path in env.rglob("*") if path.is_file() and not path.is_symlink())
    assert size <= limit_mb * 1e6, f"{size / 1e6:.0f} MB"
