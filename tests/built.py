"""Cache of test inputs: image folders, runs and bundles that several test processes use, built once for each state of the sources."""

from __future__ import annotations

import fcntl
import shutil
import sys
from collections.abc import Callable
from functools import cache
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).parents[1]
# ``make clean`` removes it with the rest of pytest's cache.
CACHE = ROOT / ".pytest_cache" / "edgetl"
# Caches of other states of the sources that stay, so that a change of branches does not build everything again.
KEPT = 3
_PACKAGES = "numpy pillow scikit-learn timm torch torchvision lightning-fabric nncf onnx onnxruntime openvino".split()


def built(name: str, build: Callable[[Path], object]) -> Path:
    """Return the folder ``name`` of the cache, after ``build(folder)`` if it is missing.

    Other processes that need the folder wait until it is complete. Tests must not change its content.
    """
    folder = CACHE / _key() / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            # A folder of its own also holds what a builder writes beside its output, such as the checkpoints of a training.
            scratch = folder.with_suffix(".part")
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir()
            build(scratch / folder.name)
            (scratch / folder.name).rename(folder)
            shutil.rmtree(scratch)
    return folder


@cache
def _key() -> str:
    """Digest of everything that decides how a folder of the cache looks: the sources, this file and the installed libraries."""
    digest = sha256(sys.version.encode())
    sources = [*(ROOT / "edgetl").rglob("*.py"), *(ROOT / "models").rglob("*.*"), ROOT / "tests/conftest.py", Path(__file__)]
    for path in sorted(sources):
        digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    for package in _PACKAGES:
        try:
            digest.update(f"{package} {version(package)}".encode())
        except PackageNotFoundError:
            continue
    key = digest.hexdigest()[:16]
    others = sorted((path for path in CACHE.glob("*") if path.name != key), key=lambda path: path.stat().st_mtime)
    for outdated in others[: max(0, len(others) - KEPT)]:
        shutil.rmtree(outdated, ignore_errors=True)
    return key
