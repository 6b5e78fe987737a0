from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from edgetl.core.preprocess import PreprocessSpec
from edgetl.core.tasks import DecisionRule, OutputDecoding
from edgetl.data.folder import Sample, scan
from edgetl.data.loading import PixelSet, batches
from edgetl.errors import ExportError
from edgetl.export.config import ExportConfig
from edgetl.export.gate.agreement import GateSet, Logits, compare, drop_reason, evaluate_file
from edgetl.export.quantize.attempts import FloatHead, Int8Settings, MeasurementImages, plan_attempts
from edgetl.export.quantize.search import RefitData, SearchContext, refit_head, search_quantization

SPEC = PreprocessSpec(input_size=(16, 16))


def _brightest(batch: NDArray[np.float32]) -> NDArray[np.float32]:
    """Classify the color patches: the logits are the means of the channels."""
    means: NDArray[np.float32] = 4 * batch.mean(axis=(2, 3))
    return means[:, [2, 1, 0]]  # blue, green, red: the labels' order


@pytest.fixture
def gate(colors: Path) -> GateSet:
    samples = scan(colors).samples
    trained = np.concatenate([_brightest(batch) for batch in batches(samples, SPEC)])
    return GateSet(PixelSet(samples, SPEC), trained, OutputDecoding(labels=("blue", "green", "red")))


def test_identical_outputs_pass_the_gate_for_fp32_and_reduced_precision(gate: GateSet) -> None:
    assert gate.evaluation.accuracy.value == 1.0
    for exact in (True, False):
        result = evaluate_file(_brightest, gate, ExportConfig(), exact=exact)
        assert result.reason == "" and result.agreement.max_relative_error < 1e-6 and result.drop == 0


def test_small_fp32_differences_are_rejected_with_their_size(gate: GateSet) -> None:
    result = evaluate_file(lambda batch: _brightest(batch) * np.float32(1.001), gate, ExportConfig(), exact=True)
    assert "by 1.0e-03 of the largest (limit 0.0001)" in result.reason


def test_outputs_that_depend_on_the_batch_size_are_rejected(gate: GateSet) -> None:
    def batch_dependent(batch: NDArray[np.float32]) -> NDArray[np.float32]:
        return _brightest(batch) + (np.float32(0.5) if len(batch) == 5 else np.float32(0))

    assert "limit 0.0001" in evaluate_file(batch_dependent, gate, ExportConfig(), exact=True).reason


@pytest.mark.parametrize(
    ("name", "broken"),
    [
        ("swapped classes", lambda batch: _brightest(batch)[:, [1, 0, 2]]),
        ("constant prediction", lambda batch: np.tile(np.array([3, 0, 0], np.float32), (len(batch), 1))),
        ("wrong normalization", lambda batch: _brightest(-batch)),
        ("not a number", lambda batch: _brightest(batch) * np.float32("nan")),
    ],
)
def test_a_quantized_file_with_a_large_accuracy_drop_is_rejected(gate: GateSet, name: str, broken: Logits) -> None:
    assert "accuracy drops by" in evaluate_file(broken, gate, ExportConfig(), exact=False).reason


def test_disagreement_on_confident_images_is_rejected_within_the_allowed_drop(gate: GateSet) -> None:
    def nearly(batch: NDArray[np.float32]) -> NDArray[np.float32]:
        logits = _brightest(batch)
        logits[:2] = logits[:2][:, [1, 2, 0]]
        return logits

    result = evaluate_file(nearly, gate, ExportConfig(max_drop=0.9), exact=False)
    assert "confident images (limit 0.97)" in result.reason


def test_agreement_counts_confident_images_separately() -> None:
    trained = np.array([[9, 0], [0.1, 0], [0, 9]], np.float32)
    exported = np.array([[9, 0], [0, 0.1], [0, 9]], np.float32)
    found = compare(trained, exported)
    assert found.top1_agreement == pytest.approx(2 / 3)
    assert (found.confident_n, found.confident_agreement) == (2, 1.0)


