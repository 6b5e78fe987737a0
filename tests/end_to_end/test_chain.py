"""Lineage of three consecutive fine-tunings of the embedded backbone on photographs and drawings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgetl.core.bundle import open_bundle
from edgetl.train.artifacts.run import open_run
from tests.command import edgetl


@pytest.mark.slow
@pytest.mark.shared
def test_a_chain_of_three_runs_records_three_parents(shared: Path, tmp_path: Path) -> None:
    backbone = "edgetl_small"
    for domain in ("photo", "sketch", "cartoon"):
        out = tmp_path / domain
        arguments = ("train", shared / "data/pacs" / domain, "--backbone", backbone, "--augmented-views", 1, "--input-size", 96)
        training = ("--strategy", "full", "--epochs", 2, "--out", out)
        done = edgetl(*arguments, *training, "--json")
        assert done.returncode == 0, done.stderr
        backbone = str(out)
    done = edgetl("export", tmp_path / "cartoon", "--out", tmp_path / "bundle", "--format", "onnx", "--precision", "fp32")
    assert done.returncode == 0, done.stderr
    parents = open_bundle(tmp_path / "bundle").manifest.lineage.parents
    assert [parent.name for parent in parents] == ["edgetl_small", "photo", "sketch"]
    for parent in parents[1:]:
        run = open_run(tmp_path / parent.name)
        assert (parent.sha256, parent.data_fingerprint, parent.license) == (run.digest(), run.record.data_fingerprint, "apache-2.0")
    shown = json.loads(edgetl("inspect", tmp_path / "bundle", "--json").stdout)
    assert len(shown["lineage"]["parents"]) == 3
    assert edgetl("inspect", tmp_path / "bundle").stdout.count("made from") == 3
