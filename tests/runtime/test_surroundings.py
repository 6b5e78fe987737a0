"""Environment of the runtime: missing, old and broken engines, hosts without writable folders, no unexpected files."""

from __future__ import annotations

import json
import os
import re
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
from edgetl.runtime.engine_versions import OLDEST, check_version, version_hint
from tests.runtime.hostile import forge

FORMATS = ["onnx", "openvino"]
LIBRARIES = {"onnx": "onnxruntime", "openvino": "openvino"}
RUN = "from edgetl.cli.app import main; main(sys.argv[1:])"


def _edgetl(before: str, *arguments: object, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process that runs the lines ``before`` first."""
    code = f"import json, os, sys\nsys.path[:] = json.loads(sys.argv.pop(1))\n{before}\n{RUN}"
    command = [sys.executable, "-c", code, json.dumps([path for path in sys.path if path]), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def _one_variant(bundle: Bundle, target: Path, format_: str) -> Path:
    name = f"{format_}-fp32"
    return forge(bundle, target, name, [bundle.read(file) for file in bundle.variant(name).files])


@pytest.mark.parametrize("format_", FORMATS)
def test_a_missing_engine_is_an_error_with_the_pip_command(bundle: Bundle, digits: Path, tmp_path: Path, format_: str) -> None:
    library = LIBRARIES[format_]
    done = _edgetl(f"sys.modules[{library!r}] = None", "predict", _one_variant(bundle, tmp_path / "b", format_), digits / "1")
    assert (done.returncode, done.stdout) == (MissingExtraError.exit_code, ""), done.stderr
    assert done.stderr.strip() == f"error: {library} is not installed. Install it with: {install_command(library)}"


def test_a_variant_without_an_engine_is_an_error_that_names_another_variant(bundle: Bundle, digits: Path) -> None:
    for command in (["predict", bundle.path, digits / "1"], ["bench", bundle.path]):
        done = _edgetl("sys.modules['openvino'] = None", *command, "--variant", "openvino-int8")
        assert done.returncode == MissingExtraError.exit_code, done.stderr
        assert re.search(
            r"openvino is not installed\. Use --variant onnx-\w+, which runs in the installed onnxruntime\. Or install openvino with: pip",
            done.stderr,
        ), done.stderr


def test_a_missing_engine_is_replaced_by_the_other_engine(bundle: Bundle, digits: Path) -> None:
    image = next((digits / "3").iterdir())
    done = _edgetl("sys.modules['onnxruntime'] = None", "predict", bundle.path, image, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["variant"].startswith("openvino-")


def test_a_broken_engine_is_an_error_with_the_command_to_reinstall_it(bundle: Bundle, digits: Path, tmp_path: Path) -> None:
    (tmp_path / "broken/onnxruntime").mkdir(parents=True)
    (tmp_path / "broken/onnxruntime/__init__.py").write_text("raise ImportError('libgomp.so.1: cannot open shared object file')")
    before = f"sys.path.insert(0, {str(tmp_path / 'broken')!r})"
    done = _edgetl(before, "predict", _one_variant(bundle, tmp_path / "b", "onnx"), digits / "1")
    assert (done.returncode, done.stdout) == (EngineError.exit_code, ""), done.stderr
    assert "onnxruntime is installed but cannot be imported: libgomp.so.1: cannot open shared object file" in done.stderr
    assert install_command("onnxruntime", "--force-reinstall") in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(("library", "found"), [("onnxruntime", "1.15.1"), ("openvino", "2024.6.0-17404-4c0f47d2335-releases/2024/6")])
def test_an_old_engine_is_an_error_with_the_minimum_version(library: str, found: str) -> None:
    with pytest.raises(EngineError, match=rf"{library} {found} is too old. edgetl needs {library} >= .*pip install --upgrade"):
        check_version(library, found)
    check_version(library, OLDEST[library])
    check_version(library, "9999.0.0")


def test_an_old_engine_loads_nothing(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "__version__", "1.15.1")
    with pytest.raises(EngineError, match=r"model\.onnx: onnxruntime 1\.15\.1 is too old\. edgetl needs onnxruntime >= 1\.22"):
        edgetl.load(bundle, variant="onnx-fp32")


def test_the_minimum_versions_equal_the_lower_bounds_of_the_extras() -> None:
    extras = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {name: extras[name] for name in OLDEST} == {name: [f"{name}>={oldest}"] for name, oldest in OLDEST.items()}


def test_the_version_hint_names_the_version_of_the_bundle() -> None:
    assert version_hint("openvino", "2025.2.0", "2026.4.1") == (
        " The bundle was verified with openvino 2026.4.1; the installed 2025.2.0 is older. "
        "Install the other version with: pip install openvino==2026.4.1"
    )
    assert "is newer" in version_hint("onnxruntime", "1.31.1", "1.30.0")
    assert version_hint("openvino", "2026.4.0", "2026.4.1-releases") == "" == version_hint("openvino", "2026.4.0", None)


BARE = """
os.chdir(sys.argv[1]); os.rmdir(sys.argv.pop(1))  # remove the current folder
os.umask(0o077)
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # no file can be written
"""


@pytest.mark.parametrize("format_", FORMATS)
def test_verify_and_predict_work_without_writable_folders(bundle: Bundle, digits: Path, tmp_path: Path, format_: str) -> None:
    """The host has no home, temporary or current folder. The bundle is read-only, in a folder with an unusual name."""
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


@pytest.mark.parametrize("format_", FORMATS)
def test_verify_writes_no_files(bundle: Bundle, tmp_path: Path, format_: str) -> None:
    """edgetl has no cache of compiled networks, which could be damaged or belong to another CPU. Engines must not write files either."""
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
