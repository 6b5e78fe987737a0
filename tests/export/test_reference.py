"""Monitoring reference of an export: the trained model's predictions and image statistics of the validation images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgetl.core.bundle import Bundle
from edgetl.core.progress import silent
from edgetl.core.reference import STATISTICS, image_statistics
from edgetl.data.loading import pixel_batches
from edgetl.export.config import ExportConfig
from edgetl.export.context import prepare
from edgetl.runtime.predictor import load
from edgetl.train.artifacts.run import Run


def test_the_reference_counts_the_predictions_of_the_validation_images(bundle: Bundle, run: Run) -> None:
    reference = bundle.manifest.reference
    assert reference is not None and reference.n == bundle.manifest.trained.n
    predictions = load(bundle, variant="onnx-fp32", threads=1).predict([sample.path for sample in run.samples("val")])
    found = [prediction.label for prediction in predictions]
    assert reference.classes == {label: found.count(label) for label in run.record.labels}
    median = np.quantile([prediction.scores[3] for prediction in predictions], 0.5, method="inverted_cdf")
    assert reference.scores["3"][20] == pytest.approx(median, abs=0.011)


def test_the_reference_has_statistics_of_the_preprocessed_pixels(bundle: Bundle, run: Run) -> None:
    reference, spec = bundle.manifest.reference, bundle.manifest.preprocess
    assert reference is not None and tuple(reference.images) == STATISTICS
    pixels = np.concatenate(list(pixel_batches(run.samples("val"), spec)))
    found = image_statistics(pixels, spec)
    for index, name in enumerate(STATISTICS):
        assert reference.images[name][0] == pytest.approx(found[:, index].min(), abs=0.001)
        assert reference.images[name][40] == pytest.approx(found[:, index].max(), abs=0.001)


def test_the_reference_keeps_the_class_frequencies_if_the_gate_uses_fewer_images(run: Run, tmp_path: Path) -> None:
    context = prepare(run, ExportConfig(formats=("onnx",), precisions=("fp32",), gate_images=60), tmp_path, silent)
    context.write_source()
    # The order of the content hashes is random with respect to the classes.
    expected = sorted(run.samples("val"), key=lambda sample: sample.content)[:60]
    assert list(context.monitored.samples) == expected
    assert context.reference is not None and context.reference.n == 60


def test_few_validation_images_give_no_reference(run: Run, tmp_path: Path) -> None:
    context = prepare(run, ExportConfig(formats=("onnx",), precisions=("fp32",), gate_images=8), tmp_path, silent)
    context.write_source()
    assert context.reference is None
