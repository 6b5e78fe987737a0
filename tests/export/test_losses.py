"""Degradation of files of reduced precision: intervals of the accuracy drop, single classes, collapsed predictions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from edgetl.core.bundle import Bundle
from edgetl.core.metrics import evaluate, paired_drop
from edgetl.core.preprocess import PreprocessSpec
from edgetl.core.results import AccuracyDrop
from edgetl.core.tasks import OutputDecoding
from edgetl.data.folder import Sample
from edgetl.data.loading import PixelSet
from edgetl.export.config import ExportConfig
from edgetl.export.gate import agreement
from edgetl.export.gate.agreement import GateResult, GateSet, evaluate_file
from edgetl.export.gate.degradation import prediction_entropy, worst_class

DECODING = OutputDecoding(labels=("a", "b", "c"))


def _rows(predictions: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return confident logits ``[n, 3]`` for the given predictions."""
    return (6 * np.eye(3)[predictions]).astype(np.float32)


def _exact(n: int, lost: int, gained: int) -> AccuracyDrop:
    before = np.arange(n) >= gained
    after = np.ones(n, np.bool_)
    after[n - lost :] = False
    return paired_drop(before, after)


def test_the_interval_contains_the_drop_and_narrows_with_more_images() -> None:
    few, many = _exact(100, 5, 2), _exact(10_000, 500, 200)
    assert few.value == pytest.approx(0.03) and many.value == pytest.approx(0.03)
    assert few.low < 0.03 < few.bound < few.high and many.high - many.low < (few.high - few.low) / 5
    # Computed by hand with 5.5 and 2.5 of 102 images: center 3/102, spread sqrt(8 - 9/102)/102.
    assert few.high == pytest.approx(3 / 102 + 1.959964 * (8 - 9 / 102) ** 0.5 / 102)


def test_equal_predictions_on_few_images_leave_a_wide_interval() -> None:
    same = _exact(40, 0, 0)
    assert same.value == 0.0 and same.low < 0 < same.high and same.high > 0.03
    assert _exact(1000, 0, 0).high < 0.003


def test_the_interval_covers_the_true_drop_in_95_percent_of_samples() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(2000):
        draw = rng.random(150)
        before = draw < 0.9  # 90 % correct before; 4 points of these are lost and 1 point is gained: a drop of 3 points
        after = np.where(draw < 0.04, False, np.where(draw > 0.99, True, before))
        found = paired_drop(before, after)
        covered += found.low <= 0.03 <= found.high
    assert 0.93 <= covered / 2000 <= 0.99


def test_the_recall_of_a_class_with_few_images_is_not_limited() -> None:
    truth = np.repeat([0, 1, 2], [40, 40, 5])
    hurt = truth.copy()
    hurt[40:44] = 0  # four of forty images of b
    hurt[80:] = 0  # all five images of c
    was, now = (evaluate(DECODING, truth, _rows(predictions)) for predictions in (truth, hurt))
    label, lost = worst_class(was, now)
    assert label == "b" and lost == pytest.approx(0.1)


def test_entropy_is_zero_for_one_class_and_log_n_for_n_equally_frequent_classes() -> None:
    assert prediction_entropy(_rows(np.zeros(9, np.int64))) == 0
    assert prediction_entropy(_rows(np.arange(9) % 3)) == pytest.approx(np.log(3))


@pytest.fixture
def result(monkeypatch: pytest.MonkeyPatch) -> Callable[..., GateResult]:
    """Return a function that evaluates given predictions with the gate. The images are not read."""

    def make(truth: NDArray[np.int64], exported: NDArray[np.int64], **changes: object) -> GateResult:
        samples = [Sample.__new__(Sample) for _ in truth]
        for sample, label in zip(samples, truth, strict=True):
            object.__setattr__(sample, "label", int(label))
            object.__setattr__(sample, "targets", ())
        monkeypatch.setattr(agreement, "outputs_of", lambda *_, **__: _rows(exported))
        gate = GateSet(PixelSet(samples, PreprocessSpec(input_size=(8, 8))), _rows(truth), DECODING)
        return evaluate_file(_rows, gate, ExportConfig.model_validate({"min_agreement": 0.0, **changes}), exact=False)  # type: ignore[arg-type]

    return make


def test_a_recall_drop_of_one_class_is_rejected_despite_the_mean_accuracy(result: Callable[..., GateResult]) -> None:
    truth = np.repeat([0, 1, 2], [950, 950, 100])
    hurt = truth.copy()
    hurt[1900:1910] = 0  # 10 of 100 images of c: half a point of the accuracy
    assert "recall of class c drops by 0.1000 (limit 0.05)" in result(truth, hurt).reason
    hurt[1905:1910] = 2
    assert result(truth, hurt).reason == ""


def test_collapsed_predictions_are_rejected_for_every_max_drop(result: Callable[..., GateResult]) -> None:
    truth = np.arange(60) % 3
    assert "entropy of the predictions 0.00 nats, trained model 1.10" in result(truth, np.zeros(60, np.int64), max_drop=1.0).reason


def test_strict_applies_the_limit_to_the_bound(result: Callable[..., GateResult]) -> None:
    truth = np.arange(60) % 3
    assert result(truth, truth).reason == ""
    assert "with a one-sided 95 % bound of 0.02" in result(truth, truth, strict=True).reason
    many = np.arange(3000) % 3
    assert result(many, many, strict=True).reason == ""


def test_every_variant_records_the_interval_of_its_drop(bundle: Bundle) -> None:
    assert all(
        item.accuracy_drop is not None and item.accuracy_drop.low <= item.accuracy_drop.value <= item.accuracy_drop.high
        for item in bundle.manifest.variants
    )