def test_multi_label_rejection_names_the_metric_that_drops_the_most() -> None:
    truth = [(1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (0.0, 0.0)]
    samples = [Sample(Path(f"{index}.png"), 0, str(index), targets=targets) for index, targets in enumerate(truth)]
    trained = np.where(np.array(truth) > 0, 2, -2).astype(np.float32)
    gate = GateSet(PixelSet(samples, SPEC), trained, OutputDecoding("multi-label", ("a", "b"), DecisionRule(thresholds=(0.5, 0.5))))
    # A shift of all outputs keeps the ranks, and with them the average precision.
    assert drop_reason(gate, trained + 3, ExportConfig()).startswith("ratio of correct decisions drops by 0.5000, from 1.0000 to 0.5000 (")
    # Reversed ranks of the first label: the positives are in places 3 and 4, so that its average precision is (1/3 + 2/4) / 2.
    shifted = np.stack([np.array([-1.6, -1.4, -1.5, -1.3], np.float32), trained[:, 1]], axis=1)
    assert drop_reason(gate, shifted, ExportConfig()).startswith("mean average precision drops by 0.2917, from 1.0000 to 0.7083 (")


def test_a_refitted_head_corrects_a_shift_of_the_features(colors: Path) -> None:
    samples = scan(colors).samples
    mixing = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)

    def backbone(batch: NDArray[np.float32]) -> NDArray[np.float32]:
        return batch.mean(axis=(2, 3)) @ mixing

    def shifted(batch: NDArray[np.float32]) -> NDArray[np.float32]:
        return backbone(batch) * np.linspace(0.5, 1.5, 8, dtype=np.float32) + np.float32(0.7)

    head = FloatHead(np.random.default_rng(1).normal(size=(3, 8)).astype(np.float32), np.zeros(3, np.float32))
    features = np.concatenate([backbone(batch) for batch in batches(samples, SPEC)])
    trained = features @ head.weight.T
    fitted = refit_head(shifted, RefitData(PixelSet(samples, SPEC), trained, head))
    moved = np.concatenate([shifted(batch) for batch in batches(samples, SPEC)])
    before = np.abs(moved @ head.weight.T - trained).mean()
    after = np.abs(moved @ fitted.weight.T + fitted.bias - trained).mean()
    assert after < 0.35 * before


class _Recorder:
    """Quantizer that records its calls. Its files are names of the attempts."""

    def __init__(self) -> None:
        self.tried: list[Int8Settings] = []
        self.fp32: list[tuple[str, ...]] = []

    def attempts(self, cpu: str) -> list[Int8Settings]:
        return plan_attempts(cpu)

    def quantize(self, settings: Int8Settings, folder: Path, fp32: tuple[str, ...] = ()) -> list[Path]:
        self.tried.append(settings)
        self.fp32.append(fp32)
        return [folder / str(len(self.tried))]

    def operations(self) -> dict[str, str]:
        return {"conv": "Conv", "pool": "GlobalAveragePool", "head": "Gemm"}

    def write_restored(self, name: str, folder: Path) -> list[Path]:
        return [folder / f"without-{name}"]

    def write_features(self, folder: Path) -> list[Path]:
        return [folder / "features"]

    def replace_head(self, head: FloatHead, folder: Path) -> list[Path]:
        return [folder / "head"]


def _context(gate: GateSet, open_files: Callable[[list[Path]], Logits], explain: bool = False) -> SearchContext:
    def unused() -> RefitData:
        raise AssertionError("no attempt before the passing one re-fits a head")

    images = next(gate.images.batches())
    return SearchContext(
        open_files=open_files,
        evaluate=lambda logits: evaluate_file(logits, gate, ExportConfig(), exact=False),
        refit=unused,
        measurement_images=lambda: MeasurementImages(images, _brightest(images)),
        explain=explain,
    )


def test_the_search_stops_at_the_first_passing_attempt_and_records_all(gate: GateSet, tmp_path: Path) -> None:
    attempts = [Int8Settings(), Int8Settings(full_bias=True), Int8Settings(refit=True)]

    def open_files(files: list[Path]) -> Logits:
        return _brightest if files[0].name == "2" else lambda batch: _brightest(-batch)

    found = search_quantization(_Recorder(), attempts, tmp_path, _context(gate, open_files))
    assert [attempt.passed for attempt in found.attempts] == [False, True]
    assert found.files == [tmp_path / "2"] and found.result.reason == "" and not found.sensitivities


