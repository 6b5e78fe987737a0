from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from edgetl.core.preprocess import PreprocessSpec
from edgetl.core.tasks import OutputDecoding
from edgetl.data.folder import scan
from edgetl.data.loading import PixelSet, batches
from edgetl.errors import ExportError
from edgetl.export.config import ExportConfig
from edgetl.export.gate.agreement import GateSet, Logits, compare, evaluate_file
from edgetl.export.quantize.attempts import FloatHead, Int8Settings, Probe, plan_attempts
from edgetl.export.quantize.search import RefitData, SearchContext, refit_head, search_quantization

SPEC = PreprocessSpec(input_size=(16, 16))


def _brightest(batch: NDArray[np.float32]) -> NDArray[np.float32]:
    """A real classifier of the colour patches: the logits are the channels' means, which name the class."""
    means: NDArray[np.float32] = 4 * batch.mean(axis=(2, 3))
    return means[:, [2, 1, 0]]  # blue, green, red: the labels' order


@pytest.fixture
def gate(colours: Path) -> GateSet:
    samples = scan(colours).samples
    trained = np.concatenate([_brightest(batch) for batch in batches(samples, SPEC)])
    return GateSet(PixelSet(samples, SPEC), trained, OutputDecoding(labels=("blue", "green", "red")))


def test_the_same_function_passes_the_exact_and_the_quantized_gate(gate: GateSet) -> None:
    assert gate.evaluation.accuracy.value == 1.0
    for exact in (True, False):
        result = evaluate_file(_brightest, gate, ExportConfig(), exact=exact)
        assert result.reason == "" and result.agreement.max_relative_error < 1e-6 and result.drop == 0


def test_fp32_that_is_slightly_off_is_refused_with_the_difference(gate: GateSet) -> None:
    result = evaluate_file(lambda batch: _brightest(batch) * np.float32(1.001), gate, ExportConfig(), exact=True)
    assert "differ by 1.0e-03 of the largest (limit 0.0001)" in result.reason


def test_a_batch_size_that_answers_differently_is_refused(gate: GateSet) -> None:
    def baked(batch: NDArray[np.float32]) -> NDArray[np.float32]:
        return _brightest(batch) + (np.float32(0.5) if len(batch) == 5 else np.float32(0))

    assert "limit 0.0001" in evaluate_file(baked, gate, ExportConfig(), exact=True).reason


@pytest.mark.parametrize(
    ("name", "broken"),
    [
        ("swapped classes", lambda batch: _brightest(batch)[:, [1, 0, 2]]),
        ("constant answer", lambda batch: np.tile(np.array([3, 0, 0], np.float32), (len(batch), 1))),
        ("wrong normalisation", lambda batch: _brightest(-batch)),
        ("not a number", lambda batch: _brightest(batch) * np.float32("nan")),
    ],
)
def test_a_quantized_file_that_lost_its_accuracy_is_refused(gate: GateSet, name: str, broken: Logits) -> None:
    assert "accuracy falls by" in evaluate_file(broken, gate, ExportConfig(), exact=False).reason


def test_disagreement_where_the_trained_model_is_confident_is_refused_even_within_the_drop(gate: GateSet) -> None:
    def nearly(batch: NDArray[np.float32]) -> NDArray[np.float32]:
        logits = _brightest(batch)
        logits[:2] = logits[:2][:, [1, 2, 0]]
        return logits

    result = evaluate_file(nearly, gate, ExportConfig(max_drop=0.9), exact=False)
    assert "confident images (limit 0.97)" in result.reason


def test_agreement_counts_confident_images_apart() -> None:
    trained = np.array([[9, 0], [0.1, 0], [0, 9]], np.float32)
    exported = np.array([[9, 0], [0, 0.1], [0, 9]], np.float32)
    found = compare(trained, exported)
    assert found.top1_agreement == pytest.approx(2 / 3)
    assert (found.confident_n, found.confident_agreement) == (2, 1.0)


def test_a_re_fitted_head_undoes_a_drift_of_the_features(colours: Path) -> None:
    samples = scan(colours).samples
    mixing = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)

    def backbone(batch: NDArray[np.float32]) -> NDArray[np.float32]:
        return batch.mean(axis=(2, 3)) @ mixing

    def drifted(batch: NDArray[np.float32]) -> NDArray[np.float32]:
        return backbone(batch) * np.linspace(0.5, 1.5, 8, dtype=np.float32) + np.float32(0.7)

    head = FloatHead(np.random.default_rng(1).normal(size=(3, 8)).astype(np.float32), np.zeros(3, np.float32))
    features = np.concatenate([backbone(batch) for batch in batches(samples, SPEC)])
    trained = features @ head.weight.T
    fitted = refit_head(drifted, RefitData(PixelSet(samples, SPEC), trained, head))
    moved = np.concatenate([drifted(batch) for batch in batches(samples, SPEC)])
    before = np.abs(moved @ head.weight.T - trained).mean()
    after = np.abs(moved @ fitted.weight.T + fitted.bias - trained).mean()
    assert after < 0.35 * before


