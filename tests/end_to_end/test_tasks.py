"""Labels, numbers and grades from a table to a device's answers, by the command line."""

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
    "--backbone", "test_resnet", "--random-weights", "--strategy", "full", "--input-size", 40, "--crop-pct", 1.0, "--augment", "none",
    "--epochs", 12, "--val", 0.25, "--test", 0.25,
)  # fmt: skip
TASKS = {
    "multi-label": ("--columns", "red,green,blue"),
    "regression": ("--task", "regression", "--columns", "mm", "--tolerance", 1),
    "ordinal": ("--task", "ordinal", "--columns", "grade"),
}


def said(*arguments: object) -> Any:
    """A command's JSON."""
    done = edgetl(*arguments, "--json", timeout=400)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module", params=[pytest.param(task, marks=pytest.mark.slow) if task == "ordinal" else task for task in TASKS])
def made(request: pytest.FixtureRequest, squares: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path]:
    """A task, its run and its bundle; the gate is wide, since 22 pictures decide."""
    out = tmp_path_factory.mktemp("road")
    labels = ("--labels", squares / "labels.csv", *TASKS[request.param])
    record = said("train", squares / "images", *labels, *TINY, "--out", out / "run")
    assert record["task"] == request.param and record["name"] == "run"
    limits = ("--precision", "fp32,int8", "--max-drop", 0.2, "--allow-missing")
    manifest = said("export", out / "run", "--out", out / "bundle", *limits)
    assert manifest["task"] == request.param and manifest["decision_rule"] == record["decision_rule"]
    return request.param, out / "run", out / "bundle"


def test_every_variant_is_scored_verified_and_timed(made: tuple[str, Path, Path], squares: Path) -> None:
    task, run, bundle = made
    manifest = open_bundle(bundle).manifest
    names = {variant.name for variant in manifest.variants}
    assert {"onnx-fp32", "openvino-fp32"} <= names
    data = (squares / "images", "--labels", squares / "labels.csv")
    trained = said("evaluate", run, *data)["result"]
    exported = said("evaluate", bundle, *data, "--variant", "onnx-fp32")["result"]
    assert exported["accuracy"] == trained["accuracy"] and exported.keys() == trained.keys()
    of_run, of_bundle = (_figure(item, task) for item in (trained, exported))
    assert np.isclose(of_run, of_bundle, rtol=1e-3)
    checked = said("verify", bundle, "--data", squares / "images", "--labels", squares / "labels.csv")
    assert {item["variant"] for item in checked["checked"]} == names == {item["variant"] for item in checked["evaluations"]}
    assert {item["variant"] for item in said("bench", bundle, "--runs", 20)["variants"]} == names


def _figure(result: Any, task: str) -> float:
    """Mean average precision, or mean absolute error."""
    found: float = result["multi_label"]["mean_average_precision"]["value"] if task == "multi-label" else result["regression"]["mae"]
    return found


def test_an_image_is_answered_in_the_tasks_own_way(made: tuple[str, Path, Path], squares: Path) -> None:
    task, _, bundle = made
    image = squares / "images" / "000.png"
    (row,) = said("predict", bundle, image)["predictions"]
    answer = library.load(bundle).predict(image)
    shown = edgetl("predict", bundle, image).stdout
    if task == "multi-label":
        assert row["labels"] == list(answer.labels) and set(row["scores"]) == {"red", "green", "blue"}
        assert f"000.png: {', '.join(answer.labels) or 'none of the labels'} (" in shown.replace("\n", "")
    else:
        assert row["value"] == answer.value and "label" not in row
        assert (row["value"] in (0, 1, 2, 3)) if task == "ordinal" else 0 < row["value"] < 10
        assert f"{'grade' if task == 'ordinal' else 'mm'} {row['value']:g}" in shown


def test_a_run_and_a_bundle_say_what_they_answer(made: tuple[str, Path, Path]) -> None:
    task, run, bundle = made
    assert said("inspect", bundle)["task"] == task == said("inspect", run)["task"]
    shown, of_run = edgetl("inspect", bundle).stdout, edgetl("inspect", run).stdout
    card = (bundle / "card.md").read_text()
    wanted = {
        "multi-label": ("red (from ", "test mean average precision", "Any of 3 labels: red, green, blue. Thresholds"),
        "regression": ("regression", "test MAE", "One number: mm. A prediction within 1 counts as right."),
        "ordinal": ("levels 0 to 3", "quadratic-weighted kappa", "A grade from 0 to 3: grade."),
    }[task]
    assert wanted[0] in shown and wanted[1] in of_run and wanted[2] in card


def test_a_wrong_table_is_a_clear_mistake(made: tuple[str, Path, Path], squares: Path, digits: Path, tmp_path: Path) -> None:
    task, run, bundle = made
    for model in (run, bundle):
        done = edgetl("evaluate", model, squares / "images")
        assert done.returncode == 3 and f"this is a {task} model: give the labels of the images with --labels FILE.csv" in done.stderr
    other = tmp_path / "other.csv"
    other.write_text("file,moss\n000.png,1\n", "utf-8")
    done = edgetl("evaluate", bundle, squares / "images", "--labels", other)
    assert done.returncode == 3 and "has no column" in done.stderr and "it has moss" in done.stderr


def test_thresholds_that_were_taken_away_are_noticed(made: tuple[str, Path, Path]) -> None:
    task, _, bundle = made
    text = open_bundle(bundle).manifest.model_dump(mode="json")
    text["decision_rule"] = {}
    if task == "regression":
        Manifest.model_validate_json(json.dumps(text))
    else:
        with pytest.raises(ValueError, match=r"0 thresholds for 3 labels|an ordinal model without levels"):
            Manifest.model_validate_json(json.dumps(text))


@pytest.mark.slow
@pytest.mark.shared
def test_a_probe_finds_blood_cells(shared: Path, tmp_path: Path) -> None:
    data = shared / "data/bccd"
    weights = ("--backbone", "mobilenetv2_100.imagenet", "--weights-dir", shared / "weights", "--strategy", "probe", "--augmented-views", 1)
    whole = ("--input-size", "240,320", "--crop-pct", 1.0)
    record = said("train", data / "images", "--labels", data / "multilabel.csv", *weights, *whole, "--out", tmp_path / "run")
    assert record["labels"] == ["n_RBC", "n_WBC", "n_Platelets"] and sum(record["images"].values()) == 364
    assert record["test"]["multi_label"]["mean_average_precision"]["value"] >= 0.85
