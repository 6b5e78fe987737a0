from __future__ import annotations

import csv
import json
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import edgetl as library
from edgetl.core.bundle import Bundle
from edgetl.core.preprocess import preprocess
from edgetl.train.artifacts.run import Run
from tests.command import edgetl

pytestmark = pytest.mark.shared


def test_a_linear_probe_on_trashnet_reaches_084(photo_run: Run) -> None:
    assert photo_run.record.test is not None
    assert photo_run.record.test.accuracy.value >= 0.84


@pytest.mark.slow
def test_a_linear_probe_on_sign_digits_reaches_092(shared: Path, tmp_path: Path) -> None:
    backbone = f"local-dir:{shared}/weights/mobilenetv2_100.imagenet"
    arguments = ("--backbone", backbone, "--strategy", "probe", "--out", tmp_path / "signs", "--json")
    done = edgetl("train", shared / "data/sign-digits", *arguments)
    record = json.loads(done.stdout)
    assert record["test"]["accuracy"]["value"] >= 0.92


def test_images_with_two_labels_are_reported(photo_run: Run) -> None:
    assert ("glass/glass115.jpg", "metal/metal91.jpg") in photo_run.splits().conflicts


def test_all_four_variants_pass_the_gate(photo_bundle: Bundle) -> None:
    manifest = photo_bundle.manifest
    assert {variant.name for variant in manifest.variants} == {"onnx-fp32", "onnx-int8", "openvino-fp32", "openvino-int8"}
    for variant in manifest.variants:
        assert manifest.trained.value - variant.validation.value <= manifest.max_drop + 1e-9
        assert variant.agreement.confident_agreement >= 0.97
        if variant.precision == "fp32":
            assert variant.agreement.max_relative_error <= 1e-4
    assert manifest.lineage.license == "apache-2.0" and manifest.lineage.weights_sha256


def _torch_scores(run: Run, paths: list[Path]) -> np.ndarray:
    model = run.load_model()
    batch = np.stack([preprocess(path, run.record.preprocess) for path in paths])
    with torch.inference_mode():
        return torch.softmax(model(torch.from_numpy(batch)), 1).numpy()


@pytest.mark.parametrize("source", ["photos", "orientations"])
def test_the_python_api_the_command_line_both_engines_and_torch_agree(
    photo_run: Run, photo_bundle: Bundle, shared: Path, source: str
) -> None:
    if source == "photos":
        paths = sorted((shared / "data/trashnet").glob("*/*.jpg"))[::51][:50]
        assert len(paths) == 50
    else:
        paths = sorted((shared / "data/exif-orientation").glob("*.jpg"))
        assert len(paths) == 9
    expected = _torch_scores(photo_run, paths)
    for variant in ("onnx-fp32", "openvino-fp32"):
        predictions = library.load(photo_bundle, variant=variant).predict(list(paths))
        shown = json.loads(edgetl("predict", photo_bundle.path, *paths, "--variant", variant, "--json").stdout)["predictions"]
        for row, prediction, line in zip(expected, predictions, shown, strict=True):
            assert photo_bundle.manifest.labels[row.argmax()] == prediction.label == line["label"]
            np.testing.assert_allclose(prediction.scores, row, atol=1e-3)
            np.testing.assert_allclose(list(line["scores"].values()), prediction.scores, atol=1e-6)


def test_all_eight_orientations_of_an_image_get_the_same_prediction(photo_bundle: Bundle, shared: Path) -> None:
    predictor = library.load(photo_bundle, variant="onnx-fp32")
    predictions = [predictor.predict(shared / f"data/exif-orientation/Landscape_{index}.jpg") for index in range(1, 9)]
    assert len({prediction.label for prediction in predictions}) == 1
    scores = np.array([prediction.scores for prediction in predictions])
    assert np.abs(scores - scores[0]).max() < 0.25  # the eight files were scaled and compressed separately


LIMITED = """
import json, resource, sys, time
import edgetl
predictor = edgetl.load(sys.argv[1], variant="onnx-fp32", threads=1)
predictor.predict(sys.argv[2])
def peak():
    with open("/proc/self/status") as status:
        return int(next(line for line in status if line.startswith("VmHWM")).split()[1]) * 1024
def reset():
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
for path in sys.stdin.read().splitlines():
    reset()
    start, text = time.process_time(), ""
    try:
        text = predictor.predict(path).label
    except edgetl.EdgetlError as error:
        text = f"{type(error).__name__}: {error}"
    print(json.dumps([path, text, time.process_time() - start, peak()]), flush=True)
"""


def test_odd_images_give_a_prediction_or_an_error_within_two_cpu_seconds_and_200_mb(photo_bundle: Bundle, shared: Path) -> None:
    folder = shared / "data/odd-images"
    with open(folder / "index.csv") as file:
        names = [row["file"] for row in csv.DictReader(file)]
    assert len(names) == 238
    good = sorted((shared / "data/trashnet").glob("*/*.jpg"))[0]

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (3_000_000_000, 3_000_000_000))

    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(photo_bundle.path), str(good)],
        input="\n".join(str(folder / name) for name in names),
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=limit,
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == len(names)
    for path, text, cpu_seconds, peak in rows:
        assert text in photo_bundle.manifest.labels or (text.startswith("ImageError: ") and Path(path).name in text), (path, text)
        assert cpu_seconds < 2 and peak < 200e6, (path, cpu_seconds, peak)
    assert sum(text in photo_bundle.manifest.labels for _, text, _, _ in rows) > 100


def test_evaluating_the_training_folder_scores_its_test_split_only(photo_run: Run, photo_bundle: Bundle, shared: Path) -> None:
    done = edgetl("evaluate", photo_bundle.path, shared / "data/trashnet", "--variant", "onnx-fp32", "--json")
    report = json.loads(done.stdout)
    assert photo_run.record.test is not None
    assert report["result"]["accuracy"]["n"] == photo_run.record.images["test"]
    assert abs(report["result"]["accuracy"]["value"] - photo_run.record.test.accuracy.value) < 1e-9
    assert report["left_out"] == photo_run.record.images["train"] + photo_run.record.images["val"]