class _Recorder:
    """A quantizer whose files pass only with an attempt that the test names."""

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
        raise AssertionError("no attempt before the passing one fits a head")

    images = next(gate.images.batches())
    return SearchContext(
        open_files=open_files,
        evaluate=lambda logits: evaluate_file(logits, gate, ExportConfig(), exact=False),
        refit=unused,
        probe=lambda: Probe(images, _brightest(images)),
        explain=explain,
    )


def test_the_search_stops_at_the_first_attempt_that_passes_and_records_all(gate: GateSet, tmp_path: Path) -> None:
    attempts = [Int8Settings(), Int8Settings(full_bias=True), Int8Settings(refit=True)]

    def open_files(files: list[Path]) -> Logits:
        return _brightest if files[0].name == "2" else lambda batch: _brightest(-batch)

    found = search_quantization(_Recorder(), attempts, tmp_path, _context(gate, open_files))
    assert [attempt.passed for attempt in found.attempts] == [False, True]
    assert found.files == [tmp_path / "2"] and found.result.reason == "" and not found.sensitivities


def test_the_operations_that_cost_most_stay_in_fp32(gate: GateSet, tmp_path: Path) -> None:
    """The model is wrong until two operations stay in fp32; alone, ``pool`` repairs most of it and ``head`` makes it worse."""
    shares = {"without-pool": 0.2, "without-conv": 0.8, "without-head": 1.2}

    def open_files(files: list[Path]) -> Logits:
        share = np.float32(0.0 if files[0].name == "2" else shares.get(files[0].name, 1.0))
        return lambda batch: _brightest(batch) * (1 - share) + _brightest(-batch) * share

    recorder = _Recorder()
    found = search_quantization(recorder, [Int8Settings(), Int8Settings(sensitive=2)], tmp_path, _context(gate, open_files))
    assert recorder.fp32 == [(), ("pool", "conv")] and not found.result.reason
    assert [item.operation for item in found.sensitivities] == ["pool", "conv", "head"]
    assert found.sensitivities[0].divergence > found.sensitivities[1].divergence > 0 > found.sensitivities[2].divergence


def test_an_attempt_that_writes_no_file_is_recorded_and_the_next_one_tried(gate: GateSet, tmp_path: Path) -> None:
    class _Refusing(_Recorder):
        def quantize(self, settings: Int8Settings, folder: Path, fp32: tuple[str, ...] = ()) -> list[Path]:
            if settings.full_bias:
                raise ExportError("the tool refuses.")
            return super().quantize(settings, folder, fp32)

    found = search_quantization(
        _Refusing(), [Int8Settings(full_bias=True), Int8Settings()], tmp_path, _context(gate, lambda files: _brightest)
    )
    assert [(attempt.passed, attempt.reason) for attempt in found.attempts] == [(False, "the tool refuses."), (True, "")]
    assert found.attempts[0].accuracy is None, "nothing was measured"
    with pytest.raises(ExportError, match="the tool refuses"):
        search_quantization(_Refusing(), [Int8Settings(full_bias=True)], tmp_path, _context(gate, lambda files: _brightest))


def test_explain_measures_the_operations_of_a_file_that_passed(gate: GateSet, tmp_path: Path) -> None:
    found = search_quantization(_Recorder(), [Int8Settings()], tmp_path, _context(gate, lambda files: _brightest, explain=True))
    assert not found.result.reason and len(found.sensitivities) == 3


def test_seven_bit_weights_are_kept_for_any_cpu() -> None:
    assert all(settings.seven_bit for settings in plan_attempts("any"))
    assert [settings.refit for settings in plan_attempts("here")] == [False, True, True, True, True, True]


def test_the_attempts_depend_on_what_the_quantizer_can_do() -> None:
    methods = [settings.method for settings in plan_attempts("any", bias_corrected=True, controlled=True)]
    assert methods[:3] == ["7-bit weights", "7-bit weights, full bias correction", "7-bit weights, head re-fitted"]
    assert methods[-1] == "7-bit weights, accuracy-aware (NNCF)"
    assert "dynamic" in plan_attempts("any", dynamic=True)[0].method
    assert not any(settings.dynamic or settings.controlled for settings in plan_attempts("any"))