def test_the_most_sensitive_operations_are_kept_in_fp32(gate: GateSet, tmp_path: Path) -> None:
    """The model is correct with two operations in fp32. Restoring ``pool`` alone helps most; restoring ``head`` alone makes it worse."""
    errors = {"without-pool": 0.2, "without-conv": 0.8, "without-head": 1.2}

    def open_files(files: list[Path]) -> Logits:
        error = np.float32(0.0 if files[0].name == "2" else errors.get(files[0].name, 1.0))
        return lambda batch: _brightest(batch) * (1 - error) + _brightest(-batch) * error

    recorder = _Recorder()
    found = search_quantization(recorder, [Int8Settings(), Int8Settings(sensitive=2)], tmp_path, _context(gate, open_files))
    assert recorder.fp32 == [(), ("pool", "conv")] and not found.result.reason
    assert [item.operation for item in found.sensitivities] == ["pool", "conv", "head"]
    assert found.sensitivities[0].divergence > found.sensitivities[1].divergence > 0 > found.sensitivities[2].divergence


def test_a_failed_attempt_is_recorded_and_the_next_one_is_tried(gate: GateSet, tmp_path: Path) -> None:
    class _Failing(_Recorder):
        def quantize(self, settings: Int8Settings, folder: Path, fp32: tuple[str, ...] = ()) -> list[Path]:
            if settings.full_bias:
                raise ExportError("the quantizer failed.")
            return super().quantize(settings, folder, fp32)

    found = search_quantization(
        _Failing(), [Int8Settings(full_bias=True), Int8Settings()], tmp_path, _context(gate, lambda files: _brightest)
    )
    assert [(attempt.passed, attempt.reason) for attempt in found.attempts] == [(False, "the quantizer failed."), (True, "")]
    assert found.attempts[0].accuracy is None, "nothing was measured"
    with pytest.raises(ExportError, match="the quantizer failed"):
        search_quantization(_Failing(), [Int8Settings(full_bias=True)], tmp_path, _context(gate, lambda files: _brightest))


def test_the_reason_of_a_rejection_names_the_best_attempt(gate: GateSet, tmp_path: Path) -> None:
    """The second attempt loses the least accuracy: one of its images is wrong."""

    def open_files(files: list[Path]) -> Logits:
        if files[0].name != "2":
            return lambda batch: _brightest(-batch)
        return lambda batch: np.concatenate([_brightest(-batch[:1]), _brightest(batch[1:])])

    attempts = [Int8Settings(), Int8Settings(full_bias=True), Int8Settings(full_bias=True)]
    found = search_quantization(_Recorder(), attempts, tmp_path, _context(gate, open_files))
    best = min(attempt.drop for attempt in found.attempts if attempt.drop is not None)
    assert found.result.drop == best == found.attempts[1].drop and [attempt.passed for attempt in found.attempts] == [False] * 3
    assert found.result.reason == f"best of 3 attempts ({attempts[1].method}): {found.attempts[1].reason}"
    alone = search_quantization(_Recorder(), attempts[:1], tmp_path, _context(gate, open_files))
    assert alone.result.reason == alone.attempts[0].reason


def test_explain_measures_sensitivities_of_a_file_that_passed(gate: GateSet, tmp_path: Path) -> None:
    found = search_quantization(_Recorder(), [Int8Settings()], tmp_path, _context(gate, lambda files: _brightest, explain=True))
    assert not found.result.reason and len(found.sensitivities) == 3


def test_all_attempts_for_any_cpu_use_seven_bit_weights() -> None:
    assert all(settings.seven_bit for settings in plan_attempts("any"))
    assert [settings.refit for settings in plan_attempts("here")] == [False, True, True, True, True, True]


def test_attempts_depend_on_the_features_of_the_quantizer() -> None:
    methods = [settings.method for settings in plan_attempts("any", bias_corrected=True, controlled=True)]
    assert methods[:3] == ["7-bit weights", "7-bit weights, full bias correction", "7-bit weights, head re-fitted"]
    assert methods[-1] == "7-bit weights, accuracy-aware (NNCF)"
    assert "dynamic" in plan_attempts("any", dynamic=True)[0].method
    assert not any(settings.dynamic or settings.controlled for settings in plan_attempts("any"))
