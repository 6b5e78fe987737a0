"""Fixtures with a run and a bundle from photographs and ImageNet weights, shared by all tests of this folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgetl.core.bundle import Bundle, open_bundle
from edgetl.train.artifacts.run import Run, open_run
from tests.command import edgetl


@pytest.fixture(scope="session")
def photo_run(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Run of ``edgetl train`` on trashnet with the ImageNet MobileNetV2."""
    out = tmp_path_factory.mktemp("photos") / "trash"
    backbone = f"local-dir:{shared}/weights/mobilenetv2_100.imagenet"
    done = edgetl("train", shared / "data/trashnet", "--backbone", backbone, "--strategy", "probe", "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["name"] == "trash"
    return open_run(out)


@pytest.fixture(scope="session")
def photo_bundle(photo_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Bundle of that run with four variants."""
    out = tmp_path_factory.mktemp("photos") / "bundle"
    done = edgetl("export", photo_run.path, "--out", out, "--format", "onnx,openvino", "--precision", "fp32,int8")
    assert done.returncode == 0, done.stderr
    return open_bundle(out)
