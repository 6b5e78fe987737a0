"""Multi-label, regression and ordinal tasks on the command line, from a label table to predictions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgetl as library
from edgetl.core.bundle import open_bundle
from edgetl.core.manifest import Manifest
from tests.command import edgetl

TINY = (
    "--backbone",
    "test_resnet",
    "--random-weights",
    "--strategy",
    "full",
    "--input-size",
    40,
    "--crop-pct",
    1.0,
    "--augment",
    "none",
    "--epochs",
    12,
    "--val",
    0.25,
    "--test",
    0.25,
)
TASKS = {
    "multi-label": ("--columns", "red,green,blue"),
    "regression": ("--task", "regression", "--columns", "mm", "--tolerance", 1),
    "ordinal": ("--task", "ordinal", "--columns", "grade"),
}


def run_json(*arguments: object) -> Any:
    """Run a command with ``--json`` and return its output."""
    done = edgetl(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module", params=[pytest.param(task, marks=pytest.mark.slow) if task == "ordinal" else task for task in TASKS])
def exported(request: pytest.FixtureRequest, squares: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path]:
    """A task, its run and its bundle. The gate has a wide limit, because it has only 22 images."""
    out = tmp_path_factory.mktemp("tasks")
    labels = ("--labels", squares / "labels.csv", *TASKS[request.param])
    record = run_json("train", squares / "images", *labels, *TINY, "--out", out / "run")
    assert record["task"] == request.param and record["name"] == "run"
    limits = ("--precision", "fp32,int8", "--max-drop", 0.2, "--allow-missing")
    manifest = run_json("export", out / "run", "--out", out / "bundle", *limits)
    assert manifest["task"] == request.param and manifest["decision_rule"] == record["decision_rule"]
    return request.param, out / "run", out / "bundle"


def test_every_variant_is_evaluated_verified_and_timed(exported: tuple[str, Path, Path], squares: Path) -> None:
    task, run, bundle = exported
    manifest = open_bundle(bundle).manifest
    names = {variant.name for variant in manifest.variants}
    assert {"onnx-fp32", "openvino-fp32"} <= names
    data = (squares / "images", "--labels", squares / "labels.csv")
    trained = run_json("evaluate", run, *data)["result"]
    variant = run_json("evaluate", bundle, *data, "--variant", "onnx-fp32")["result"]
    assert variant["accuracy"] == trained["accuracy"] and variant.keys() == trained.keys()
    of_run, of_bundle = (_score(item, task) for item in (trained, variant))
    assert np.isclose(of_run, of_bundle, rtol=1e-3)
    checked = run_json("verify", bundle, "--data", squares / "images", "--labels", squares / "labels.csv")
    assert {item["variant"] for item in checked["checked"]} == names == {item["variant"] for item in checked["evaluations"]}
    assert {item["variant"] for item in run_json("bench", bundle, "--runs", 20)["variants"]} == names


def _score(result: Any, task: str) -> float:
    """Return the mean average precision, or the mean absolute error."""
    found: float = result["multi_label"]["mean_average_precision"]["value"] if task == "multi-label" else result["regression"]["mae"]
    return found


def test_a_prediction_has_the_form_of_its_task(exported: tuple[str, Path, Path], squares: Path) -> None:
    task, _, bundle = exported
    image = squares / "images" / "000.png"
    (row,) = run_json("predict", bundle, image)["predictions"]
    prediction = library.load(bundle).predict(image)
    shown = edgetl("predict", bundle, image).stdout
    if task == "multi-label":
        assert row["labels"] == list(prediction.labels) and set(row["scores"]) == {"red", "green", "blue"}
        assert f"000.png: {', '.join(prediction.labels) or 'no label'} (" in shown.replace("\n", "")
    else:
        assert row["value"] == prediction.value and "label" not in row
        assert (row["value"] in (0, 1, 2, 3)) if task == "ordinal" else 0 < row["value"] < 10
        assert f"{'grade' if task == 'ordinal' else 'mm'} {row['value']:g}" in shown


def test_a_run_and_a_bundle_show_their_task(exported: tuple[str, Path, Path]) -> None:
    task, run, bundle = exported
    assert run_json("inspect", bundle)["task"] == task == run_json("inspect", run)["task"]
    shown, of_run = edgetl("inspect", bundle).stdout, edgetl("inspect", run).stdout
    card = (bundle / "card.md").read_text()
    wanted = {
        "multi-label": ("red (threshold ", "test mean average precision", "3 labels: red, green, blue. Score thresholds"),
        "regression": ("regression", "test MAE", "Image regression of mm. A prediction counts as correct within 1 of the true value."),
        "ordinal": ("levels 0 to 3", "quadratic-weighted kappa", "Ordinal image regression of grade, levels 0 to 3."),
    }[task]
    assert wanted[0] in " ".join(shown.split()) and wanted[1] in " ".join(of_run.split()) and wanted[2] in card


def test_a_missing_or_wrong_label_table_is_an_error(exported: tuple[str, Path, Path], squares: Path, digits: Path, tmp_path: Path) -> None:
    task, run, bundle = exported
    for model in (run, bundle):
        done = edgetl("evaluate", model, squares / "images")
        assert done.returncode == 3 and f"this is a {task} model. Set the labels of the images with --labels FILE.csv" in done.stderr
    other = tmp_path / "other.csv"
    other.write_text("file,moss\n000.png,1\n", "utf-8")
    done = edgetl("evaluate", bundle, squares / "images", "--labels", other)
    assert done.returncode == 3 and "has no column" in done.stderr and "Its columns: moss" in done.stderr


def test_a_manifest_without_its_decision_rule_is_invalid(exported: tuple[str, Path, Path]) -> None:
    task, _, bundle = exported
    text = open_bundle(bundle).manifest.model_dump(mode="json")
    text["decision_rule"] = {}
    if task == "regression":
        Manifest.model_validate_json(json.dumps(text))
    else:
        with pytest.raises(ValueError, match=r"0 thresholds for 3 labels|an ordinal model has no levels"):
            Manifest.model_validate_json(json.dumps(text))


@pytest.mark.slow
@pytest.mark.shared
def test_a_linear_probe_detects_blood_cells(shared: Path, tmp_path: Path) -> None:
    data = shared / "data/bccd"
    weights = ("--backbone", "mobilenetv2_100.imagenet", "--weights-dir", shared / "weights", "--strategy", "probe", "--augmented-views", 1)
    whole = ("--input-size", "240,320", "--crop-pct", 1.0)
    record = run_json("train", data / "images", "--labels", data / "multilabel.csv", *weights, *whole, "--out", tmp_path / "run")
    assert record["labels"] == ["n_RBC", "n_WBC", "n_Platelets"] and sum(record["images"].values()) == 364
    assert record["test"]["multi_label"]["mean_average_precision"]["value"] >= 0.85
