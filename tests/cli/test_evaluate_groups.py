"""Comparison of groups (``edgetl evaluate --by``) for a bundle and a run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from edgetl.core.bundle import Bundle
from edgetl.data.predictions import parse_predictions
from edgetl.errors import ConfigError, DataError, GroupGapError
from edgetl.train.artifacts.run import Run
from tests.command import edgetl


@pytest.fixture(scope="module")
def photos(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of 100 test images with a table: ``side`` is random; ``hard`` are the wrong predictions of the run and up to 30 images."""
    rows = [row for row in parse_predictions((run.path / "predictions.csv").read_text()) if row.split == "test"]
    chosen = sorted(rows, key=lambda row: row.label == row.prediction)[:100]
    wrong = sum(row.label != row.prediction for row in chosen)
    folder, source = tmp_path_factory.mktemp("photos"), Path(run.splits().root)
    for label in run.record.labels:
        (folder / label).mkdir()
    for row in chosen:
        shutil.copyfile(source / row.file, folder / row.file)
    lines = [f"{row.file},{'left' if index % 3 else 'right'},{int(index < max(30, wrong))}" for index, row in enumerate(chosen)]
    (folder / "metadata.csv").write_text("\n".join(["file,side,hard", *lines]) + "\n")
    return folder


def test_a_bundle_is_compared_by_group_for_every_variant(bundle: Bundle, photos: Path) -> None:
    done = edgetl("evaluate", bundle.path, photos, "--groups", photos / "metadata.csv", "--by", "side,hard", "--json", "--fail-on-gap")
    report = json.loads(done.stdout)
    side, hard = report["groups"]
    assert [model["model"] for model in side["models"]] == [variant.name for variant in bundle.manifest.variants]
    assert sum(group["accuracy"]["n"] for group in side["models"][0]["groups"]) == report["result"]["accuracy"]["n"] == side["images"]
    assert (hard["models"][0]["finding"], side["models"][0]["finding"]) == ("alarm", "none")
    assert side["reference"].endswith("fp32") and hard["models"][0]["gap"]["lowest"] == "1"
    assert done.returncode == GroupGapError.exit_code and "comparisons have a gap (--fail-on-gap)" in done.stderr


def test_a_run_is_compared_with_its_bundle_in_one_table(run: Run, bundle: Bundle, photos: Path) -> None:
    done = edgetl(
        "evaluate", run.path, photos, "--groups", photos / "metadata.csv", "--by", "hard", "--bundle", bundle.path, "--positive", "3"
    )
    assert done.returncode == 0, done.stderr
    assert "trained model, by hard: alarm: accuracy" in done.stdout and "TPR of 3" in done.stdout
    assert "not compared: backbone probe: the training started from random weights." in done.stdout
    for title in ("equalized", "ratio", "finding", "trained"):
        assert title in done.stdout


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--by", "side"], ConfigError.exit_code, "--by side needs --groups FILE.csv"),
        (["--groups", "METADATA"], ConfigError.exit_code, "--groups needs --by COLUMN"),
        (["--fail-on-gap"], ConfigError.exit_code, "--fail-on-gap needs --by COLUMN"),
        (["--groups", "METADATA", "--by", "age"], ConfigError.exit_code, "has no column 'age'. Its columns: side, hard."),
        (
            ["--groups", "METADATA", "--by", "side", "--positive", "ten"],
            ConfigError.exit_code,
            "--positive ten: the model has no such label",
        ),
        (["--groups", "METADATA", "--by", "side", "--bundle", "x"], ConfigError.exit_code, "--bundle is for the evaluation of a run"),
        (["--groups", "missing.csv", "--by", "side"], DataError.exit_code, "--groups missing.csv cannot be read: No such file"),
    ],
)
def test_a_wrong_option_is_an_error(bundle: Bundle, photos: Path, options: list[str], code: int, message: str) -> None:
    given = [str(photos / "metadata.csv") if option == "METADATA" else option for option in options]
    done = edgetl("evaluate", bundle.path, photos, "--variant", "onnx-fp32", *given)
    assert (done.returncode, done.stdout) == (code, "") and message in " ".join(done.stderr.split())
