"""Agreement with the trained model without labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from edgetl.cli.tables import agreement_lines, certainty_lines
from edgetl.core.bundle import Bundle
from edgetl.core.output_decoding import softmax
from edgetl.core.preprocess import PreprocessSpec
from edgetl.core.results import UnlabeledAgreement, images_that_may_change, wilson
from edgetl.core.tasks import OutputDecoding
from edgetl.data.folder import Sample, scan
from edgetl.data.loading import PixelSet, batches
from edgetl.errors import DataError
from edgetl.export.config import ExportConfig
from edgetl.export.gate.agreement import GateSet, evaluate_file, outputs_of
from edgetl.export.gate.unlabeled import LEAST_TENSORS, AgreementSet, changed_too_much, choose_images, compare_unlabeled, read_unlabeled
from edgetl.export.package import export_bundle
from edgetl.train.artifacts.run import Run
from tests.conftest import write_colors

SPEC = PreprocessSpec(input_size=(16, 16))
DECODING = OutputDecoding(labels=("blue", "green", "red"))


def _compare(trained: list[list[float]], exported: list[list[float]], decoding: OutputDecoding = DECODING) -> UnlabeledAgreement:
    before, after = np.array(trained, np.float32), np.array(exported, np.float32)
    return compare_unlabeled(before, after, before.argmax(axis=1) == after.argmax(axis=1), decoding)


def test_expected_drop_is_the_difference_of_the_trained_models_scores() -> None:
    uncertain, certain = [1.0, 0.99, -9.0], [6.0, 0.0, 0.0]
    swapped = [0.99, 1.0, -9.0]
    assert _compare([uncertain, certain], [swapped, certain]).expected_drop == pytest.approx(0.0025, abs=1e-3)
    wrong = _compare([uncertain, certain], [uncertain, [0.0, 6.0, 0.0]])
    scores = softmax(np.array([certain], np.float32))[0]
    assert wrong.top1_agreement == 0.5 and wrong.expected_drop == pytest.approx((scores[0] - scores[1]) / 2)


def test_errors_are_relative_to_the_margin() -> None:
    trained = [[4.0, 0.0, -5.0], [2.0, 0.0, -5.0], [1.0, 0.0, -5.0]]
    shifted = [[value + 3 for value in row] for row in trained]
    found = _compare(trained, shifted)
    assert (found.relative_error, found.beyond_half_margin) == (0.0, 0.0), "the same shift of all logits changes nothing"
    nearer = [[first - 0.75, second, third] for first, second, third in trained]
    found = _compare(trained, nearer)
    assert found.top1_agreement == 1.0 and found.relative_error == pytest.approx(0.375) and found.beyond_half_margin == pytest.approx(1 / 3)


def test_regression_has_the_ratio_of_equal_predictions_only() -> None:
    found = _compare([[1.0]], [[1.1]], OutputDecoding(task="regression", labels=("mm",)))
    assert found == UnlabeledAgreement(n=1, top1_agreement=1.0) and changed_too_much(found, 9, 0.0) == ""


def test_the_limit_of_the_expected_drop_is_at_least_one_point() -> None:
    found = UnlabeledAgreement(n=500, top1_agreement=0.95, expected_drop=0.0153, crops=415)
    assert "25 of 500 predictions change on 85 labeled images and 415 random crops. The" in changed_too_much(found, 85, 0.0)
    reason = changed_too_much(found, 85, 0.01)
    assert "predict an accuracy drop of 0.0153 (limit 0.01)" in reason and "with 100 or more, these decide alone" in reason
    assert changed_too_much(found, 40, 0.02) == ""


def test_labeled_images_decide_alone_if_they_resolve_the_limit() -> None:
    found = UnlabeledAgreement(n=500, top1_agreement=0.9, expected_drop=0.03)
    assert changed_too_much(found, 99, 0.01) and changed_too_much(found, 100, 0.01) == ""


def test_validation_images_are_cropped_until_there_are_enough_tensors(colors: Path) -> None:
    samples = scan(colors).samples
    validation, training = samples[:5], samples[5:]
    (crops,) = choose_images(validation, training, [], SPEC)
    assert {*validation} < {*crops.samples} and len(crops) + len(validation) >= LEAST_TENSORS
    assert len(crops.samples) == 10, "50 crops of one image at most: 5 training images help"
    unlabeled, fewer = choose_images(validation, training, training, SPEC)
    assert list(unlabeled.samples) == list(training) and unlabeled.crops == 0
    assert len(unlabeled) + len(fewer) + len(validation) >= LEAST_TENSORS
    assert choose_images(samples * 14, training, [], SPEC) == (), "504 validation images are enough"


def test_crops_are_reproducible_and_differ_from_each_other(colors: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = scan(colors).samples[:3]
    first, again = (np.concatenate(list(PixelSet(samples, SPEC, crops=4).batches(5))) for _ in range(2))
    assert first.shape == (12, 3, 16, 16) and np.array_equal(first, again)
    assert len({row.tobytes() for row in first}) == 12
    monkeypatch.setattr("edgetl.data.loading.MAX_KEPT_BYTES", 0)
    assert np.array_equal(first, np.concatenate(list(PixelSet(samples, SPEC, crops=4).batches(5)))), "the same without a cache"


def _brightest(batch: NDArray[np.float32]) -> NDArray[np.float32]:
    means: NDArray[np.float32] = 4 * batch.mean(axis=(2, 3))
    return means[:, [2, 1, 0]]


def _uneven(batch: NDArray[np.float32]) -> NDArray[np.float32]:
    """Classify about one of six images or crops as another color."""
    found = _brightest(batch)
    wrong = np.array([int(1e4 * abs(float(row.sum()))) % 6 == 0 for row in batch])
    found[wrong] = found[wrong][:, [1, 2, 0]]
    return found


def test_predictions_on_crops_reject_a_file_that_passes_on_few_labeled_images(colors: Path) -> None:
    samples = scan(colors).samples
    correct = [s for s in samples if _uneven(next(batches([s], SPEC))).argmax() == s.label][:9]
    images = PixelSet(correct, SPEC)
    more = choose_images(correct, [], [], SPEC)
    extra = AgreementSet(more, np.concatenate([outputs_of(_brightest, part) for part in more]))
    gate = GateSet(images, outputs_of(_brightest, images), DECODING)
    assert evaluate_file(_uneven, gate, ExportConfig(), exact=False).reason == ""
    gate = GateSet(images, gate.trained, DECODING, lambda: extra)
    result = evaluate_file(_uneven, gate, ExportConfig(), exact=False)
    assert "predictions change on" in result.reason and result.drop == 0
    assert result.unlabeled is not None and result.unlabeled.n == len(correct) + len(extra.trained) >= LEAST_TENSORS
    assert evaluate_file(_brightest, gate, ExportConfig(), exact=False).reason == ""


def test_unlabeled_images_exclude_broken_and_training_images(colors: Path, tmp_path: Path) -> None:
    training: tuple[Sample, ...] = scan(colors).samples
    other = write_colors(tmp_path / "more", 2, seed=9)
    (other / "copy.png").write_bytes(training[0].path.read_bytes())
    (other / "broken.png").write_bytes(b"no image")
    assert len(read_unlabeled(other, training)) == 6
    with pytest.raises(DataError, match=r"is a file\. Give a folder with images"):
        read_unlabeled(other / "copy.png", training)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="contains no usable image: no image in it can be read"):
        read_unlabeled(tmp_path / "empty", training)


def test_an_export_records_the_agreement_on_unlabeled_images(run: Run, colors: Path, tmp_path: Path) -> None:
    config = ExportConfig(formats=("onnx",), precisions=("fp32", "int8"), calibration_images=60, gate_images=100, max_drop=0.02)
    plain = export_bundle(run.path, config, tmp_path / "plain").manifest
    more = export_bundle(run.path, config.model_copy(update={"unlabeled": colors}), tmp_path / "more").manifest
    for manifest in (plain, more):
        assert manifest.max_changed == 2 and manifest.trained.n == 100
        fp32, int8 = sorted(manifest.variants, key=lambda item: item.precision)
        assert fp32.unlabeled is None and int8.unlabeled is not None and int8.unlabeled.n >= LEAST_TENSORS
        assert int8.attempts[-1].unlabeled == int8.unlabeled and int8.unlabeled.expected_drop is not None
        assert f"{int8.unlabeled.n} predictions change on 100 labeled images" in agreement_lines(manifest)[0]
    assert "on 100 labeled images, 36 images of --unlabeled and 400 random crops" in agreement_lines(more)[0]
    assert {item.unlabeled.n for item in (*plain.variants, *more.variants) if item.unlabeled} == {500, 536}


@pytest.mark.parametrize(("n", "limit", "images"), [(85, 0.01, 0), (100, 0.01, 1), (359, 0.01, 3), (200, 0.015, 3), (50, 1.0, 50)])
def test_the_limit_is_a_number_of_images(n: int, limit: float, images: int) -> None:
    assert images_that_may_change(n, limit) == images


def test_too_few_validation_images_are_reported_with_the_unresolved_limit(bundle: Bundle) -> None:
    few = bundle.manifest.model_copy(update={"trained": wilson(80, 85), "max_drop": 0.01, "max_changed": 0})
    line = certainty_lines(few)[0]
    assert line.startswith("0 of 85 validation images may change (--max-drop 0.01). One image changes the accuracy by 0.0118")
    many = bundle.manifest.model_copy(update={"trained": wilson(480, 500), "max_drop": 0.01, "max_changed": 5})
    assert certainty_lines(many)[0] == "5 of 500 validation images may change (--max-drop 0.01)."
