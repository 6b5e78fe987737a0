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
from edgetl.export.gate.agreement import GateSet, Logits, compare, judge
from edgetl.export.quantize.attempts import FloatHead, Probe, Step, ladder
from edgetl.export.quantize.search import Ground, RefitData, climb, refit_head

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
        verdict = judge(_brightest, gate, ExportConfig(), exact=exact)
        assert verdict.reason == "" and verdict.agreement.max_relative < 1e-6 and verdict.drop == 0


def test_fp32_that_is_slightly_off_is_refused_with_the_difference(gate: GateSet) -> None:
    verdict = judge(lambda batch: _brightest(batch) * np.float32(1.001), gate, ExportConfig(), exact=True)
    assert "differ by 1.0e-03 of the largest (limit 0.0001)" in verdict.reason


def test_a_batch_size_that_answers_differently_is_refused(gate: GateSet) -> None:
    def baked(batch: NDArray[np.float32]) -> NDArray[np.float32]:
        return _brightest(batch) + (np.float32(0.5) if len(batch) == 5 else np.float32(0))

    assert "limit 0.0001" in judge(baked, gate, ExportConfig(), exact=True).reason


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
    assert "accuracy falls by" in judge(broken, gate, ExportConfig(), exact=False).reason


def test_disagreement_where_the_trained_model_is_confident_is_refused_even_within_the_drop(gate: GateSet) -> None:
    def nearly(batch: NDArray[np.float32]) -> NDArray[np.float32]:
        logits = _brightest(batch)
        logits[:2] = logits[:2][:, [1, 2, 0]]
        return logits

    verdict = judge(nearly, gate, ExportConfig(max_drop=0.9), exact=False)
    assert "confident images (limit 0.97)" in verdict.reason


def test_agreement_counts_confident_images_apart() -> None:
    trained = np.array([[9, 0], [0.1, 0], [0, 9]], np.float32)
    exported = np.array([[9, 0], [0, 0.1], [0, 9]], np.float32)
    found = compare(trained, exported)
    assert found.top1 == pytest.approx(2 / 3)
    assert (found.confident_n, found.confident_top1) == (2, 1.0)


def test_a_re_fitted_head_undoes_a_drift_of_the_features(colours: Path) -> None:
    samples = scan(colours).samples
    mixing = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)

    def trunk(batch: NDArray[np.float32]) -> NDArray[np.float32]:
        return batch.mean(axis=(2, 3)) @ mixing

    def drifted(batch: NDArray[np.float32]) -> NDArray[np.float32]:
        return trunk(batch) * np.linspace(0.5, 1.5, 8, dtype=np.float32) + np.float32(0.7)

    head = FloatHead(np.random.default_rng(1).normal(size=(3, 8)).astype(np.float32), np.zeros(3, np.float32))
    features = np.concatenate([trunk(batch) for batch in batches(samples, SPEC)])
    trained = features @ head.weight.T
    fitted = refit_head(drifted, RefitData(PixelSet(samples, SPEC), trained, head))
    moved = np.concatenate([drifted(batch) for batch in batches(samples, SPEC)])
    before = np.abs(moved @ head.weight.T - trained).mean()
    after = np.abs(moved @ fitted.weight.T + fitted.bias - trained).mean()
    assert after < 0.35 * before


