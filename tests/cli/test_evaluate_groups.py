"""Comparison of groups (``edgetl evaluate --by``) for a bundle and a run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from edgetl.core.bundle import Bundle
from edgetl.data.predictions import parse_predictions
from edgetl.errors import ConfigError, DataError, GroupGapError
from edgetl.report.models import group_models, with_evaluations
from edgetl.report.page import write_report
from edgetl.train.artifacts.run import Run
from tests.command import edgetl, edgetl_in_one_process


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


@pytest.fixture(scope="module")
def evaluated(bundle: Bundle, photos: Path) -> CompletedProcess[str]:
    """Evaluation of the bundle with groups, as JSON."""
    return edgetl("evaluate", bundle.path, photos, "--groups", photos / "metadata.csv", "--by", "side,hard", "--json", "--fail-on-gap")


def test_a_bundle_is_compared_by_group_for_every_variant(bundle: Bundle, evaluated: CompletedProcess[str]) -> None:
    done = evaluated
    report = json.loads(done.stdout)
    side, hard = report["groups"]
    assert [model["model"] for model in side["models"]] == [variant.name for variant in bundle.manifest.variants]
    assert sum(group["accuracy"]["n"] for group in side["models"][0]["groups"]) == report["result"]["accuracy"]["n"] == side["images"]
    assert (hard["models"][0]["finding"], side["models"][0]["finding"]) == ("alarm", "none")
    assert side["reference"].endswith("fp32") and hard["models"][0]["gap"]["lowest"] == "1"
    assert done.returncode == GroupGapError.exit_code and "comparisons have a gap (--fail-on-gap)" in done.stderr


def test_the_report_has_the_groups_of_the_evaluation(bundle: Bundle, evaluated: CompletedProcess[str], tmp_path: Path) -> None:
    (tmp_path / "groups.json").write_text(evaluated.stdout, "utf-8")
    models = with_evaluations(group_models([], [bundle]), [tmp_path / "groups.json"])
    (model,), page = write_report(models, tmp_path / "report.html").models, (tmp_path / "report.html").read_text("utf-8")
    groups = json.loads(evaluated.stdout)["groups"]
    assert model.model_dump(mode="json")["groups"] == groups
    for found in (model for table in groups for model in table["models"]):
        for value in (found["gap"]["value"], found["gap"]["p"], found["ratio"], *(group["accuracy"]["value"] for group in found["groups"])):
            assert f'value="{value!r}"' in page


def test_the_report_rejects_an_evaluation_of_another_model_or_without_groups(
    bundle: Bundle, evaluated: CompletedProcess[str], tmp_path: Path
) -> None:
    file, models = tmp_path / "groups.json", group_models([], [bundle])
    for change, message in (
        ({"run_sha256": "0" * 64}, "is the evaluation of another model"),
        ({"groups": []}, "has no comparison of groups"),
    ):
        file.write_text(json.dumps(json.loads(evaluated.stdout) | change), "utf-8")
        with pytest.raises(ConfigError, match=message):
            with_evaluations(models, [file])


def test_a_run_is_compared_with_its_bundle_in_one_table(run: Run, bundle: Bundle, photos: Path) -> None:
    done = edgetl(
        "evaluate", run.path, photos, "--groups", photos / "metadata.csv", "--by", "hard", "--bundle", bundle.path, "--positive", "3"
    )
    assert done.returncode == 0, done.stderr
    assert "trained model, by hard: alarm: accuracy" in done.stdout and "TPR of 3" in done.stdout
    assert "not compared: backbone probe: the training started from random weights." in done.stdout
    for title in ("equalized", "ratio", "finding", "trained"):
        assert title in done.stdout


WRONG = [
    (["--by", "side"], ConfigError.exit_code, "--by side needs --groups FILE.csv"),
    (["--groups", "METADATA"], ConfigError.exit_code, "--groups needs --by COLUMN"),
    (["--fail-on-gap"], ConfigError.exit_code, "--fail-on-gap needs --by COLUMN"),
    (["--groups", "METADATA", "--by", "age"], ConfigError.exit_code, "has no column 'age'. Its columns: side, hard."),
    (["--groups", "METADATA", "--by", "side", "--positive", "ten"], ConfigError.exit_code, "--positive ten: the model has no such label"),
    (["--groups", "METADATA", "--by", "side", "--bundle", "x"], ConfigError.exit_code, "--bundle is for the evaluation of a run"),
    (["--groups", "missing.csv", "--by", "side"], DataError.exit_code, "--groups missing.csv cannot be read: No such file"),
]


def test_a_wrong_option_is_an_error(bundle: Bundle, photos: Path) -> None:
    given = [[str(photos / "metadata.csv") if option == "METADATA" else option for option in options] for options, _, _ in WRONG]
    printed = edgetl_in_one_process([["evaluate", str(bundle.path), str(photos), "--variant", "onnx-fp32", *options] for options in given])
    for (options, code, message), done in zip(WRONG, printed, strict=True):
        assert (done.code, done.stdout) == (code, "") and message in done.words, options
