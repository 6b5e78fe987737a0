from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgetl.core.manifest import Format
from edgetl.data.loading import PixelSet, stratified
from edgetl.export import variants
from edgetl.export.config import ExportConfig
from edgetl.export.gate.agreement import judge
from edgetl.export.package import export_bundle
from edgetl.export.quantize.attempts import Step
from edgetl.export.quantize.qat import simulate, tune_for_int8
from edgetl.export.quantize.sensitivity import divergence
from edgetl.train.artifacts.run import Run


def _answers(model: nn.Module, images: PixelSet) -> np.ndarray:
    with torch.inference_mode():
        return np.concatenate([model(torch.from_numpy(batch)).numpy() for batch in images.batches()])


def _rounded(model: nn.Module, images: PixelSet, calibration: list[np.ndarray], bits: int) -> np.ndarray:
    """The answers of ``model`` once its weights and inputs are rounded."""
    rounded = copy.deepcopy(model)
    simulate(rounded, calibration, bits)
    return _answers(rounded, images)


def test_training_repairs_what_rounding_to_four_bits_breaks(run: Run) -> None:
    model, spec = run.load_model(), run.record.preprocess
    images, unseen = (PixelSet(stratified(run.samples(part), 320), spec) for part in ("train", "val"))
    calibration = [next(images.batches())]
    trained = _answers(model, unseen)
    before = divergence(trained, _rounded(model, unseen, calibration, 4), "classification")
    tuned = tune_for_int8(model, images, calibration, "classification", 40, bits=4)
    after = divergence(trained, _rounded(tuned, unseen, calibration, 4), "classification")
    assert before > 0.05 and after < 0.5 * before
    assert (trained == _answers(model, unseen)).all(), "the trained model is untouched"
    assert set(tuned.state_dict()) == set(model.state_dict())


def test_a_last_batch_of_one_image_does_not_ruin_a_network_of_numbers(run: Run) -> None:
    model = run.load_model()
    images = PixelSet(stratified(run.samples("train"), 33), run.record.preprocess)
    tuned = tune_for_int8(model, images, [next(images.batches())], "regression", 3)
    assert all(torch.isfinite(value).all() for value in tuned.state_dict().values() if value.is_floating_point())


@pytest.mark.parametrize("format_", ["onnx", "openvino"])
def test_where_no_step_is_enough_the_network_is_trained_for_int8(
    format_: Format, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(variants, "ladder", lambda *args, **kwargs: [Step(seven_bit=True)])

    def never(logits: object, gate: object, limits: object, **options: object) -> object:
        verdict = judge(logits, gate, limits, **options)  # type: ignore[arg-type]
        return verdict if options.get("exact") else verdict.__class__(**{**vars(verdict), "reason": "asked to fail"})

    monkeypatch.setattr(variants, "judge", never)
    config = ExportConfig(formats=(format_,), precisions=("fp32", "int8"), qat_steps=3, allow_missing=True, calibration_images=40)
    bundle = export_bundle(run.path, config, tmp_path / "bundle")
    (rejected,) = (item for item in bundle.manifest.rejected if item.name.endswith("-int8"))
    assert [attempt.method for attempt in rejected.attempts] == [
        "7-bit weights",
        "quantization-aware training (3 steps), 7-bit weights",
    ]
    before, after = (attempt.accuracy for attempt in rejected.attempts)
    assert before is not None and after is not None and abs(after - before) < 0.05