class _Recorder:
    """A quantizer whose files pass only with a step that the test names."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.spared: list[tuple[str, ...]] = []

    def quantize(self, step: Step, folder: Path, spared: tuple[str, ...] = ()) -> list[Path]:
        self.steps.append(step)
        self.spared.append(spared)
        return [folder / str(len(self.steps))]

    def operations(self) -> dict[str, str]:
        return {"conv": "Conv", "pool": "GlobalAveragePool", "head": "Gemm"}

    def write_restored(self, name: str, folder: Path) -> list[Path]:
        return [folder / f"without-{name}"]

    def write_trunk(self, folder: Path) -> list[Path]:
        return [folder / "trunk"]

    def replace_head(self, head: FloatHead, folder: Path) -> list[Path]:
        return [folder / "head"]


def _ground(gate: GateSet, open_files: Callable[[list[Path]], Logits], explain: bool = False) -> Ground:
    def unused() -> RefitData:
        raise AssertionError("no step before the passing one fits a head")

    images = next(gate.images.batches())
    return Ground(
        open_files=open_files,
        judge=lambda logits: judge(logits, gate, ExportConfig(), exact=False),
        refit=unused,
        probe=lambda: Probe(images, _brightest(images)),
        explain=explain,
    )


def test_the_ladder_stops_at_the_first_step_that_passes_and_records_all(gate: GateSet, tmp_path: Path) -> None:
    steps = [Step(), Step(full_bias=True), Step(refit=True)]

    def open_files(files: list[Path]) -> Logits:
        return _brightest if files[0].name == "2" else lambda batch: _brightest(-batch)

    climbed = climb(_Recorder(), steps, tmp_path, _ground(gate, open_files))
    assert [attempt.passed for attempt in climbed.attempts] == [False, True]
    assert climbed.files == [tmp_path / "2"] and climbed.verdict.reason == "" and not climbed.sensitivities


def test_the_operations_that_cost_most_stay_in_fp32(gate: GateSet, tmp_path: Path) -> None:
    """The model is wrong until two operations are spared; alone, ``pool`` repairs most of it and ``head`` makes it worse."""
    shares = {"without-pool": 0.2, "without-conv": 0.8, "without-head": 1.2}

    def open_files(files: list[Path]) -> Logits:
        share = np.float32(0.0 if files[0].name == "2" else shares.get(files[0].name, 1.0))
        return lambda batch: _brightest(batch) * (1 - share) + _brightest(-batch) * share

    recorder = _Recorder()
    climbed = climb(recorder, [Step(), Step(sensitive=2)], tmp_path, _ground(gate, open_files))
    assert recorder.spared == [(), ("pool", "conv")] and not climbed.verdict.reason
    assert [item.operation for item in climbed.sensitivities] == ["pool", "conv", "head"]
    assert climbed.sensitivities[0].loss > climbed.sensitivities[1].loss > 0 > climbed.sensitivities[2].loss


def test_a_step_that_cannot_be_made_is_recorded_and_the_next_one_tried(gate: GateSet, tmp_path: Path) -> None:
    class _Refusing(_Recorder):
        def quantize(self, step: Step, folder: Path, spared: tuple[str, ...] = ()) -> list[Path]:
            if step.full_bias:
                raise ExportError("the tool refuses.")
            return super().quantize(step, folder, spared)

    climbed = climb(_Refusing(), [Step(full_bias=True), Step()], tmp_path, _ground(gate, lambda files: _brightest))
    assert [(attempt.passed, attempt.reason) for attempt in climbed.attempts] == [(False, "the tool refuses."), (True, "")]
    assert climbed.attempts[0].accuracy is None, "nothing was measured"
    with pytest.raises(ExportError, match="the tool refuses"):
        climb(_Refusing(), [Step(full_bias=True)], tmp_path, _ground(gate, lambda files: _brightest))


def test_explain_measures_the_operations_of_a_file_that_passed(gate: GateSet, tmp_path: Path) -> None:
    climbed = climb(_Recorder(), [Step()], tmp_path, _ground(gate, lambda files: _brightest, explain=True))
    assert not climbed.verdict.reason and len(climbed.sensitivities) == 3


def test_seven_bit_weights_are_kept_for_any_cpu() -> None:
    assert all(step.seven_bit for step in ladder("any"))
    assert [step.refit for step in ladder("here")] == [False, True, True, True, True, True]


def test_each_engine_has_its_own_ladder() -> None:
    methods = [step.method for step in ladder("any", "openvino")]
    assert methods[:3] == ["7-bit weights", "7-bit weights, full bias correction", "7-bit weights, head re-fitted"]
    assert methods[-1] == "7-bit weights, accuracy-aware (NNCF)"
    assert "dynamic" in ladder("any", "onnx", products=True)[0].method
    assert not any(step.dynamic for step in ladder("any", "openvino", products=True))
    assert not any(step.controlled for step in ladder("any", "openvino", classes=False))
