"""Anomaly detection: layouts, synthetic defects, distances, threshold, runs and bundles."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from edgetl.core.bundle import Bundle, open_bundle
from edgetl.core.tasks import ANOMALY_LABELS
from edgetl.data.anomalies.defects import confetti, cut_paste, with_defects
from edgetl.data.anomalies.layout import find_normal, split_normal
from edgetl.data.folder import ImageFolder, SyntheticDefect, scan_anomalies
from edgetl.data.listing import Folder
from edgetl.data.loading import PixelSet
from edgetl.data.scan_notes import Notes
from edgetl.data.selection import Selection
from edgetl.errors import ConfigError, DataError
from edgetl.export import ExportConfig, export_bundle
from edgetl.export.context import open_files
from edgetl.export.gate.agreement import GateSet, evaluate_file, outputs_of
from edgetl.export.gate.anomalies import MIN_CORRELATION, ConfettiSet, choose_confetti
from edgetl.runtime.evaluation import evaluate_bundle
from edgetl.runtime.predictor import load
from edgetl.runtime.verify import verify
from edgetl.train.artifacts.loading.load import load_backbone
from edgetl.train.artifacts.run import Run, open_run
from edgetl.train.config.options import TrainConfig
from edgetl.train.config.resolve import check_conflicts
from edgetl.train.heads.distances.fit import Moments, choose_threshold
from edgetl.train.heads.distances.modules import Gaussian
from edgetl.train.workflows.estimate import estimate
from edgetl.train.workflows.train import train
from tests.built import built
from tests.command import edgetl

OPTIONS = {"task": "anomaly", "input_size": (64, 64), "val": 0.25, "false_alarms": 0.1}


def write_textures(root: Path) -> Path:
    """Write 40 normal textures, and textures for the test of which half have a dark spot, in the layout of MVTec AD."""
    rng = np.random.default_rng(0)
    for part, count in (("train/good", 40), ("test/good", 10), ("test/spot", 10)):
        (root / part).mkdir(parents=True)
        for index in range(count):
            pixels = rng.normal(150, 12, (64, 64, 3)) + 20 * np.sin(np.arange(64) / 3 + rng.uniform(0, 6))[:, None, None]
            if part == "test/spot":
                top, left = rng.integers(8, 44, 2)
                pixels[top : top + 14, left : left + 14] = 30
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / part / f"{index:02d}.png")
    return root


@pytest.fixture(scope="module")
def textures() -> Path:
    return built("textures", write_textures)


@pytest.fixture(scope="module")
def detector(textures: Path) -> Run:
    config = TrainConfig.from_options(**OPTIONS)
    return open_run(built("runs/anomaly", lambda out: train(textures, config, out)))


@pytest.fixture(scope="module")
def detector_bundle(detector: Run) -> Bundle:
    config = ExportConfig(formats=("onnx",), precisions=("fp32",))
    return open_bundle(built("bundles/anomaly", lambda out: export_bundle(detector.path, config, out)))


def scanned(root: Path) -> ImageFolder:
    return scan_anomalies(root, find_normal)


def write_images(folder: Path, count: int, seed: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        pixels = np.random.default_rng([seed, index]).integers(0, 255, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{seed}-{index}.png")


def test_mvtec_layout_gives_normal_images_and_anomalies_for_the_test(textures: Path) -> None:
    splits = split_normal(scanned(textures), seed=0, val=0.25, test=0.2, together=True)
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [30, 10, 20]
    assert sum(sample.label for sample in splits.test) == 10
    assert {sample.label for sample in (*splits.train, *splits.val)} == {0}


@pytest.mark.parametrize("inside", ["", "photos"])
def test_one_folder_of_images_is_read_as_normal(tmp_path: Path, inside: str) -> None:
    write_images(tmp_path / "data" / inside, 4)
    found = scanned(tmp_path / "data")
    assert [sample.label for sample in found.samples] == [0] * 4
    assert [note.describe() for note in found.notes] == [f"1 folder read as normal images, because it is the only one: {inside or 'data'}."]


def test_folders_beside_good_are_anomalies_of_the_test(tmp_path: Path) -> None:
    write_images(tmp_path / "good", 20)
    write_images(tmp_path / "scratch", 3, seed=1)
    write_images(tmp_path / "ground_truth" / "scratch", 3, seed=2)
    splits = split_normal(scanned(tmp_path), seed=0, val=0.2, test=0.2, together=True)
    assert [len(splits.train), len(splits.val), len(splits.test)] == [12, 4, 7]
    assert sum(sample.label for sample in splits.test) == 3


def test_class_folders_without_normal_images_are_rejected(tmp_path: Path) -> None:
    write_images(tmp_path / "cat", 2)
    write_images(tmp_path / "dog", 2, seed=1)
    with pytest.raises(
        DataError, match=r"the folders cat/, dog/, and none of them is named good/, normal/ or ok/\. Rename .* to good/\. .*such as .*cat\."
    ):
        scanned(tmp_path)


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (("train", "test"), r"test has 2 images in no folder.*into .*test/good, and anomalies into .*test/DEFECT"),
        (("train/good", "test", "test/good"), r"test has 2 images beside good/"),
        (("good", "."), r"data has 2 images beside good/"),
        (("train/good", "train"), r"train has 2 images beside good/"),
        (("good", "test/good", "test/hole"), r"test/ looks like a split, and good/ like a class"),
        (("bottle/train/good", "bottle/test/hole"), r"bottle is read as one class, and has the folders test/, train/"),
        (("good/train", "good/test"), r"good is read as one class, and has the folders test/, train/"),
        (("photos/good", "photos/hole"), r"photos is read as one class, and has the folders good/, hole/"),
        (("good/", "hole"), r"good has no images that are read"),
        (("train/good", "test/good/", "test/hole"), r"test/good has no images that are read"),
    ],
)
def test_images_that_may_be_normal_or_not_are_an_error(tmp_path: Path, folders: tuple[str, ...], message: str) -> None:
    root = tmp_path / "data"
    for seed, name in enumerate(folders):
        write_images(root / name, 0 if name.endswith("/") else 2, seed)
    with pytest.raises(DataError, match=message):
        scanned(root)


def test_folder_without_normal_images_is_an_error_with_the_files_that_are_left_out(tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    with pytest.raises(DataError, match=r"data has no images\. Put normal images .* into it\.$"):
        scanned(root)
    write_images(root / "ground_truth", 2)
    with pytest.raises(
        DataError, match=r"data has no images\. .* 2 images left out: in a folder of segmentation masks: ground_truth/ \(2\)\."
    ):
        scanned(root)
    write_images(root / "good", 3)
    write_images(root / "hole", 2, seed=1)
    with pytest.raises(DataError, match=r"good has no images that are read\. .* 3 files left out by --exclude: \*\.png \(3\)\."):
        scan_anomalies(root, find_normal, selection=Selection(exclude=("good/*",)))


def test_folder_that_cannot_be_listed_is_an_error(tmp_path: Path) -> None:
    images = Folder(tmp_path / "good", images=[tmp_path / "good/0.png"])
    closed = Folder(tmp_path / "hole", problem="Permission denied")
    with pytest.raises(DataError, match=r"hole cannot be listed: Permission denied\. Its images would be missing"):
        find_normal(Folder(tmp_path, folders=[images, closed]), Notes())


def test_unusual_places_of_images_are_noted(tmp_path: Path) -> None:
    places = (".", "training/photos", "training/hole", "val/hole", "test/photos", "test/hole", "test/ground_truth/hole", "more")
    root = tmp_path / "data"
    for seed, name in enumerate(places):
        write_images(root / name, 2, seed)
    with pytest.raises(DataError, match=r"the folders hole/, photos/, and none of them"):
        scanned(root)
    shutil.rmtree(root / "training/hole")
    found = scanned(root)
    notes = {note.reason: note.describe() for note in found.notes}
    assert notes.keys() == {"ground-truth", "sibling", "loose", "splits", "normal", "anomaly"}
    assert notes["normal"].startswith("1 folder read as normal images, because it is the only one: training/photos")
    assert notes["anomaly"].startswith("2 images of the training or validation split used for the test")
    parts = {sample.path.relative_to(root).parent.as_posix(): (sample.label, sample.part) for sample in found.samples}
    assert parts == {"training/photos": (0, "train"), "val/hole": (1, "test"), "test/photos": (0, "test"), "test/hole": (1, "test")}


def test_ready_made_training_images_are_divided_if_the_test_has_no_normal_image(tmp_path: Path) -> None:
    write_images(tmp_path / "train" / "good", 20)
    write_images(tmp_path / "test" / "hole", 2, seed=1)
    splits = split_normal(scanned(tmp_path), seed=0, val=0.2, test=0.2, together=True)
    assert [sum(sample.label == label for sample in splits.test) for label in (0, 1)] == [4, 2]


def test_cut_paste_changes_a_part_of_the_image_and_depends_on_the_seed_only() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 60, 3), np.uint8))
    changed, same, other = (np.asarray(cut_paste(image, seed)) for seed in (1, 1, 2))
    different = (changed != np.asarray(image)).any(axis=2).mean()
    assert np.array_equal(changed, same)
    assert not np.array_equal(changed, other)
    assert 0.01 < different < 0.16


def test_confetti_changes_a_part_of_the_image_and_differs_between_copies() -> None:
    image = np.random.default_rng(0).integers(0, 255, (50, 60, 3), np.uint8)
    changed, same, other = (confetti(image, seed, count=2, sides=(0.1, 0.2)) for seed in (1, 1, 2))
    different = (changed != image).any(axis=2).mean()
    assert np.array_equal(changed, same)
    assert not np.array_equal(changed, other)
    assert 0.005 < different < 0.07


def test_synthetic_defects_replace_missing_anomalies(textures: Path) -> None:
    samples = scanned(textures).samples
    normal = [sample for sample in samples if sample.label == 0]
    assert [sample.synthetic for sample in with_defects(normal)] == [None] * len(normal) + [SyntheticDefect("cut-paste")] * len(normal)
    assert with_defects(samples) == list(samples)


def test_distance_equals_the_mahalanobis_distance() -> None:
    rng = np.random.default_rng(0)
    rows = (rng.normal(size=(200, 5)) @ rng.normal(size=(5, 5)) + 3).astype(np.float32)
    moments, gaussian = Moments(5), Gaussian(5, 5)
    for part in np.split(rows, 4):
        moments.add(part)
    moments.fit(gaussian, floor=0.01)
    centered, covariance = rows - rows.mean(axis=0), np.cov(rows.T, bias=True)
    inverse = np.linalg.inv(covariance + 0.01 * np.trace(covariance) / 5 * np.eye(5))
    expected = np.sqrt(np.einsum("nd,de,ne->n", centered, inverse, centered))
    assert gaussian(torch.from_numpy(rows))[:, 0].numpy() == pytest.approx(expected, rel=1e-3)


def test_threshold_keeps_the_rate_of_false_alarms() -> None:
    assert choose_threshold(np.arange(99.0), 0.01) == pytest.approx((98.0, 0.01))
    assert choose_threshold(np.arange(99.0), 0.1) == pytest.approx((89.0, 0.1))


def test_threshold_of_too_few_images_is_their_highest_score() -> None:
    assert choose_threshold(np.arange(19.0), 0.01) == pytest.approx((18.0, 0.05))


def test_run_separates_defects_from_normal_images(detector: Run) -> None:
    record = detector.record
    assert record.labels == ANOMALY_LABELS
    assert record.test is not None and record.test.anomaly is not None
    assert record.test.score.value >= 0.9
    assert record.test.anomaly.synthetic == 0
    assert record.validation.anomaly is not None and record.validation.anomaly.synthetic == 10
    assert record.expected_false_alarms == pytest.approx(1 / 11)


def test_run_is_a_backbone_for_other_tasks(detector: Run) -> None:
    config = TrainConfig.from_options(backbone=str(detector.path), input_size=(64, 64))
    assert load_backbone(config.backbone, 3).head.out_features == 3


def test_gate_rejects_noise_and_clipped_scores_by_their_correlation(detector: Run, detector_bundle: Bundle) -> None:
    normal = detector.samples("val")
    images, changed = (PixelSet(samples, detector.record.preprocess) for samples in (with_defects(normal), choose_confetti(normal)))
    logits = open_files("onnx", [detector_bundle.path / "onnx-fp32/1/model.onnx"])
    set_of_confetti = ConfettiSet(changed, outputs_of(logits, changed))
    gate = GateSet(images, outputs_of(logits, images), detector.record.decoding, confetti=lambda: set_of_confetti)
    limits = ExportConfig(max_drop=1.0, min_agreement=0.0)

    def reason_of(change: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> str:
        return evaluate_file(lambda batch: change(logits(batch)), gate, limits, exact=False).reason

    highest = gate.trained[: len(normal)].max()
    random = np.random.default_rng(0)
    assert reason_of(lambda outputs: outputs + np.float32(0.01)) == ""
    assert "on normal images with synthetic confetti noise (limit 0.957" in reason_of(lambda outputs: np.minimum(outputs, highest))
    assert "of the anomaly scores" in reason_of(
        lambda outputs: outputs + random.normal(size=(len(outputs), 1)).astype(np.float32) * highest
    )


def test_correlation_limit_is_a_drop_of_the_auroc_by_one_hundredth() -> None:
    variance = 1 / MIN_CORRELATION**2 - 1
    separation = math.sqrt(2) * NormalDist().inv_cdf(0.9)
    assert NormalDist().cdf(separation / math.sqrt(2 + 2 * variance)) == pytest.approx(0.89, abs=2e-4)


@pytest.mark.slow
def test_every_written_variant_keeps_the_auroc(detector: Run, tmp_path: Path) -> None:
    assert detector.record.test is not None
    config = ExportConfig(max_drop=0.05, min_agreement=0.8, calibration_images=20, allow_missing=True)
    bundle = export_bundle(detector.path, config, tmp_path / "bundle")
    variants = bundle.manifest.variants
    # int8 of OpenVINO changes the outputs of the embedded backbone too much. The gate rejects it, and fp16 replaces it.
    assert {variant.name for variant in variants} == {"onnx-fp32", "onnx-int8", "openvino-fp32", "openvino-fp16"}
    assert [item.name for item in bundle.manifest.rejected] == ["openvino-int8"]
    for variant in variants:
        assert variant.test is not None
        assert variant.test.value == pytest.approx(detector.record.test.score.value, abs=0.01)
        assert variant.name.endswith("fp32") or (variant.agreement.score_correlation or 0) >= MIN_CORRELATION
    assert len(verify(bundle).checked) == len(variants)


def test_prediction_has_a_heat_map_with_the_defect(textures: Path, detector_bundle: Bundle) -> None:
    path = textures / "test/spot/00.png"
    prediction = load(detector_bundle, variant="onnx-fp32").predict(path)
    rows = np.array(prediction.heat_map)
    assert prediction.label == "anomaly"
    assert prediction.score == prediction.scores[1] >= 0.5
    assert rows.shape == detector_bundle.manifest.decision_rule.heat_map
    dark = np.asarray(Image.open(path).convert("L").resize(rows.shape[::-1], Image.Resampling.BOX))
    assert (
        np.abs(
            np.subtract(*map(np.array, (np.unravel_index(rows.argmax(), rows.shape), np.unravel_index(dark.argmin(), dark.shape))))
        ).max()
        <= 1
    )


def test_evaluation_reports_auroc_false_alarms_and_detection(textures: Path, detector_bundle: Bundle) -> None:
    found = evaluate_bundle(detector_bundle, textures / "test").result.anomaly
    assert found is not None and found.auroc is not None
    assert (found.auroc.n, found.false_alarms.n, found.detected.n) == (20, 10, 10)


def test_predict_writes_heat_maps(textures: Path, detector_bundle: Bundle, tmp_path: Path) -> None:
    arguments = ("predict", detector_bundle.path, textures / "test", "--heat-maps", tmp_path / "maps", "--json")
    done = edgetl(*arguments)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["predictions"]) == len([*(tmp_path / "maps").glob("*.png")]) == 20


def test_options_without_effect_are_rejected() -> None:
    config = TrainConfig.from_options(**OPTIONS, strategy="partial", epochs=3, head="knn")
    with pytest.raises(ConfigError, match=r"so --epochs, --head, --strategy partial cannot be combined with it\. Remove them"):
        check_conflicts(config)
    with pytest.raises(ConfigError, match=r"--false-alarms needs --task anomaly"):
        check_conflicts(TrainConfig.from_options(false_alarms=0.1))
    with pytest.raises(ConfigError, match=r"needs pretrained weights"):
        check_conflicts(TrainConfig.from_options(task="anomaly", pretrained=False))


def test_too_few_normal_images_are_rejected(tmp_path: Path) -> None:
    write_images(tmp_path / "data", 8)
    with pytest.raises(
        DataError,
        match=r"has 6 different normal training images and 1 different normal validation images. Anomaly detection needs at least 10",
    ):
        train(tmp_path / "data", TrainConfig.from_options(task="anomaly"), tmp_path / "run")


def test_equal_images_count_once_and_anomalies_that_are_normal_images_are_reported(textures: Path, tmp_path: Path) -> None:
    files = sorted((textures / "train/good").iterdir())
    for number in range(20):
        _copy(files[0], tmp_path / f"equal/{number}.png")
        _copy(files[number], tmp_path / f"mixed/good/{number}.png")
    with pytest.raises(DataError, match=r"has 1 different normal training images and 0 different normal validation images"):
        train(tmp_path / "equal", TrainConfig.from_options(**OPTIONS), tmp_path / "run")
    for number in range(20):
        _copy(files[number], tmp_path / f"mixed/bad/{number}.png")
    run = train(tmp_path / "mixed", TrainConfig.from_options(**OPTIONS), tmp_path / "run")
    assert any("anomalies are copies of normal images, such as bad/" in alarm for alarm in run.record.alarms)


def _copy(file: Path, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(file, place)


def test_other_commands_refuse_the_task(textures: Path) -> None:
    with pytest.raises(ConfigError, match=r"--task anomaly is only for edgetl train, because it has no optimizer steps"):
        estimate(textures, TrainConfig.from_options(task="anomaly"))
