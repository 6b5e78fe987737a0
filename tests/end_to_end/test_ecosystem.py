"""Predictions of other libraries on 200 photographs, with a fine-tuned ImageNet MobileNetV2."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgetl.core.bundle import Bundle
from edgetl.core.images.decode import load_image
from edgetl.core.preprocess import to_pixels
from edgetl.export.to_hub import share_run
from edgetl.runtime.predictor import load
from edgetl.train.artifacts.run import Run
from tests.command import edgetl
from tests.ecosystem import ONNXRUNTIME, OPENVINO, PREDICT, PREPARE, TIMM, TRANSFORMERS, agreement, decoded, model_api, predicted_labels

pytestmark = [pytest.mark.shared, pytest.mark.slow]


@pytest.fixture(scope="module")
def photos(shared: Path) -> list[Path]:
    """200 photographs of trashnet, of all classes."""
    paths = sorted((shared / "data/trashnet").glob("*/*.jpg"))[::12][:200]
    assert len(paths) == 200
    return paths


@pytest.fixture(scope="module")
def expected(photo_bundle: Bundle, photos: list[Path]) -> list[str]:
    """Labels that edgetl predicts."""
    return [prediction.label or "" for prediction in load(photo_bundle, variant="onnx-fp32").predict(photos)]


def test_numpy_and_an_engine_predict_like_edgetl(photo_bundle: Bundle, photos: list[Path], expected: list[str]) -> None:
    onnx = predicted_labels(PREPARE + ONNXRUNTIME + PREDICT, photo_bundle.path / "onnx-fp32/1/model.onnx", photos)
    openvino = predicted_labels(PREPARE + OPENVINO + PREDICT, photo_bundle.path / "openvino-fp32/1/model.xml", photos)
    assert agreement(onnx, expected) >= 0.98 and agreement(openvino, expected) >= 0.98


def test_timm_and_transformers_predict_like_edgetl(photo_run: Run, photos: list[Path], expected: list[str], tmp_path: Path) -> None:
    share_run(photo_run.path, tmp_path / "hub")
    assert agreement(predicted_labels(TIMM, photo_run.path, photos), expected) >= 0.98
    assert agreement(predicted_labels(TIMM, tmp_path / "hub", photos), expected) >= 0.98
    assert agreement(predicted_labels(TRANSFORMERS, tmp_path / "hub", photos), expected) >= 0.98


@pytest.mark.parametrize("file", ["openvino-fp32/1/model.xml", "onnx-fp32/1/model.onnx"])
def test_model_api_predicts_like_edgetl_on_images_resized_by_edgetl(
    photo_bundle: Bundle, photos: list[Path], expected: list[str], file: str
) -> None:
    spec = photo_bundle.manifest.preprocess
    pixels = [np.asarray(to_pixels(load_image(path), spec)) for path in photos]
    assert agreement(model_api(photo_bundle.path / file)(pixels), expected) >= 0.98


def test_the_file_selects_the_closest_resize_of_model_api(photo_bundle: Bundle, photos: list[Path], expected: list[str]) -> None:
    """Model API crops the largest centered square and resizes it without antialiasing.

    The agreement is 0.93. Its other resize types reach 0.84 to 0.87.
    """
    file, images = photo_bundle.path / "openvino-fp32/1/model.xml", decoded(photos)
    written = agreement(model_api(file)(images), expected)
    assert written >= 0.9
    assert written > agreement(model_api(file, resize_type="standard")(images), expected)


def test_model_api_predicts_like_edgetl_with_crop_pct_1(shared: Path, photos: list[Path], tmp_path: Path) -> None:
    """With ``--crop-pct 1.0`` both use the same square. These photographs are hardly larger than the input and need no antialiasing."""
    weights = (
        "--backbone",
        f"local-dir:{shared}/weights/mobilenetv2_100.imagenet",
        "--crop-pct",
        1.0,
        "--strategy",
        "probe",
        "--augmented-views",
        1,
    )
    done = edgetl("train", shared / "data/trashnet", *weights, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    limits = ("--format", "openvino", "--precision", "fp32")
    done = edgetl("export", tmp_path / "run", "--out", tmp_path / "bundle", *limits)
    assert done.returncode == 0, done.stderr
    expected = [prediction.label or "" for prediction in load(tmp_path / "bundle").predict(photos)]
    model = model_api(tmp_path / "bundle/openvino-fp32/1/model.xml")
    assert agreement(model(decoded(photos)), expected) >= 0.98
