"""Inputs of a predictor: every form of an image, iterables of images, errors for other inputs. Copies and pickles of a predictor."""

from __future__ import annotations

import copy
import io
import multiprocessing
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import edgetl
from edgetl.core.bundle import Bundle
from edgetl.core.images.intensity import Intensity
from edgetl.core.preprocess import Batch, PreprocessSpec
from edgetl.errors import BundleError, ImageError
from edgetl.runtime.predictor import MAX_BATCH

IMAGE: NDArray[np.uint8] = np.full((16, 16, 3), 200, np.uint8)


class Brightness:
    """Engine with the mean input as its second logit. It records the sizes of its batches."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def run(self, batch: Batch, /) -> NDArray[np.float32]:
        self.sizes.append(len(batch))
        mean = batch.reshape(len(batch), -1).mean(axis=1).astype(np.float32)
        return np.stack([np.zeros_like(mean), mean], axis=1)


@pytest.fixture
def engine() -> Brightness:
    return Brightness()


@pytest.fixture
def predictor(engine: Brightness) -> edgetl.Predictor:
    return edgetl.Predictor(engine, ["dark", "light"], PreprocessSpec(input_size=(16, 16), mean=(0.5,) * 3, std=(0.5,) * 3))


@pytest.fixture
def encoded() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(IMAGE).save(buffer, "PNG")
    return buffer.getvalue()


def test_every_form_of_one_image_gives_the_same_prediction(predictor: edgetl.Predictor, encoded: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded)
    forms: list[Any] = [tmp_path / "a.png", str(tmp_path / "a.png"), encoded, bytearray(encoded), memoryview(encoded), io.BytesIO(encoded)]
    with open(tmp_path / "a.png", "rb") as file:
        found = [predictor.predict(form) for form in [*forms, file, Image.fromarray(IMAGE), IMAGE]]
    assert found == [found[0]] * 9 and found[0].label == "light"


def test_iterables_give_a_list_in_their_order(predictor: edgetl.Predictor) -> None:
    arrays = [np.full((16, 16, 3), value, np.uint8) for value in (0, 255, 10)]
    expected = [predictor.predict(array) for array in arrays]
    for several in (
        arrays,
        tuple(arrays),
        iter(arrays),
        (array for array in arrays),
        dict(enumerate(arrays)).values(),
        list(np.stack(arrays)),
    ):
        assert predictor.predict(several) == expected
    assert predictor.predict(iter([])) == []


def test_a_generator_is_read_in_batches(predictor: edgetl.Predictor, engine: Brightness) -> None:
    ahead: list[int] = []

    def images() -> Iterator[NDArray[np.uint8]]:
        for _ in range(2 * MAX_BATCH + 3):
            ahead.append(len(ahead) - sum(engine.sizes))
            yield IMAGE

    assert len(predictor.predict(images())) == 2 * MAX_BATCH + 3
    assert engine.sizes == [MAX_BATCH, MAX_BATCH, 3] and max(ahead) < MAX_BATCH


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (None, r"cannot read an image from a NoneType\. Give a path, bytes, a binary file"),
        ({"a": IMAGE}, "cannot read an image from a dict"),
        ({"a.png"}, "cannot read an image from a set"),
        ([IMAGE, 7], "cannot read an image from a int"),
        ("no-such.png", r"no-such\.png: No such file"),
        (b"", "image of 0 bytes is not a JPEG"),
        (io.StringIO("text"), r"returns str, not bytes\. Open it in binary mode: open\(path, 'rb'\)"),
        (io.BytesIO(b""), "the open file has 0 bytes"),
        (np.zeros((5, 16, 16, 3), np.uint8), r"shape \[5, 16, 16, 3\] is not an image.*For several images give a list"),
        (np.zeros((16, 16, 3), np.float32), "an array of float32 is ambiguous"),
    ],
)
def test_other_inputs_are_an_error_that_lists_the_supported_types(predictor: edgetl.Predictor, source: Any, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        predictor.predict(source)


def test_a_closed_file_is_an_image_error(predictor: edgetl.Predictor, tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    with open(tmp_path / "a.png", "rb") as file:
        pass
    with pytest.raises(ImageError, match="cannot be read: read of closed file"):
        predictor.predict(file)


def test_images_of_12_bits_use_the_intensity_rule_of_the_model(engine: Brightness) -> None:
    spec = PreprocessSpec(input_size=(16, 16), mean=(0.5,) * 3, std=(0.5,) * 3, intensity=Intensity(high=4095))
    image = np.full((16, 16), 4000, np.uint16)
    assert edgetl.Predictor(engine, ["dark", "light"], spec).predict(image).label == "light"
    assert edgetl.Predictor(engine, ["dark", "light"], spec.model_copy(update={"intensity": Intensity()})).predict(image).label == "dark"


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_predictor_with_a_custom_engine_cannot_be_copied(predictor: edgetl.Predictor, duplicate: Any) -> None:
    with pytest.raises(TypeError, match=r"Load it from a bundle: edgetl\.load\(PATH\)"):
        duplicate(predictor)


def test_a_loaded_predictor_can_be_copied_and_used_in_another_process(bundle: Bundle) -> None:
    predictor = edgetl.load(bundle.path, variant="onnx-fp32", threads=1)
    expected = predictor.predict(IMAGE)
    again = pickle.loads(pickle.dumps(predictor))
    assert again.variant == predictor.variant
    assert [item.predict(IMAGE) for item in (again, copy.deepcopy(predictor))] == [expected, expected]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(predictor.predict, [IMAGE]) == [expected]


def test_a_copy_is_an_error_after_the_bundle_has_changed(bundle: Bundle) -> None:
    load_again, (*source, variant, gallery) = edgetl.load(bundle.path, variant="onnx-fp32").__reduce__()
    with pytest.raises(BundleError, match="has changed since the predictor was copied"):
        load_again(*source, variant.model_copy(update={"median_ms": 1e9}), gallery)
