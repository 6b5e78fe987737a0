"""Execution settings in the engines: static batch, precision, provider."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from edgetl.core.bundle import Bundle, open_bundle
from edgetl.core.output_decoding import softmax
from edgetl.core.system.execution import DEFAULT_SETTING, ExecutionSetting
from edgetl.errors import AccuracyGateError, BundleError, EngineError
from edgetl.runtime.engine import open_engine, supported_settings
from edgetl.runtime.predictor import load_variant
from edgetl.runtime.verify import check_golden

BF16 = ExecutionSetting(precision="bf16")
STATIC = ExecutionSetting(static_batch=True)


def with_settings(bundle: Bundle, folder: Path, *settings: dict[str, object]) -> Bundle:
    """Return a copy of the bundle in which every variant has these entries of measured settings."""
    shutil.copytree(bundle.path, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    for variant in manifest["variants"]:
        variant["settings"] = list(settings)
    (folder / "manifest.json").write_text(json.dumps(manifest) + "\n")
    return open_bundle(folder)


def batch_of(bundle: Bundle, count: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=(count, 3, *bundle.manifest.preprocess.input_size)).astype(np.float32)


@pytest.mark.parametrize("name", ["openvino-fp32", "openvino-int8"])
def test_a_static_batch_computes_every_batch_size(bundle: Bundle, name: str) -> None:
    plain, static = (open_engine(bundle, bundle.variant(name), threads=1, setting=setting) for setting in (DEFAULT_SETTING, STATIC))
    batch = batch_of(bundle, 3)
    alone = np.concatenate([plain.run(batch[index : index + 1]) for index in range(3)])
    assert np.allclose(static.run(batch), alone, atol=1e-4) and static.run(batch[:1]).shape == (1, 10)


def test_bfloat16_changes_scores_slightly(bundle: Bundle) -> None:
    if BF16 not in supported_settings("openvino"):
        pytest.skip("this CPU does not compute in bfloat16")
    variant, batch = bundle.variant("openvino-fp32"), batch_of(bundle, 4)
    plain, reduced = (open_engine(bundle, variant, threads=1, setting=setting).run(batch) for setting in (DEFAULT_SETTING, BF16))
    difference = np.abs(softmax(plain) - softmax(reduced)).max()
    assert 0 < difference < 0.05


def test_an_unsupported_precision_is_an_error(bundle: Bundle) -> None:
    missing = next(item for item in (ExecutionSetting(precision="f16"), BF16) if item not in supported_settings("openvino"))
    with pytest.raises(EngineError, match=f"this CPU does not compute in {missing.precision}. Tune the bundle again"):
        open_engine(bundle, bundle.variant("openvino-fp32"), setting=missing)


def test_a_missing_provider_is_an_error(bundle: Bundle) -> None:
    setting = ExecutionSetting(provider="acl")
    if setting in supported_settings("onnx"):
        pytest.skip("this build of ONNX Runtime has the provider")
    with pytest.raises(EngineError, match="has no ACLExecutionProvider"):
        open_engine(bundle, bundle.variant("onnx-fp32"), setting=setting)


@pytest.mark.parametrize(
    ("name", "setting"), [("onnx-fp32", BF16), ("onnx-fp32", STATIC), ("openvino-fp32", ExecutionSetting(provider="acl"))]
)
def test_a_setting_of_another_engine_is_an_error(bundle: Bundle, name: str, setting: ExecutionSetting) -> None:
    with pytest.raises(EngineError, match="Tune the bundle again"):
        open_engine(bundle, bundle.variant(name), setting=setting)


def test_only_settings_that_the_gate_kept_are_loaded(bundle: Bundle, tmp_path: Path) -> None:
    scaled = ExecutionSetting(decode="scaled")
    rejected = with_settings(bundle, tmp_path / "a", {"setting": scaled.model_dump(), "kept": False, "reason": "accuracy drops"})
    with pytest.raises(BundleError, match="the accuracy gate did not keep the execution setting f32, scaled decode for onnx-fp32"):
        load_variant(rejected, rejected.variant("onnx-fp32"), setting=scaled)
    kept = with_settings(bundle, tmp_path / "b", {"setting": scaled.model_dump(), "kept": True})
    predictor = load_variant(kept, kept.variant("openvino-fp32"), setting=scaled.model_copy(update={"static_batch": True}))
    assert predictor.spec.decode == "scaled" and check_golden(kept, kept.variant("openvino-fp32"), predictor).images == 8


def test_a_copied_predictor_keeps_its_setting(bundle: Bundle, photo: bytes) -> None:
    predictor = load_variant(bundle, bundle.variant("openvino-fp32"), threads=1, setting=STATIC)
    for again in (copy.deepcopy(predictor), pickle.loads(pickle.dumps(predictor))):
        assert again.setting == STATIC and again.predict(photo).label == predictor.predict(photo).label


def test_the_golden_tolerance_of_a_setting_contains_its_difference_at_export(bundle: Bundle, tmp_path: Path) -> None:
    entry = {"setting": ExecutionSetting(decode="scaled").model_dump(), "kept": True, "golden_difference": 0.02}
    variant = with_settings(bundle, tmp_path / "copy", entry).variant("onnx-fp32")
    assert variant.kept_settings() == {DEFAULT_SETTING: 0.001, ExecutionSetting(decode="scaled"): pytest.approx(0.041)}


def test_wrong_golden_scores_of_a_setting_are_an_error(bundle: Bundle, tmp_path: Path) -> None:
    copied = with_settings(bundle, tmp_path / "copy")
    manifest = json.loads((copied.path / "manifest.json").read_text())
    manifest["golden"][0]["scores"]["openvino-fp32"].reverse()
    (copied.path / "manifest.json").write_text(json.dumps(manifest) + "\n")
    changed = open_bundle(copied.path)
    with pytest.raises(AccuracyGateError, match=r"tolerance 0\.001"):
        check_golden(changed, changed.variant("openvino-fp32"), load_variant(changed, changed.variant("openvino-fp32"), setting=STATIC))
