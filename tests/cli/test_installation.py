"""Pip commands in error messages fit the installation: each test writes the metadata that an installer would write."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

METADATA = """Metadata-Version: 2.4
Name: edgetl
Version: 9.9.9
Provides-Extra: plot
Provides-Extra: train
Provides-Extra: all
Requires-Dist: numpy>=1.26
Requires-Dist: matplotlib>=3.10; extra == 'plot'
Requires-Dist: torch>=2.10; extra == 'train'
Requires-Dist: edgetl[plot]; extra == 'train'
Requires-Dist: starlette>=0.49.1; extra == 'all'
Requires-Dist: edgetl[train]; extra == 'all'
"""
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def _command(root: Path, origin: Mapping[str, object] | None, extra: str) -> list[str]:
    """Return the pip command of ``MissingExtraError``, in words, where edgetl was installed from ``origin``."""
    info = root / "site/edgetl-9.9.9.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(METADATA)
    if origin is not None:
        (info / "direct_url.json").write_text(json.dumps(origin))
    code = f"from edgetl.errors import MissingExtraError; print(MissingExtraError('torch', {extra!r}))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root / "site"), str(Path(__file__).parents[2])])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    message, _, command = done.stdout.strip().partition("Install it with: ")
    assert message == "torch is not installed. "
    return shlex.split(command)


def test_an_installation_from_a_folder_of_wheels_lists_the_libraries(tmp_path: Path) -> None:
    """Without a recorded source, the name edgetl could be another package of a registry."""
    assert _command(tmp_path, None, "train") == ["pip", "install", "matplotlib>=3.10", "torch>=2.10"]


@pytest.mark.parametrize("editable", [True, False])
def test_an_installation_from_a_clone_names_its_folder(tmp_path: Path, editable: bool) -> None:
    clone = tmp_path / "my clone"
    clone.mkdir()
    origin = {"url": clone.as_uri(), "dir_info": {"editable": True} if editable else {}}
    assert _command(tmp_path, origin, "train") == ["pip", "install", *(["-e"] if editable else []), f"{clone}[train]"]


def test_an_installation_from_a_wheel_names_the_file(tmp_path: Path) -> None:
    wheel = tmp_path / "edgetl-9.9.9-py3-none-any.whl"
    wheel.touch()
    origin = {"url": wheel.as_uri(), "archive_info": {"hashes": {"sha256": "0" * 64}}}
    assert _command(tmp_path, origin, "train") == ["pip", "install", f"{wheel}[train]"]


@pytest.mark.parametrize(
    ("extra", "libraries"),
    [("plot", ["matplotlib>=3.10"]), ("all", ["matplotlib>=3.10", "starlette>=0.49.1", "torch>=2.10"])],
    ids=["one-library", "nested-extras"],
)
def test_an_installation_from_a_deleted_wheel_lists_the_libraries(tmp_path: Path, extra: str, libraries: list[str]) -> None:
    origin = {"url": (tmp_path / "gone.whl").as_uri(), "archive_info": {}}
    assert _command(tmp_path, origin, extra) == ["pip", "install", *libraries]


def test_an_installation_from_an_address_names_the_address(tmp_path: Path) -> None:
    origin = {"url": "https://example.org/edgetl-9.9.9-py3-none-any.whl", "archive_info": {}}
    assert _command(tmp_path, origin, "train") == ["pip", "install", f"edgetl[train] @ {origin['url']}"]


def test_an_installation_from_a_repository_names_the_commit(tmp_path: Path) -> None:
    origin = {"url": "https://example.org/edgetl.git", "vcs_info": {"vcs": "git", "commit_id": COMMIT}}
    assert _command(tmp_path, origin, "train") == ["pip", "install", f"edgetl[train] @ git+https://example.org/edgetl.git@{COMMIT}"]
