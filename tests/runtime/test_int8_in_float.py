"""Int8 networks of OpenVINO that are computed in float, as on 64-bit ARM."""

from __future__ import annotations

import numpy as np
import openvino as ov
import pytest
from numpy.typing import NDArray

from edgetl.core.bundle import Bundle
from edgetl.runtime.ov import compute_in_float
from edgetl.runtime.predictor import load
from edgetl.runtime.verify import check_golden


def _reference(x: NDArray[np.float32], low: NDArray[np.float32], high: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return ``FakeQuantize`` with 256 levels and outputs 0..1, by the specification of the operation."""
    steps = np.round((x.astype(np.float64) - low) / (high - low) * 255)
    return np.where(x <= low, 0.0, np.where(x > high, 1.0, steps / 255))


def test_the_decomposition_of_a_fake_quantize_equals_its_specification() -> None:
    low, high = (np.array(values, np.float32).reshape(1, 3, 1, 1) for values in ([0, -1, -2.5], [1, 0.5, 2.25]))
    ends = [ov.opset13.constant(value) for value in (low, high, np.float32(0), np.float32(1))]
    given = ov.opset13.parameter([1, 3, 8, 8], np.float32)
    model = ov.Model([ov.opset13.fake_quantize(given, *ends, 256)], [given])
    compute_in_float(model)
    assert "FakeQuantize" not in {op.get_type_name() for op in model.get_ops()}
    x = np.random.default_rng(0).uniform(-3, 3, (1, 3, 8, 8)).astype(np.float32)
    found = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([x])[0]
    assert np.allclose(found, _reference(x, low, high), atol=1e-6)


def test_an_int8_variant_on_arm_has_the_scores_of_the_manifest(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    variant = bundle.variant("openvino-int8")
    assert check_golden(bundle, variant, load(bundle, variant=variant.name)).largest_difference <= 0.02
