"""Engines that are missing, old or broken (A32), bare machines (A33), and files that nobody asked for (A34)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import onnxruntime
import pytest

import edgetl
from edgetl.core.bundle import Bundle
from edgetl.errors import EngineError, MissingExtraError
from edgetl.installation import install_command
from edgetl.runtime.engine_versions import OLDEST, differs, need
from tests.runtime.hostile import forge

FORMATS = ["onnx", "openvino"]
LIBRARIES = {"onnx": "onnxruntime", "openvino": "openvino"}
RUN = "from edgetl.cli.app import main; main(sys.argv[1:])"


def _edgetl(before: str, *arguments: object, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """The command line in a process that first runs the lines ``before``."""
    code = f"import json, os, sys\nsys.path[:] = json.loads(sys.argv.pop(1))\n{before}\n{RUN}"
    command = [sys.executable, "-c", code, json.dumps([path for path in sys.path if path]), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)


def _one_variant(bundle: Bundle, target: Path, format_: str) -> Path:
    name = f"{format_}-fp32"
    return forge(bundle, target, name, [bundle.read(file) for file in bundle.variant(name).files])


# --- A32 -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format_", FORMATS)
def test_a_missing_engine_is_named_with_its_pip_command(bundle: Bundle, digits: Path, tmp_path: Path, format_: str) -> None:
    library = LIBRARIES[format_]
    done = _edgetl(f"sys.modules[{library!r}] = None", "predict", _one_variant(bundle, tmp_path / "b", format_), digits / "1")
    assert (done.returncode, done.stdout) == (MissingExtraError.exit_code, ""), done.stderr
    assert done.stderr.strip() == f"error: {library} is not installed. Install it with: {install_command(library)}"


def test_without_one_engine_the_other_answers(bundle: Bundle, digits: Path) -> None:
    picture = next((digits / "3").iterdir())
    done = _edgetl("sys.modules['onnxruntime'] = None", "predict", bundle.path, picture, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["variant"].startswith("openvino-")


def test_an_engine_that_cannot_be_imported_is_told_from_a_missing_one(bundle: Bundle, digits: Path, tmp_path: Path) -> None:
    (tmp_path / "broken/onnxruntime").mkdir(parents=True)
    (tmp_path / "broken/onnxruntime/__init__.py").write_text("raise ImportError('libgomp.so.1: cannot open shared object file')")
    before = f"sys.path.insert(0, {str(tmp_path / 'broken')!r})"
    done = _edgetl(before, "predict", _one_variant(bundle, tmp_path / "b", "onnx"), digits / "1")
    assert (done.returncode, done.stdout) == (EngineError.exit_code, ""), done.stderr
    assert "onnxruntime is installed and cannot be imported: libgomp.so.1: cannot open shared object file" in done.stderr
    assert install_command("onnxruntime", "--force-reinstall") in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(("library", "found"), [("onnxruntime", "1.15.1"), ("openvino", "2024.6.0-17404-4c0f47d2335-releases/2024/6")])
def test_an_engine_that_is_too_old_is_told_the_release_it_needs(library: str, found: str) -> None:
    with pytest.raises(EngineError, match=rf"{library} {found} is too old: edgetl needs {library} >= .*pip install --upgrade"):
        need(library, found)
    need(library, OLDEST[library])
    need(library, "9999.0.0")


def test_an_old_engine_loads_nothing(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "__version__", "1.15.1")
    with pytest.raises(EngineError, match=r"model\.onnx: onnxruntime 1\.15\.1 is too old: edgetl needs onnxruntime >= 1\.22"):
        edgetl.load(bundle, variant="onnx-fp32")


def test_the_oldest_releases_are_those_that_the_extras_install() -> None:
    extras = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {name: extras[name] for name in OLDEST} == {name: [f"{name}>={oldest}"] for name, oldest in OLDEST.items()}


def test_a_refused_file_of_another_release_is_told_which_one_fits() -> None:
    assert differs("openvino", "2025.2.0", "2026.4.1") == (
        " The bundle was checked with openvino 2026.4.1, and here is 2025.2.0, which is older: pip install openvino==2026.4.1"
    )
    assert "which is newer" in differs("onnxruntime", "1.31.1", "1.30.0")
    assert differs("openvino", "2026.4.0", "2026.4.1-releases") == "" == differs("openvino", "2026.4.0", None)


# --- A33 -------------------------------------------------------------------------------------------------------------------------

BARE = """
os.chdir(sys.argv[1]); os.rmdir(sys.argv.pop(1))  # the current folder is gone
os.umask(0o077)
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # no file can be written, wherever it is
"""


@pytest.mark.parametrize("format_", FORMATS)
def test_a_bare_machine_verifies_and_predicts(bundle: Bundle, digits: Path, tmp_path: Path, format_: str) -> None:
    """No home, temporary or current folder, nothing to write to, and a read-only bundle in a folder with an odd name."""
    root = tmp_path / " a b\n[é]*漢 "
    root.mkdir()
    path = _one_variant(bundle, root / "bundle", format_)
    for item in (*path.rglob("*"), path):
        item.chmod(0o555 if item.is_dir() else 0o444)
    environment = {"PATH": os.environ["PATH"], "TMPDIR": str(tmp_path / "none")}
    done = None
    for arguments in (("verify", path), ("predict", path, next((digits / "3").iterdir()), "--json")):
        (tmp_path / "here").mkdir()
        done = _edgetl(BARE, tmp_path / "here", *arguments, environment=environment)
        assert done.returncode == 0, done.stderr
    assert done is not None and json.loads(done.stdout)["predictions"][0]["label"] == "3"
    for item in (path, *(item for item in path.rglob("*") if item.is_dir())):
        item.chmod(0o755)


# --- A34 -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format_", FORMATS)
def test_the_device_writes_no_cache_and_nothing_else(bundle: Bundle, tmp_path: Path, format_: str) -> None:
    """edgetl uses no cache of compiled networks, so none can be damaged or of another CPU; nor may engines leave files of their own."""
    path = _one_variant(bundle, tmp_path / "bundle", format_)
    before = sorted(path.rglob("*"))
    empty = {name: tmp_path / name.lower() for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME", "HERE")}
    for folder in empty.values():
        folder.mkdir()
    environment = {"PATH": os.environ["PATH"], **{name: str(folder) for name, folder in empty.items()}}
    done = _edgetl(f"os.chdir({str(empty['HERE'])!r})", "verify", path, environment=environment)
    assert done.returncode == 0, done.stderr
    assert [item for folder in empty.values() for item in folder.rglob("*")] == []
    assert sorted(path.rglob("*")) == before
    shutil.rmtree(path)
