"""Accuracy gate: limits, messages and figures, computed by hand for small outputs. No file is loaded and no network runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from edgetl.core.metrics import paired_drop
from edgetl.core.output_decoding import softmax
from edgetl.core.preprocess import PreprocessSpec
from edgetl.core.results import UnlabeledAgreement
from edgetl.core.tasks import DecisionRule, OutputDecoding
from edgetl.data.folder import Sample, scan
from edgetl.data.loading import PixelSet
from edgetl.errors import DataError
from edgetl.export.config import ExportConfig
from edgetl.export.gate.agreement import (
    GateSet,
    accuracy_drop,
    compare,
    drop_reason,
    evaluate_file,
    median_cosine,
    outputs_of,
    too_few_for_strict,
    trained_logits,
)
from edgetl.export.gate.degradation import prediction_entropy, worst_class
from edgetl.export.gate.unlabeled import (
    MOST_UNLABELED,
    AgreementSet,
    changed_too_much,
    choose_images,
    compare_unlabeled,
    read_unlabeled,
)
from tests.conftest import write_colors

SPEC = PreprocessSpec(input_size=(16, 16))
CLASSES = OutputDecoding(labels=("blue", "green", "red"))
TWO = OutputDecoding(labels=("a", "b"))
LABELS = OutputDecoding("multi-label", ("a", "b"), DecisionRule(thresholds=(0.5, 0.3)))
NUMBER = OutputDecoding("regression", ("mm",), DecisionRule(spread=2.0, tolerance=0.5))
GRADE = OutputDecoding("ordinal", ("grade",), DecisionRule(tolerance=0.5, ordinal_levels=(1, 5)))


def _rows(*rows: Sequence[float]) -> NDArray[np.float32]:
    return np.array(rows, np.float32)


def _votes(*classes: int, size: int = 2) -> NDArray[np.float32]:
    """Return logits that predict ``classes`` with high scores."""
    return 9 * np.eye(size, dtype=np.float32)[list(classes)]


def _gate(trained: NDArray[np.float32], truth: Sequence[int], decoding: OutputDecoding = TWO) -> GateSet:
    """Return a gate set for classification. Its images are never read."""
    samples = [Sample(Path(f"{index}.png"), label, f"{index:064x}") for index, label in enumerate(truth)]
    return GateSet(PixelSet(samples, SPEC), trained, decoding)


def _table_gate(trained: NDArray[np.float32], targets: Sequence[Sequence[float]], decoding: OutputDecoding) -> GateSet:
    samples = [Sample(Path(f"{index}.png"), 0, f"{index:064x}", targets=tuple(row)) for index, row in enumerate(targets)]
    return GateSet(PixelSet(samples, SPEC), trained, decoding)


def _brightest(batch: NDArray[np.float32]) -> NDArray[np.float32]:
    """Classify the color patches: the logits are the means of the channels."""
    means: NDArray[np.float32] = 4 * batch.mean(axis=(2, 3))
    return means[:, [2, 1, 0]]


@pytest.fixture
def gate(colors: Path) -> GateSet:
    images = PixelSet(scan(colors).samples, SPEC)
    return GateSet(images, outputs_of(_brightest, images), CLASSES)


def test_the_largest_difference_is_relative_to_the_largest_output() -> None:
    trained = _rows([2, -4], [1, 1])
    assert compare(trained, _rows([2, -3], [1, 1.5])).max_relative_error == 0.25
    assert compare(_rows([0.5, 0], [0, 0]), _rows([0.25, 0], [0, 0])).max_relative_error == 0.5
    assert compare(_rows([0, 0]), _rows([0, 2e-13])).max_relative_error == pytest.approx(0.2)
    assert compare(trained, _rows([np.nan, -4], [1, 1])).max_relative_error == 1e9
    assert compare(trained, _rows([np.inf, -4], [1, 1])).max_relative_error == 1e9


def test_agreement_without_confident_images_is_one() -> None:
    found = compare(_rows([0.1, 0], [0, 0.1]), _rows([0, 0.1], [0.1, 0]))
    assert (found.n, found.top1_agreement, found.confident_n, found.confident_agreement) == (2, 0.0, 0, 1.0)
    assert found.median_cosine == pytest.approx(-1.0)


def test_a_top_score_of_exactly_the_limit_is_confident() -> None:
    """The scores of the logits (ln 1.5, 0) are 0.6 and 0.4, up to rounding in float32."""
    logit = 0.4054652154445648
    assert softmax(_rows([logit, 0]))[0, 0] == np.float32(0.6) and logit == pytest.approx(math.log(1.5), abs=1e-6)
    trained = _rows([logit, 0], [logit - 1e-3, 0])
    assert compare(trained, trained).confident_n == 1


def test_median_cosine_is_measured_from_the_trained_mean_output() -> None:
    trained = _rows([3, 0], [0, 3], [0, 0])  # mean (1, 1): the rows point to (2, -1), (-1, 2), (-1, -1)
    same, turned = [3, 0], [0, 0]
    assert median_cosine(trained, _rows(same, [3, 0], turned)) == pytest.approx(1.0)
    # (2, -1) and (-1, 2): -4 / 5. (-1, -1) and (2, -1): -1 / sqrt(10).
    assert median_cosine(trained, _rows([0, 3], [0, 3], [3, 0])) == pytest.approx(-1 / math.sqrt(10))
    assert median_cosine(trained, _rows([0, 3], [3, 0], [3, 0])) == pytest.approx(-0.8)


def test_median_cosine_needs_two_images_and_two_outputs() -> None:
    assert median_cosine(_rows([3, 0]), _rows([3, 0])) is None
    assert median_cosine(_rows([3], [1]), _rows([3], [1])) is None
    assert median_cosine(_rows([3, 0], [0, 3]), _rows([3, 0], [0, 3])) == pytest.approx(1.0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_median_cosine_replaces_outputs_that_are_not_finite_by_the_mean(value: float) -> None:
    trained = _rows([1, 0], [0, 1])  # mean (0.5, 0.5)
    # (0.5, -0.5) and (0, -0.5): 1 / sqrt(2). The other image is equal: 1.
    assert median_cosine(trained, _rows([value, 0], [0, 1])) == pytest.approx((1 + 1 / math.sqrt(2)) / 2)


def test_median_cosine_of_constant_outputs_is_zero() -> None:
    trained = _rows([1, 0], [0, 1])
    assert median_cosine(trained, _rows([0.5, 0.5], [0.5, 0.5])) == 0.0


def test_median_cosine_computes_the_mean_in_double_precision() -> None:
    trained = _rows([16777216, 0], [16777218, 2])  # the float32 sum of the first column would be rounded
    assert median_cosine(trained, _rows([16777216, 2], [16777218, 0])) == pytest.approx(0.0, abs=1e-12)


def test_confidence_in_a_label_is_the_distance_from_its_threshold_in_log_odds() -> None:
    """A threshold of 0.3 is a logit of -0.847. The distance of a score of 0.6 from 0.5 is 0.405."""
    trained = _rows([0.41, -0.43], [-0.39, -1.24], [-0.41, -1.26])
    found = compare(trained, _rows([0.41, -0.86], [0.1, -1.24], [-0.41, -1.26]), LABELS)
    assert (found.n, found.confident_n) == (3, 4)
    assert found.confident_agreement == 0.75 and found.top1_agreement == pytest.approx(4 / 6)


def test_thresholds_of_0_and_1_are_finite_logits() -> None:
    """The odds of a probability of 1e-7 have the logarithm -16.118."""
    rule = OutputDecoding("multi-label", ("a", "b"), DecisionRule(thresholds=(0.0, 1.0)))
    trained = _rows([-16.118 + 0.3, 16.118 - 0.3], [-16.118 + 0.5, 16.118 - 0.5], [-16.118 - 0.5, 16.118 + 0.5])
    assert compare(trained, trained, rule).confident_n == 4


def test_numbers_agree_within_the_tolerance_and_all_are_confident() -> None:
    found = compare(_rows([1.0], [2.0], [3.0], [4.0]), _rows([1.5], [1.5], [3.5625], [4.0]), NUMBER)
    assert (found.top1_agreement, found.confident_n, found.confident_agreement) == (0.75, 4, 0.75)
    assert found.median_cosine is None


def test_levels_agree_by_the_nearest_level_and_are_confident_0_1_from_the_next() -> None:
    trained = _rows([2.0], [2.45], [2.55], [2.35], [2.65], [-3.35])
    exported = _rows([2.4], [2.55], [2.45], [2.45], [2.55], [0.0])
    found = compare(trained, exported, GRADE)
    assert found.top1_agreement == pytest.approx(4 / 6) and (found.confident_n, found.confident_agreement) == (4, 1.0)
    assert compare(_rows([2.0], [3.0]), _rows([2.6], [3.0]), GRADE).confident_agreement == 0.5


def test_fp32_result_has_the_largest_difference_of_all_batch_sizes(gate: GateSet) -> None:
    largest = float(np.abs(gate.trained[:5]).max())
    for size in (1, 2, 5):

        def shifted(batch: NDArray[np.float32], size: int = size) -> NDArray[np.float32]:
            return _brightest(batch) + np.float32(0.5 if len(batch) == size else 0)

        result = evaluate_file(shifted, gate, ExportConfig(), exact=True)
        error = result.agreement.max_relative_error
        assert error == pytest.approx(0.5 / float(np.abs(gate.trained[:size]).max()), rel=1e-5) and error >= 0.499 / largest
        assert result.reason == f"logits differ from the trained model's by {error:.1e} of the largest (limit 0.0001)"
        assert (result.validation.value, result.validation.n, result.drop, result.unlabeled) == (1.0, 36, 0.0, None)
        assert result.accuracy_drop is not None and result.accuracy_drop.n == 36 and result.agreement.n == 36


def test_fp32_result_keeps_a_difference_that_only_the_whole_set_has(gate: GateSet) -> None:
    def shifted(batch: NDArray[np.float32]) -> NDArray[np.float32]:
        return _brightest(batch) + np.float32(0.5 if len(batch) > 5 else 0)

    result = evaluate_file(shifted, gate, ExportConfig(), exact=True)
    assert result.agreement.max_relative_error == pytest.approx(0.5 / float(np.abs(gate.trained).max()), rel=1e-5)
    assert result.reason.startswith("logits differ")


def test_a_wrong_class_in_a_reduced_file_is_reported_with_images_and_interval(gate: GateSet) -> None:
    def wrong(batch: NDArray[np.float32]) -> NDArray[np.float32]:
        found = _brightest(batch)
        if len(batch) == 4:  # the last of 36 images in batches of 32
            found[-1] = found[-1][[1, 2, 0]]
        return found

    result = evaluate_file(wrong, gate, ExportConfig(), exact=False)
    # Agresti and Min: half an image is added to each cell of the table with 1 lost and 0 gained of 36 images.
    center, spread = 1 / 38, math.sqrt(2 - 1 / 38) / 38
    low, high = center - 1.959964 * spread, center + 1.959964 * spread
    assert result.reason == (
        "accuracy drops by 0.0278, from 1.0000 to 0.9722 (limit --max-drop 0.01, 0.0178 over; 1 of 36 images, 0 allowed; "
        f"95 % interval {low:+.4f} to {high:+.4f})"
    )
    assert result.drop == pytest.approx(1 / 36) and result.validation.value == pytest.approx(35 / 36) and result.unlabeled is None
    assert result.accuracy_drop is not None and result.accuracy_drop.value == pytest.approx(1 / 36)
    assert result.accuracy_drop.bound == pytest.approx(center + 1.644854 * spread)
    assert result.agreement.top1_agreement == pytest.approx(35 / 36)


def test_progress_counts_the_images_of_each_stage(gate: GateSet) -> None:
    calls: list[tuple[str, int, int]] = []

    def progress(stage: str, done: int, total: int) -> None:
        calls.append((stage, done, total))

    class _Model(torch.nn.Module):
        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            assert torch.is_inference_mode_enabled()
            return (4 * batch.mean(dim=(2, 3)))[:, [2, 1, 0]]

    found = trained_logits(_Model(), gate.images, progress=progress)
    assert np.allclose(found, gate.trained, atol=1e-5) and found.dtype == np.float32
    outputs_of(_brightest, gate.images, stage="some stage", progress=progress)
    few = PixelSet(gate.samples[:3], SPEC)
    more = AgreementSet((few,), outputs_of(_brightest, few))
    evaluate_file(_brightest, GateSet(gate.images, gate.trained, CLASSES, lambda: more), ExportConfig(), exact=False, progress=progress)
    stages = ("running the trained model", "some stage", "comparing outputs")
    assert calls == [(stage, done, 36) for stage in stages for done in (32, 36)] + [("comparing outputs", 3, 3)]


def test_unlabeled_images_are_added_to_the_labeled_ones(gate: GateSet) -> None:
    few = PixelSet(gate.samples[:4], SPEC)
    more = AgreementSet((few,), _votes(1, 1, 1, 1, size=3))  # the file predicts blue for these four
    labeled = _brightest(next(few.batches()))
    assert set(labeled.argmax(axis=1).tolist()) == {0}
    result = evaluate_file(_brightest, GateSet(gate.images, gate.trained, CLASSES, lambda: more), ExportConfig(), exact=False)
    assert result.unlabeled is not None and (result.unlabeled.n, result.unlabeled.top1_agreement) == (40, 0.9)
    assert result.reason.startswith(
        "4 of 40 predictions change on 36 labeled images and 4 images of --unlabeled. The trained model's scores predict"
    )
    assert "(limit 0.01)" in result.reason and result.drop == 0 and result.agreement.n == 36
    assert (result.validation.n, result.accuracy_drop is not None) == (36, True)
    assert not evaluate_file(
        _brightest, GateSet(gate.images, gate.trained, CLASSES, lambda: more), ExportConfig(max_drop=0.2), exact=False
    ).reason


def test_images_that_are_enough_are_compared_alone(gate: GateSet) -> None:
    more = AgreementSet((), gate.trained[:0], gate.trained[:0])
    found = evaluate_file(_brightest, replace(gate, more=lambda: more), ExportConfig(), exact=False).unlabeled
    assert found is not None and found.images == "36 labeled images" and found.expected_drop == 0


def test_crops_and_unlabeled_images_are_counted_separately(gate: GateSet) -> None:
    crops, few = PixelSet(gate.samples[:2], SPEC, crops=3), PixelSet(gate.samples[:4], SPEC)
    more = AgreementSet((crops, few), np.concatenate([outputs_of(_brightest, part) for part in (crops, few)]))
    result = evaluate_file(_brightest, GateSet(gate.images, gate.trained, CLASSES, lambda: more), ExportConfig(), exact=False)
    assert result.unlabeled is not None and (result.unlabeled.n, result.unlabeled.crops, result.unlabeled.unlabeled) == (46, 6, 4)
    assert result.unlabeled.images == "36 labeled images, 4 images of --unlabeled and 6 random crops"


def test_unlabeled_images_are_not_needed_for_a_rejected_or_exact_file(gate: GateSet) -> None:
    def unused() -> AgreementSet:
        raise AssertionError("the labeled images decide")

    strict = GateSet(gate.images, gate.trained, CLASSES, unused)
    assert evaluate_file(lambda batch: _brightest(-batch), strict, ExportConfig(), exact=False).reason
    assert not evaluate_file(_brightest, strict, ExportConfig(), exact=True).reason


def test_a_small_cosine_similarity_is_rejected_at_equal_predictions(gate: GateSet) -> None:
    mean = gate.trained.mean(axis=0)

    def bent(batch: NDArray[np.float32]) -> NDArray[np.float32]:
        centered = _brightest(batch) - mean
        return mean + centered * 3 + np.float32(4) * np.roll(centered, 1, axis=1)

    measured = np.concatenate([bent(batch) for batch in gate.images.batches()])
    cosine = median_cosine(gate.trained, measured)
    assert cosine is not None and cosine < 0.98
    result = evaluate_file(bent, gate, ExportConfig(max_drop=1.0), exact=False)
    assert result.reason == (
        f"median cosine similarity to the trained model's outputs is {cosine:.3f} (limit 0.98). Use a higher precision"
    )


def test_disagreement_on_confident_predictions_is_rejected_below_the_limit(gate: GateSet) -> None:
    def one_wrong(batch: NDArray[np.float32]) -> NDArray[np.float32]:
        found = _brightest(batch)
        if len(batch) == 4:
            found[-1] = found[-1][[1, 2, 0]]
        return found

    config = ExportConfig(max_drop=0.9)
    result = evaluate_file(one_wrong, gate, config, exact=False)
    confident, share = result.agreement.confident_n, result.agreement.confident_agreement
    assert 1 / confident == pytest.approx(1 - share)
    at_limit = config.model_copy(update={"min_agreement": share})
    assert evaluate_file(one_wrong, gate, at_limit, exact=False).reason == ""
    above = config.model_copy(update={"min_agreement": share + 1e-6})
    assert evaluate_file(one_wrong, gate, above, exact=False).reason == (
        f"agreement with the trained model is {share:.3f} of the confident images (limit {share + 1e-6:.6g})"
    )


def test_the_unit_of_a_multi_label_disagreement_is_decisions(colors: Path) -> None:
    samples = [Sample(item.path, 0, item.content, targets=(float(item.label == 0), float(item.label > 0))) for item in scan(colors).samples]
    images = PixelSet(samples, SPEC)

    def outputs(batch: NDArray[np.float32]) -> NDArray[np.float32]:
        blue = 4 * (batch[:, 2].mean(axis=(1, 2)) - batch[:, :2].mean(axis=(1, 2, 3)))
        return np.stack([blue, -blue], axis=1)

    decoding = OutputDecoding("multi-label", ("a", "b"), DecisionRule(thresholds=(0.5, 0.5)))
    gate = GateSet(images, outputs_of(outputs, images), decoding)

    def shifted(batch: NDArray[np.float32]) -> NDArray[np.float32]:
        return outputs(batch) + np.float32(0 if len(batch) > 4 else 20)

    result = evaluate_file(shifted, gate, ExportConfig(max_drop=0.9), exact=False)
    assert result.reason.endswith("of the confident decisions (limit 0.97)") and result.accuracy_drop is None


def test_a_multi_label_drop_counts_wrong_decisions_if_the_ranking_is_unchanged() -> None:
    truth = [[1, 0], [1, 0], [0, 1], [0, 1]]
    trained = _rows([3, -3], [3, -3], [-3, 3], [-3, 3])
    gate = _table_gate(trained, truth, LABELS)
    shifted = trained + np.float32(4)  # every label is present: half of the decisions are wrong
    drop = accuracy_drop(gate.evaluation, gate.measure(shifted))
    assert gate.measure(shifted).score.value == 1.0 and drop == 0.5
    assert drop_reason(gate, shifted, ExportConfig()) == (
        "ratio of correct decisions drops by 0.5000, from 1.0000 to 0.5000 (limit --max-drop 0.01, 0.4900 over)"
    )
    swapped = trained[:, ::-1].copy()  # both the ranking and the decisions are wrong
    assert accuracy_drop(gate.evaluation, gate.measure(swapped)) == pytest.approx(1.0)
    # Both images of label a rank after the others: precisions 1/3 and 2/4. 6 of 8 decisions are correct.
    moved = trained - _rows([7, 0], [8, 0], [0, 0], [0, 0])
    drop = 1 - (5 / 12 + 1) / 2
    assert drop > 1 - 6 / 8 and accuracy_drop(gate.evaluation, gate.measure(moved)) == pytest.approx(drop)
    assert (
        drop_reason(gate, moved, ExportConfig())
        == "mean average precision drops by 0.2917, from 1.0000 to 0.7083 (limit --max-drop 0.01, 0.2817 over)"
    )
    assert accuracy_drop(gate.measure(swapped), gate.evaluation) == -0.5
    assert drop_reason(gate, trained, ExportConfig()) == ""


def test_a_drop_of_r2_is_rejected_without_an_interval() -> None:
    gate = _table_gate(_rows([1], [2], [3], [4]), [[1], [2], [3], [4]], NUMBER)
    # Squared errors of 0.25 in one of four images: R² = 1 - 0.25 / 5.
    assert drop_reason(gate, _rows([1.5], [2], [3], [4]), ExportConfig(max_drop=0.049)) == (
        "R² drops by 0.0500, from 1.0000 to 0.9500 (limit --max-drop 0.049, 0.0010 over)"
    )
    assert drop_reason(gate, _rows([1.5], [2], [3], [4]), ExportConfig(max_drop=0.05)) == ""


def test_an_accuracy_drop_of_exactly_the_limit_passes() -> None:
    gate = _gate(_votes(*[0] * 20), [0] * 20)
    exported = _votes(*[0] * 19, 1)  # 1 - 0.95 is slightly above 0.05 in floating point
    assert 1 - 0.95 > 0.05 and drop_reason(gate, exported, ExportConfig(max_drop=0.05)) == ""
    assert "1 of 20 images, 0 allowed" in drop_reason(gate, exported, ExportConfig(max_drop=0.0499))
    # The tolerance of rounding, 1e-9, belongs to the limit.
    limit = 1 - 0.95 - 1e-9
    assert limit + 1e-9 == 1 - 0.95 and drop_reason(gate, exported, ExportConfig(max_drop=limit)) == ""


def test_strict_compares_the_bound_with_the_limit() -> None:
    gate = _gate(_votes(*[0, 1] * 50), [0, 1] * 50)
    bound = (1 / 102) + 1.644854 * math.sqrt(2 - 1 / 102) / 102  # one image lost of 100
    exported = _votes(*[0, 1] * 49, 0, 0)
    exported_with_a_gain = _votes(*[0, 1] * 48, 0, 0, 0, 0)
    assert drop_reason(gate, exported, ExportConfig(max_drop=0.02)) == ""
    assert drop_reason(gate, exported, ExportConfig(max_drop=0.02, strict=True)) == (
        f"accuracy drops by 0.0100, with a one-sided 95 % bound of {bound:.4f} on 100 images (limit --max-drop 0.02 with --strict, "
        f"{bound - 0.02:.4f} over). If the same ratio of predictions changes, 340 validation images are enough"
    )
    assert drop_reason(gate, exported, ExportConfig(max_drop=0.01, strict=True)) == (
        f"accuracy drops by 0.0100, with a one-sided 95 % bound of {bound:.4f} on 100 images (limit --max-drop 0.01 with --strict, "
        f"{bound - 0.01:.4f} over). More validation images do not help, because the drop itself is at the limit"
    )
    assert drop_reason(gate, exported, ExportConfig(max_drop=bound + 1e-6, strict=True)) == ""
    one_wrong = _gate(_votes(1, 1, *[0, 1] * 49), [0, 1] * 50)  # the file loses two other images and gains this one
    assert "834 validation images are enough" in drop_reason(one_wrong, exported_with_a_gain, ExportConfig(max_drop=0.02, strict=True))
    at = paired_drop(np.ones(100, np.bool_), np.arange(100) < 99).bound
    assert at == pytest.approx(bound) and drop_reason(gate, exported, ExportConfig(max_drop=at, strict=True)) == ""


@pytest.mark.parametrize(
    ("n", "max_drop", "reason"),
    [
        (
            162,
            0.01,
            "--strict needs at least 163 validation images for --max-drop 0.01, and there are 162. With 162 images, the one-sided 95 % "
            "bound of the drop is 0.0100, even if no prediction changes",
        ),
        (163, 0.01, ""),
        (8, 0.2, ""),
        (
            8,
            0.01,
            "--strict needs at least 163 validation images for --max-drop 0.01, and there are 8. With 8 images, the one-sided 95 % bound "
            "of the drop is 0.1645, even if no prediction changes",
        ),
        (1000, 0.0, "--strict rejects every file with --max-drop 0, because the bound of a drop is above 0"),
    ],
)
def test_strict_needs_a_number_of_images_that_follows_from_the_limit(n: int, max_drop: float, reason: str) -> None:
    assert too_few_for_strict(n, ExportConfig(max_drop=max_drop, strict=True)) == reason
    assert too_few_for_strict(n, ExportConfig(max_drop=max_drop)) == ""
    cross_validated = reason.replace("validation images", "cross-validated images")
    assert too_few_for_strict(n, ExportConfig(max_drop=max_drop, strict=True), images="cross-validated images") == cross_validated


def test_recall_drop_of_one_class_is_rejected_above_its_limit() -> None:
    truth = [0] * 220 + [1] * 20
    gate = _gate(_votes(*truth), truth)

    def losing(count: int) -> NDArray[np.float32]:
        return _votes(*[0] * 220, *[0] * count, *[1] * (20 - count))

    assert drop_reason(gate, losing(1), ExportConfig()) == "", "one of 20 images is the limit of 0.05"
    assert drop_reason(gate, losing(2), ExportConfig()) == (
        "recall of class b drops by 0.1000 (limit 0.05). A larger --max-drop raises this limit"
    )
    assert drop_reason(gate, losing(2), ExportConfig(max_drop=0.1)) == ""
    assert drop_reason(gate, losing(3), ExportConfig(max_drop=0.1)).startswith("recall of class b drops by 0.1500 (limit 0.1)")


def test_collapsed_predictions_are_rejected_at_equal_accuracy() -> None:
    """A trained model that predicts both classes equally often has an entropy of 0.69 nats. Half of it is the limit."""
    truth = [0, 1] * 5 + [1, 0] * 5
    gate = _gate(_votes(*[0, 1] * 10), truth)
    assert drop_reason(gate, _votes(*[0] * 20), ExportConfig()) == (
        "too many images get the same prediction: entropy of the predictions 0.00 nats, trained model 0.69 (limit: 50% of it). "
        "Use a higher precision"
    )
    # One correct and one wrong prediction of the other class: 0.33 nats; two correct and one wrong: 0.42 nats.
    two, three = [0] * 20, [0] * 20
    two[1] = two[11] = three[1] = three[3] = three[11] = 1
    assert "entropy of the predictions 0.33 nats" in drop_reason(gate, _votes(*two), ExportConfig())
    assert drop_reason(gate, _votes(*three), ExportConfig()) == ""


def test_a_model_that_predicts_one_class_may_be_exported() -> None:
    gate = _gate(_votes(0, 0, 0, 0), [0, 0, 0, 1])
    assert drop_reason(gate, _votes(0, 0, 0, 0), ExportConfig()) == ""


def test_worst_class_counts_classes_of_at_least_20_images() -> None:
    truth = [0] * 20 + [1] * 19 + [2] * 40
    gate = _gate(_votes(*truth, size=3), truth, CLASSES)
    after = gate.measure(_votes(*[0] * 19, 1, *[0] * 19, *[2] * 36, *[0] * 4, size=3))
    for pair, expected, drop in (((gate.evaluation, after), "red", 0.1), ((after, gate.evaluation), "blue", -0.05)):
        label, found = worst_class(*pair)
        assert label == expected and found == pytest.approx(drop)
    small = _gate(_votes(0, 1), [0, 1])
    assert worst_class(small.evaluation, small.measure(_votes(1, 0))) == ("", 0)


def test_prediction_entropy_is_in_nats() -> None:
    assert prediction_entropy(_votes(0, 0)) == prediction_entropy(_votes(1)) == 0.0
    assert prediction_entropy(_votes(0, 1, 1, 1)) == pytest.approx(-(0.25 * math.log(0.25) + 0.75 * math.log(0.75)))
    assert prediction_entropy(_votes(0, 1, 2, size=3)) == pytest.approx(math.log(3))
    assert prediction_entropy(np.zeros((0, 2), np.float32)) == 0.0


def _unlabeled(trained: NDArray[np.float32], exported: NDArray[np.float32], decoding: OutputDecoding = TWO) -> UnlabeledAgreement:
    return compare_unlabeled(trained, exported, trained.argmax(axis=1) == exported.argmax(axis=1), decoding)


def test_expected_drop_is_the_mean_difference_of_the_trained_scores() -> None:
    trained = _rows([math.log(3), 0], [0, math.log(4)])  # scores 0.75 and 0.25; 0.2 and 0.8
    found = _unlabeled(trained, _rows([0, 1], [0, 1]))
    assert found.n == 2 and found.top1_agreement == 0.5 and found.expected_drop == pytest.approx(0.25)


def test_logit_errors_are_compared_with_the_margin_of_each_image() -> None:
    trained = _rows([4, 0, -5], [2, 0, -5], [8, 0, -5])  # margins 4, 2, 8
    # The difference of the top class to another changes by 2 (exactly half the margin), 1.5 and 1.
    found = _unlabeled(trained, _rows([4, 0, -7], [1, 0.5, -5], [7, 0, -5]), CLASSES)
    assert found.beyond_half_margin == pytest.approx(1 / 3) and found.relative_error == pytest.approx(1.5 / 4)
    equal = _rows([1, 1, 0], [1, 1, 0])
    assert _unlabeled(equal, equal, CLASSES).relative_error == 0.0
    tiny = _unlabeled(equal, _rows([1, 1, 1e-12], [1, 1, 1e-12]), CLASSES)
    assert tiny.relative_error is not None and tiny.relative_error == pytest.approx(1.0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_logit_that_is_not_finite_is_an_error_of_1e9(value: float) -> None:
    found = _unlabeled(_rows([3, 1]), _rows([3, value]))
    assert found.relative_error == pytest.approx(5e8) and found.beyond_half_margin == 1.0


def test_infinite_logits_of_opposite_sign_are_the_largest_error() -> None:
    found = _unlabeled(_rows([3, 1]), _rows([-np.inf, np.inf]))
    assert found.relative_error == pytest.approx(1e9) and found.beyond_half_margin == 1.0


def test_other_tasks_have_the_ratio_of_equal_decisions_only() -> None:
    same = np.array([[True, False], [True, True]])
    found = compare_unlabeled(_rows([1, 1], [1, 1]), _rows([1, -1], [1, 1]), same, LABELS)
    assert found == UnlabeledAgreement(n=2, top1_agreement=0.75)


def test_changed_predictions_are_reported_with_the_number_of_images_that_decide_alone() -> None:
    found = UnlabeledAgreement(n=200, top1_agreement=0.9, expected_drop=0.04, crops=170)
    assert changed_too_much(found, 30, 0.03) == (
        "20 of 200 predictions change on 30 labeled images and 170 random crops. The trained model's scores predict an accuracy drop "
        "of 0.0400 (limit 0.03). Add labeled images (with 34 or more, these decide alone), give images of the camera with --unlabeled, "
        "or raise --max-drop"
    )
    assert changed_too_much(found, 30, 0.0).count("(limit 0.01)") == 1
    assert changed_too_much(found, 25, 0.04) == "", "the limit itself passes, and 25 images decide alone"
    assert changed_too_much(found, 24, 0.04) == ""
    assert changed_too_much(found, 24, 0.04 - 5e-10) == "" and changed_too_much(found, 24, 0.039)
    assert changed_too_much(found, 50, 0.02) == "" and changed_too_much(found, 49, 0.02)
    assert changed_too_much(UnlabeledAgreement(n=9, top1_agreement=0.1), 3, 0.0) == ""


def _samples(count: int, label: int = 0, start: int = 0) -> list[Sample]:
    return [Sample(Path(f"{index}.png"), label, f"{index:064x}") for index in range(start, start + count)]


def test_crops_fill_the_total_to_500_tensors() -> None:
    (crops,) = choose_images(_samples(10), _samples(30, start=100), [], SPEC)
    assert [len(crops.samples), crops.crops, crops.spec] == [10, 49, SPEC], "49 crops of each of 10 images"
    (crops,) = choose_images(_samples(9), _samples(30, start=100), [], SPEC)
    assert (len(crops.samples), crops.crops) == (10, 50), "491 tensors need a training image, because an image has at most 50 crops"
    (crops,) = choose_images(_samples(499), _samples(30, start=1000), [], SPEC)
    assert (len(crops.samples), crops.crops) == (499, 1)
    assert choose_images(_samples(500), [], [], SPEC) == ()


def test_unlabeled_images_replace_crops() -> None:
    other = _samples(300, start=2000)
    first, second = choose_images(_samples(100), [], other, SPEC)
    assert (first.samples, first.crops, first.spec) == (other, 0, SPEC) and (len(second.samples), second.crops) == (100, 1)
    (only,) = choose_images(_samples(200), [], other, SPEC)
    assert only.samples == other


def test_read_unlabeled_logs_the_numbers_of_images_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_colors(tmp_path / "more", 2)
    training = scan(folder).samples[:1]
    (folder / "copy.png").write_bytes(scan(folder).samples[1].path.read_bytes())
    (folder / "broken.png").write_bytes(b"no image")
    (folder / ".hidden.png").write_bytes(b"not listed")
    caplog.set_level("INFO")
    found = read_unlabeled(folder, training)
    assert len(found) == 5 and [item.content for item in found] == sorted(item.content for item in found)
    assert {item.path for item in found} < set(folder.rglob("*.png"))
    assert {item.label for item in found} == {0} and training[0].content not in {item.content for item in found}
    assert (
        f"--unlabeled: 5 of 7 readable images are used. The others are copies, training images, or beyond the limit of {MOST_UNLABELED}"
    ) in caplog.messages


def test_read_unlabeled_logs_nothing_if_all_images_are_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    assert len(read_unlabeled(write_colors(tmp_path / "more", 1), [])) == 3
    assert not [text for text in caplog.messages if text.startswith("--unlabeled")]


def test_read_unlabeled_rejects_a_folder_without_other_images(tmp_path: Path) -> None:
    folder = write_colors(tmp_path / "more", 2)
    (folder / "broken.png").write_bytes(b"no image")
    training = scan(folder).samples
    with pytest.raises(DataError) as caught:
        read_unlabeled(folder, training)
    assert str(caught.value) == (
        f"--unlabeled {folder} contains no usable image: all of its images are training images. Give other images."
    )
    with pytest.raises(DataError) as caught:
        read_unlabeled(tmp_path / "nowhere", training)
    assert str(caught.value) == f"--unlabeled {tmp_path / 'nowhere'} does not exist. Give a folder with images, in any arrangement."


def test_confident_predictions_have_a_high_calibrated_score() -> None:
    trained = np.array([[2.0, 0.0]], np.float32)
    warm = OutputDecoding("classification", ("a", "b"), DecisionRule(temperature=10.0))
    assert (compare(trained, trained).confident_n, compare(trained, trained, warm).confident_n) == (1, 0)
