"""Child interpreters do not import from the current folder (CWE-427)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgetl.core.system.child_process import child_command, child_environment, trusted_path

ROOT = Path(__file__).parents[2]


def test_trusted_path_has_no_relative_entries_and_no_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path)
    kept = [str(ROOT), *(entry for entry in sys.path if entry and entry != str(ROOT))]
    monkeypatch.setattr(sys, "path", ["", ".", "lib", str(tmp_path), str(tmp_path / "link"), *kept])
    assert trusted_path() == kept


def test_trusted_path_keeps_the_folder_of_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "path", ["", *(entry for entry in sys.path if entry not in ("", str(ROOT)))])
    assert trusted_path() == [str(ROOT), *sys.path[1:]]


def test_trusted_path_works_in_a_deleted_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert str(ROOT) in trusted_path()


def test_child_environment_drops_variables_that_change_the_search_path(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "PYTHONUSERBASE", "PYTHONWARNINGS", "PYTHONHASHSEED"):
        monkeypatch.setenv(name, "7")
    found = child_environment(OTHER="1")
    assert {name: value for name, value in found.items() if name.startswith("PYTHON") or name == "OTHER"} == {
        "PYTHONHASHSEED": "7",
        "PYTHONSAFEPATH": "1",
        "OTHER": "1",
        **{name: os.environ[name] for name in ("PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE", "PYTHONUTF8") if name in os.environ},
    }


def test_a_child_receives_arguments_and_ignores_modules_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("json", "edgetl", "sitecustomize", "usercustomize", "encodings", "os", "site", "typing"):
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('{name} was imported')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    command = child_command("json", "loads", '{"a": 1}')
    command[command.index("-c") + 1] += "; print(len(sys.argv), sys.modules['json'].__file__)"
    done = subprocess.run(command, cwd=tmp_path, env=child_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.startswith("2 ") and str(tmp_path) not in done.stdout, done.stderr
