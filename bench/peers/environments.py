"""Environments of the peers: one virtual environment each, installed with uv or pip, with its size and the reason of a failure."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from bench.peers.peers import Environment

ROOT = Path(__file__).parents[2]
# Packages that only a GPU uses. pip installs them with PyTorch on Linux.
GPU_PACKAGES = ("nvidia", "triton", "torch/lib/libtorch_cuda*", "torch/lib/libcud*", "cuda*")


def install(work: Path, environment: Environment) -> dict[str, object]:
    """Install an environment unless it exists. Return its versions, or the reason of the failure.

    Returns:
        the fields ``versions`` and ``command``; with ``reason`` if it could not be installed.
    """
    folder = work / "environments" / environment.name
    requirements = [text.replace("{edgetl}", str(ROOT)) for text in environment.requirements]
    command = "pip install " + " ".join(f"'{text}'" if "[" in text else text for text in environment.requirements).replace("{edgetl}", ".")
    if not requirements:
        return {"command": "", "reason": environment.missing}
    if not (folder / "complete").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        python = environment.python or sys.executable
        subprocess.run([python, "-m", "venv", "--without-pip", str(folder)], check=True, capture_output=True)
        # uv links files of its cache into the environments if both are in one file system. PyTorch then takes its space once.
        shared = {"UV_CACHE_DIR": str(work / "cache"), **os.environ}
        done = subprocess.run([*_installer(folder / "bin/python"), *requirements], check=False, capture_output=True, text=True, env=shared)
        if done.returncode:
            shutil.rmtree(folder)
            return {"command": command, "reason": _last_line(done.stderr)}
        (folder / "complete").touch()
    return {"command": command, "versions": _versions(work, environment)}


def _installer(python: Path) -> list[str]:
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if uv:
        return [uv, "pip", "install", "-q", "--python", str(python)]
    return [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-compile"]


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "the installer printed no message"


def _versions(work: Path, environment: Environment) -> dict[str, str]:
    script = "import json, sys; from importlib.metadata import version; print(json.dumps({n: version(n) for n in sys.argv[1:]}))"
    python = str(work / "environments" / environment.name / "bin/python")
    done = subprocess.run([python, "-c", script, *environment.packages], check=True, capture_output=True, text=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


def size_mb(work: Path, name: str) -> tuple[float, float]:
    """Return the size of an environment, MB (10^6 bytes): all of it, and without the packages that only a GPU uses.

    The byte code is that of the modules which the measurements imported.
    """
    folder = work / "environments" / name
    packages = next(folder.glob("lib/python3*/site-packages"))
    everything = sum(_bytes(path) for path in folder.rglob("*"))
    gpu = {path for pattern in GPU_PACKAGES for top in packages.glob(pattern) for path in (top, *top.rglob("*"))}
    return everything / 1e6, (everything - sum(map(_bytes, gpu))) / 1e6


def _bytes(path: Path) -> int:
    return path.stat().st_size if path.is_file() and not path.is_symlink() else 0


def stage(work: Path) -> Path:
    """Copy ``bench.peers`` to a folder without edgetl, so that the environments of edgetl use their installed package."""
    shutil.copytree(Path(__file__).parent, work / "code/bench/peers", dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    (work / "code/bench/__init__.py").touch()
    return work / "code"


def run_in(work: Path, name: str, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a module of this folder with the Python of an environment."""
    command = [str(work / "environments" / name / "bin/python"), "-m", *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True, env=variables(), cwd=stage(work))


def variables(threads: int | None = None) -> dict[str, str]:
    """Return the environment variables of a peer: no network access to hubs, byte code is kept, and the number of threads."""
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONDONTWRITEBYTECODE", "PYTHONPATH", "OMP_NUM_THREADS")}
    fixed = {
        "HF_HUB_OFFLINE": "1",
        "YOLO_OFFLINE": "true",
        "YOLO_AUTOINSTALL": "false",
        "TOKENIZERS_PARALLELISM": "false",
    }
    return {**kept, **fixed, **({} if threads is None else {"OMP_NUM_THREADS": str(threads)})}
