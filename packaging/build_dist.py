"""Build the wheel and the sdist, and check both: ``python packaging/build_dist.py [OUT]`` (``make dist``).

The checks cover the metadata, the contents, the reproducibility of the wheel, and an installation of the wheel in a fresh
virtual environment. The environment needs a package index for the dependencies of a device.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import venv
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MAX_WHEEL_MB = 5.0
# Device code: this statement must not import a library of training or export.
DEVICE_CHECK = """
import sys
import edgetl
from edgetl.train.config.recipe import models_folder
heavy = {"torch", "torchvision", "timm", "lightning", "lightning_fabric", "onnx", "nncf"} & set(sys.modules)
assert not heavy, f"import edgetl imported {heavy}"
assert (models_folder() / "edgetl_small.safetensors").is_file(), "the wheel lacks the embedded backbone"
"""


class DistError(Exception):
    """Failed check; the text is the reason."""


def main() -> int:
    """Build and check into the folder of the command line; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, nargs="?", default=ROOT / "dist", help="folder for the wheel and the sdist (default: dist/)")
    out = parser.parse_args().out.resolve()
    try:
        wheel, sdist = build(out)
        check_wheel(wheel)
        check_sdist(sdist)
        check_reproducible(wheel)
        check_installation(wheel)
    except (DistError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for path in (wheel, sdist):
        print(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB, checked")
    return 0


def build(out: Path) -> tuple[Path, Path]:
    """Build the sdist and, from the sdist, the wheel into ``out``; return the paths of wheel and sdist."""
    out.mkdir(parents=True, exist_ok=True)
    for old in [*out.glob("edgetl-*.whl"), *out.glob("edgetl-*.tar.gz")]:
        old.unlink()
    _run("-m", "uv", "build", "--quiet", "--out-dir", str(out), str(ROOT))
    (wheel,), (sdist,) = out.glob("edgetl-*.whl"), out.glob("edgetl-*.tar.gz")
    return wheel, sdist


def check_wheel(wheel: Path) -> None:
    """Check the metadata, the entry point, the size, and that all package files and nothing else are included."""
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
        info = next(name.partition("/")[0] for name in names if ".dist-info/" in name)
        metadata = Parser().parsestr(archive.read(f"{info}/METADATA").decode())
        entry_points = archive.read(f"{info}/entry_points.txt").decode()
    _check_metadata(metadata)
    _require("edgetl = edgetl.cli.app:main" in entry_points, "the wheel has no command edgetl")
    _require(f"{info}/licenses/LICENSE" in names, "the wheel has no LICENSE")
    expected = {f"edgetl/{path}" for path in _files("edgetl")} | {f"edgetl/models/{path}" for path in _files("models")}
    found = {name for name in names if not name.startswith(info)}
    _require(found == expected, f"the wheel differs from the source tree in {sorted(found ^ expected)[:5]}")
    _require(wheel.stat().st_size <= MAX_WHEEL_MB * 1e6, f"the wheel has more than {MAX_WHEEL_MB} MB")


def _check_metadata(metadata: Message) -> None:
    """Compare the wheel's metadata with pyproject.toml and the README."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    for key in ("name", "version"):
        _require(metadata[key] == project[key], f"{key} is {metadata[key]} in the wheel and {project[key]} in pyproject.toml")
    _require(metadata["License-Expression"] == project["license"], "the wheel's license differs from pyproject.toml")
    wanted = {text.strip() for text in project["requires-python"].split(",")}
    _require(set(metadata["Requires-Python"].split(",")) == wanted, "Requires-Python differs from pyproject.toml")
    extras = set(metadata.get_all("Provides-Extra") or ())
    _require(extras == set(project["optional-dependencies"]), f"the wheel has the extras {sorted(extras)}")
    _require(metadata["Description-Content-Type"] == "text/markdown", "the description is not Markdown")
    _require(metadata.get_payload() == (ROOT / "README.md").read_text("utf-8"), "the description is not the README")


def check_sdist(sdist: Path) -> None:
    """Check that the sdist has the source, tests, documentation, and no build output."""
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for folder in ("edgetl", "models", "tests", "bench", "docs"):
        missing = {f"{folder}/{path}" for path in _files(folder)} - names
        _require(not missing, f"the sdist lacks {sorted(missing)[:5]}")
    for name in ("pyproject.toml", "Makefile", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "Dockerfile"):
        _require(name in names, f"the sdist has no {name}")
    litter = sorted(name for name in names if "__pycache__" in name or name.startswith(("docs/_build", "dist", ".venv")))
    _require(not litter, f"the sdist contains {litter[:5]}")


def check_reproducible(wheel: Path) -> None:
    """Check that a wheel built from the source tree has the same bytes as ``wheel``, which was built from the sdist."""
    with tempfile.TemporaryDirectory() as work:
        _run("-m", "uv", "build", "--quiet", "--wheel", "--out-dir", work, str(ROOT))
        again = Path(work, wheel.name)
        same = hashlib.sha256(again.read_bytes()).digest() == hashlib.sha256(wheel.read_bytes()).digest()
    _require(same, "the wheels built from the sdist and from the source tree differ")


def check_installation(wheel: Path) -> None:
    """Install the wheel for a device in a fresh environment, run the command, and import the package without torch."""
    with tempfile.TemporaryDirectory() as work:
        venv.create(Path(work, "env"), with_pip=False)
        python = Path(work, "env", "Scripts/python.exe" if sys.platform == "win32" else "bin/python")
        _run("-m", "pip", "--python", str(python), "install", "--quiet", "--no-compile", f"{wheel}[onnxruntime]")
        subprocess.run([str(python), "-c", DEVICE_CHECK], check=True, cwd=work)
        shown = subprocess.run([str(python), "-m", "edgetl.cli.app", "--version"], check=True, cwd=work, capture_output=True, text=True)
    version = wheel.name.split("-")[1]
    _require(version in shown.stdout, f"edgetl --version printed {shown.stdout.strip()!r}, and the wheel is {version}")


def _files(folder: str) -> set[str]:
    """Paths of the tracked files below a folder of the source tree, or of all files where there is no git repository."""
    listed = subprocess.run(
        ["git", "-C", str(ROOT / folder), "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode == 0:
        return {name for name in listed.stdout.split("\0") if name and (ROOT / folder / name).is_file()}
    found = (path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(ROOT / folder).as_posix() for path in found}


def _run(*arguments: str) -> None:
    subprocess.run([sys.executable, *arguments], check=True)


def _require(condition: bool, reason: str) -> None:
    if not condition:
        raise DistError(reason)


if __name__ == "__main__":
    sys.exit(main())
