"""Commands that start child processes in a folder with hostile modules (CWE-427, untrusted search path)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from edgetl.core.bundle import Bundle
from tests.cli.hostile_folder import HostileFolder
from tests.conftest import write_colors
from tests.serve.serving import free_port, until


@pytest.fixture
def folder(tmp_path: Path) -> HostileFolder:
    return HostileFolder(tmp_path)


def test_the_fixture_folder_shadows_the_standard_library(folder: HostileFolder) -> None:
    assert subprocess.run([sys.executable, "-c", "import pickle"], cwd=folder.path, check=False).returncode == 99
    assert folder.imported == ["pickle"]


def test_verify_and_bench_import_nothing_from_the_current_folder(folder: HostileFolder, bundle: Bundle) -> None:
    for arguments in (("verify", bundle.path), ("bench", bundle.path, "--variant", "onnx-fp32", "--max-seconds", "1")):
        done = folder.run(*arguments)
        assert (done.returncode, folder.imported) == (0, []), done.stderr


def test_serve_imports_nothing_from_the_current_folder(folder: HostileFolder, bundle: Bundle) -> None:
    log = folder.path / "log"
    command = folder.command("serve", bundle.path, "--variant", "onnx-fp32", "--port", free_port())
    with log.open("wb") as stream:
        served = subprocess.Popen(command, cwd=folder.path, stderr=stream, stdout=subprocess.DEVNULL)
    try:
        until(lambda: b"listening on" in log.read_bytes() or served.poll() is not None)
    finally:
        served.terminate()
    assert (served.wait(), folder.imported) == (0, []), log.read_text()


@pytest.mark.slow
def test_several_training_processes_import_nothing_from_the_current_folder(folder: HostileFolder, tmp_path: Path) -> None:
    images = write_colors(tmp_path / "images", 12)
    options = (
        "--backbone",
        "test_resnet",
        "--random-weights",
        "--strategy",
        "full",
        "--epochs",
        "1",
        "--input-size",
        "32",
        "--devices",
        "2",
    )
    done = folder.run("train", images, "--out", tmp_path / "run", *options)
    assert (done.returncode, folder.imported) == (0, []), done.stderr
