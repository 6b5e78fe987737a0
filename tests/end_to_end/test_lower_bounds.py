"""Lower bounds of the dependencies in ``pyproject.toml``: no known defects, and a device with exactly these versions works."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import pytest

from edgetl.core.bundle import Bundle
from tests.matrix import ROOT, install, try_device

# First version without the defect, and a reference to the defect.
FIRST_FIXED = {
    "captum": ((0, 9), "0.8 requires NumPy 1"),
    "cryptography": ((44, 0, 1), "CVE-2024-12797"),
    "onnx": ((1, 21), "CVE-2026-34445, CVE-2026-34446, CVE-2026-27489, CVE-2026-28500"),
    "onnx-ir": ((0, 1, 8), "fails on protobuf 7"),
    "opencv-python-headless": ((4, 12), "CVE-2025-53644"),
    "openvino": ((2025, 3), "2025.2 cannot read the exported files"),
    "paho-mqtt": ((2, 0), "1.6 has no callbacks with reason codes"),
    "pyarrow": ((20,), "19 cannot read a Parquet file without rows in batches"),
    "pydantic": ((2, 10, 1), "2.9 and 2.10.0 reject edgetl's models"),
    "python-multipart": ((0, 0, 27), "CVE-2026-42561, CVE-2026-40347"),
    "starlette": ((0, 49, 1), "CVE-2025-62727"),
    "timm": (
        (1, 0, 31),
        "earlier versions load pickles from checkpoint_path, and use another bicubic filter for inputs that are not square",
    ),
    "torch": ((2, 10), "CVE-2026-24747 in the weights-only unpickler"),
    "typer": ((0, 19), "0.18 does not accept Literal as the type of an option"),
}


def _bounds() -> dict[str, tuple[int, ...]]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    found: dict[str, tuple[int, ...]] = {}
    for line in lines:
        if match := re.fullmatch(r"([a-z-]+)>=([0-9.]+)", line):
            version = tuple(map(int, match[2].split(".")))
            found[match[1]] = max(version, found.get(match[1], version))
    return found


@pytest.mark.parametrize("package", FIRST_FIXED)
def test_no_lower_bound_allows_a_version_with_a_known_defect(package: str) -> None:
    first, defect = FIRST_FIXED[package]
    assert _bounds()[package] >= first, f"{package}: {defect}"


def test_every_dependency_has_a_lower_bound() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    assert [line for line in lines if ">=" not in line and not line.startswith("edgetl[")] == []


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.parametrize("extra", ["onnxruntime", "openvino"])
@pytest.mark.usefixtures("registry")
def test_a_device_with_the_lowest_versions_runs_a_bundle(extra: str, bundle: Bundle, tmp_path: Path) -> None:
    try_device(install(Path(sys.executable), "lowest", extra, tmp_path / "env"), bundle.path)
