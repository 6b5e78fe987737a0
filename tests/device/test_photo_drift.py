"""Drift detection on photographs: the reference of a real export, and changed, dark, blurred and color-cast images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from edgetl.core.bundle import Bundle
from edgetl.core.images.decode import load_image
from edgetl.core.output_decoding import decode
from edgetl.core.reference import image_statistics
from edgetl.core.results import Prediction
from edgetl.device.monitoring.drift import DriftDetector, DriftEvent
from edgetl.runtime.predictor import Predictor, load
from edgetl.train.artifacts.run import Run

pytestmark = [pytest.mark.shared, pytest.mark.slow]
Change = Callable[[Image.Image], Image.Image]


class Observed(NamedTuple):
    """Predictions and image statistics of images."""

    predictions: list[Prediction]
    statistics: NDArray[np.float32]


def gains(red: float, green: float, blue: float) -> Change:
    """Return a function that multiplies the channels."""
    return lambda image: Image.merge(
        "RGB",
        [band.point(lambda value, gain=gain: min(255, value * gain)) for band, gain in zip(image.split(), (red, green, blue), strict=True)],
    )


CHANGES: dict[str, Change] = {
    "darkened": gains(0.6, 0.6, 0.6),
    "blurred": lambda image: image.filter(ImageFilter.GaussianBlur(1.5)),
    "color cast": gains(1.0, 0.9, 0.7),
}


@pytest.fixture(scope="module")
def predictor(photo_bundle: Bundle) -> Predictor:
    return load(photo_bundle, variant="openvino-int8", threads=1)


def observe(predictor: Predictor, paths: Sequence[Path], change: Change = lambda image: image) -> Observed:
    """Predict images after a change."""
    batches = [predictor.prepare(change(load_image(path))) for path in paths]
    outputs = np.concatenate([predictor.logits(batch) for batch in batches])
    statistics = np.concatenate([image_statistics(batch, predictor.spec) for batch in batches])
    return Observed(decode(predictor.decoding, outputs), statistics)


def events_of(bundle: Bundle, images: Observed, order: Sequence[int]) -> list[tuple[int, DriftEvent]]:
    """Return the events of a stream of images, each with the number of images before it."""
    assert bundle.manifest.reference is not None
    detector = DriftDetector(bundle.manifest.reference, bundle.manifest.decoding)
    added = (detector.add(images.predictions[index], images.statistics[index]) for index in order)
    return [(number, event) for number, event in enumerate(added, 1) if event is not None]


@pytest.fixture(scope="module")
def validation(photo_run: Run, predictor: Predictor) -> Observed:
    """Validation images as the int8 variant predicts them. The reference has the predictions of the trained model."""
    return observe(predictor, [sample.path for sample in photo_run.samples("val")])


def test_the_reference_describes_all_validation_images(photo_bundle: Bundle, photo_run: Run) -> None:
    reference = photo_bundle.manifest.reference
    assert reference is not None and reference.n == len(photo_run.samples("val"))
    assert len(reference.model_dump_json()) < 10_000


def test_validation_images_raise_no_event_in_twenty_windows(photo_bundle: Bundle, validation: Observed) -> None:
    order = np.random.default_rng(0).integers(0, len(validation.predictions), 2000)
    assert events_of(photo_bundle, validation, order.tolist()) == []


@pytest.mark.parametrize("name", CHANGES)
def test_changed_photographs_raise_an_event_within_100_images(
    name: str, photo_bundle: Bundle, photo_run: Run, predictor: Predictor
) -> None:
    paths = [sample.path for sample in photo_run.samples("test")]
    chosen = np.random.default_rng(1).permutation(len(paths))[:100]
    images = observe(predictor, [paths[index] for index in chosen], CHANGES[name])
    (number, event), *_ = events_of(photo_bundle, images, range(100))
    assert number <= 100 and event.kind == "drift" and event.changes[0].name.startswith("image:")


def test_images_of_another_subject_raise_an_event_within_100_images(photo_bundle: Bundle, shared: Path, predictor: Predictor) -> None:
    paths = sorted((shared / "data/sign-digits").glob("[0-9]/*"))
    chosen = np.random.default_rng(2).permutation(len(paths))[:100]
    images = observe(predictor, [paths[index] for index in chosen])
    (number, event), *_ = events_of(photo_bundle, images, range(100))
    assert number <= 100 and any(change.name.startswith(("score:", "classes")) for change in event.changes)


def test_a_change_in_operation_is_detected_within_100_images(
    photo_bundle: Bundle, photo_run: Run, predictor: Predictor, validation: Observed
) -> None:
    paths = [sample.path for sample in photo_run.samples("test")][::4]
    dark = observe(predictor, paths, CHANGES["darkened"])
    stream = Observed(validation.predictions[:300] + dark.predictions, np.concatenate((validation.statistics[:300], dark.statistics)))
    order = [*np.random.default_rng(3).permutation(300).tolist(), *range(300, 300 + len(paths))]
    ((number, _),) = events_of(photo_bundle, stream, order)
    assert 300 < number <= 400
