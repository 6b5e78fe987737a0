"""Exported files and runs in other libraries. ``tests/end_to_end/test_ecosystem.py`` does the same with photographs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edgetl.core.bundle import Bundle
from edgetl.core.images.decode import load_image
from edgetl.core.preprocess import to_pixels
from edgetl.runtime.predictor import load
from edgetl.train.artifacts.run import Run
from tests.ecosystem import ONNXRUNTIME, OPENVINO, PREDICT, PREPARE, TIMM, agreement, decoded, model_api, predicted_labels


@pytest.fixture(scope="module")
def photos(run: Run) -> list[Path]:
    """200 images of the digits."""
    paths = sorted(sample.path for part in ("val", "test", "train") for sample in run.samples(part))[::3][:200]
    assert len(paths) == 200
    return paths


@pytest.fixture(scope="module")
def expected(bundle: Bundle, photos: list[Path]) -> list[str]:
    """Labels that edgetl predicts."""
    return [prediction.label or "" for prediction in load(bundle, variant="onnx-fp32", threads=1).predict(photos)]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_numpy_and_an_engine_predict_like_edgetl(bundle: Bundle, photos: list[Path], expected: list[str], precision: str) -> None:
    onnx = predicted_labels(PREPARE + ONNXRUNTIME + PREDICT, bundle.path / f"onnx-{precision}/1/model.onnx", photos)
    openvino = predicted_labels(PREPARE + OPENVINO + PREDICT, bundle.path / f"openvino-{precision}/1/model.xml", photos)
    assert agreement(onnx, expected) >= 0.98 and agreement(openvino, expected) >= 0.98


def test_timm_loads_an_unchanged_run(run: Run, photos: list[Path], expected: list[str]) -> None:
    assert agreement(predicted_labels(TIMM, run.path, photos), expected) >= 0.98


@pytest.mark.parametrize("file", ["openvino-fp32/1/model.xml", "openvino-int8/1/model.xml", "onnx-fp32/1/model.onnx"])
def test_model_api_predicts_like_edgetl_on_images_of_the_input_size(
    bundle: Bundle, photos: list[Path], expected: list[str], file: str
) -> None:
    spec = bundle.manifest.preprocess
    pixels = [np.asarray(to_pixels(load_image(path), spec)) for path in photos]
    assert agreement(model_api(bundle.path / file)(pixels), expected) >= 0.98


def test_model_api_predicts_like_edgetl_on_small_square_images(bundle: Bundle, photos: list[Path], expected: list[str]) -> None:
    model = model_api(bundle.path / "openvino-fp32/1/model.xml")
    assert agreement(model(decoded(photos)), expected) >= 0.98


def test_labels_keep_their_spaces_in_the_edgetl_block() -> None:
    from edgetl.core.preprocess import PreprocessSpec
    from edgetl.core.tasks import OutputDecoding
    from edgetl.export.convert.metadata import model_info, own_info

    decoding, spec = OutputDecoding(labels=("a cat", "déjà vu")), PreprocessSpec(input_size=(32, 32))
    assert model_info(spec, decoding)["labels"] == "a_cat déjà_vu"
    assert json.loads(own_info(spec, decoding, "0")["labels"]) == ["a cat", "déjà vu"]


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (("hot dog", "hot_dog"), "hot_dog-2 hot_dog"),
        (("hot_dog", "hot dog", "hot\u00a0dog", "hot_dog-2"), "hot_dog hot_dog-3 hot_dog-4 hot_dog-2"),
        (("猫\u3000種", "Ёлка"), "猫_種 Ёлка"),
    ],
)
def test_labels_that_are_equal_without_spaces_get_a_number(labels: tuple[str, ...], words: str) -> None:
    from edgetl.core.preprocess import PreprocessSpec
    from edgetl.core.tasks import OutputDecoding
    from edgetl.export.convert.metadata import model_info, own_info

    decoding, spec = OutputDecoding(labels=labels), PreprocessSpec(input_size=(32, 32))
    assert model_info(spec, decoding)["labels"] == words
    assert json.loads(own_info(spec, decoding, "0")["labels"]) == list(labels)


def test_a_variant_folder_is_a_model_repository_of_openvino_model_server_and_triton(bundle: Bundle) -> None:
    """Both servers expect ``<name>/<version>/model.onnx``, or ``model.xml`` and ``model.bin``.

    Sources: docs.openvino.ai/canonical/ovms_docs_models_repository.html and Triton's docs/user_guide/model_repository.md. Triton derives
    the settings of ONNX and OpenVINO models (model_configuration.md), so a ``config.pbtxt`` is not needed.
    """
    for variant in bundle.manifest.variants:
        root = bundle.path / variant.name
        found = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
        assert found == (["1/model.onnx"] if variant.format == "onnx" else ["1/model.bin", "1/model.xml"])
