"""Execution settings at the export: the accuracy gate measures them, and the manifest and the card contain the results."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgetl.core.bundle import Bundle, open_bundle
from edgetl.core.manifest import MeasuredSetting
from edgetl.core.system.execution import ExecutionSetting
from edgetl.export.config import ExportConfig
from edgetl.export.package import export_bundle
from edgetl.export.variants import _too_few_scaled
from edgetl.runtime.engine import supported_settings
from edgetl.runtime.predictor import load_variant
from edgetl.runtime.verify import check_golden
from edgetl.train.config.options import TrainConfig
from edgetl.train.workflows.train import train
from tests.built import built

SCALED = ExecutionSetting(decode="scaled")
BF16 = ExecutionSetting(precision="bf16")


def write_photos(root: Path) -> None:
    """Write JPEG files of 96 x 80 pixels in three classes, twice the size of the network's input or more."""
    rng = np.random.default_rng(0)
    for channel, name in enumerate(("red", "green", "blue")):
        (root / name).mkdir(parents=True)
        for index in range(40):
            pixels = np.kron(rng.integers(0, 90, (10, 12, 3)), np.ones((8, 8, 1)))
            pixels[:, :, channel] += 120
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{index:03d}.jpg", quality=95)


@pytest.fixture(scope="module")
def photos_bundle() -> Bundle:
    """Bundle of a network for JPEG files that scaled decoding reads at half their size."""
    photos = built("photos", write_photos)
    options = TrainConfig.from_options(
        backbone="test_resnet", pretrained=False, strategy="probe", input_size=(32, 32), crop_pct=1.0, val=0.3, test=0.2
    )
    run = built("runs/photos", lambda out: train(photos, options, out))
    return open_bundle(built("bundles/photos", lambda out: export_bundle(run, ExportConfig(precisions=("fp32",), max_drop=0.1), out)))


def settings_of(bundle: Bundle, name: str) -> dict[ExecutionSetting, MeasuredSetting]:
    return {item.setting: item for item in bundle.variant(name).settings}


def test_scaled_decoding_is_measured_on_large_jpeg_files(photos_bundle: Bundle) -> None:
    found = settings_of(photos_bundle, "onnx-fp32")[SCALED]
    assert found.kept and found.scaled_images == photos_bundle.manifest.trained.n and found.golden_difference > 0
    assert (
        found.validation is not None and found.test is not None and found.agreement is not None and found.agreement.n == found.validation.n
    )


def test_scaled_decoding_is_not_kept_without_large_jpeg_files(bundle: Bundle) -> None:
    n = bundle.manifest.trained.n
    for variant in bundle.manifest.variants:
        (found,) = [item for item in variant.settings if item.setting.decode == "scaled"]
        assert not found.kept and found.validation is None and found.scaled_images == 0
        assert found.reason.startswith(f"0 of {n} validation images are JPEG files that this setting scales")


@pytest.mark.parametrize(
    ("scaled", "kind", "remedy"),
    [
        (10, "validation", "It needs 100 or more. Train on images as large as those of the device"),
        (49, "validation", "It needs 100 or more. Add validation images (--val)"),
        (49, "target", "It needs 100 or more. Give more target images"),
    ],
)
def test_remedy_for_too_few_scaled_images_depends_on_the_reason(scaled: int, kind: str, remedy: str) -> None:
    gate = SimpleNamespace(samples=range(49), name="images", kind=kind)
    context: Any = SimpleNamespace(scaled=SimpleNamespace(count=scaled), gate=gate, limits=SimpleNamespace(max_drop=0.01))
    assert _too_few_scaled(context) == f"{scaled} of 49 images are JPEG files that this setting scales. {remedy}"


def test_settings_of_the_exporting_host_are_measured_alone_and_with_scaled_decoding(photos_bundle: Bundle) -> None:
    found = settings_of(photos_bundle, "openvino-fp32")
    for setting in supported_settings("openvino"):
        both = setting.model_copy(update={"decode": "scaled"})
        assert setting == ExecutionSetting() or found[setting].validation is not None
        assert both in found or not found[setting].kept
    assert set(settings_of(photos_bundle, "onnx-fp32")) == {SCALED} if len(supported_settings("onnx")) == 1 else True


def test_kept_settings_reproduce_their_golden_scores(photos_bundle: Bundle) -> None:
    for variant in photos_bundle.manifest.variants:
        for setting in variant.kept_settings():
            check = check_golden(photos_bundle, variant, load_variant(photos_bundle, variant, threads=1, setting=setting))
            assert check.largest_difference <= check.tolerance / 2


def test_the_card_lists_the_settings(photos_bundle: Bundle) -> None:
    card = (photos_bundle.path / "card.md").read_text("utf-8")
    assert "## Execution settings" in card and "| onnx-fp32 | f32, scaled decode | 1.000" in card
    assert ("| openvino-fp32 | bf16 |" in card) == (BF16 in supported_settings("openvino"))
