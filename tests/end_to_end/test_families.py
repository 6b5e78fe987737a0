"""Training and export of every family of networks with every strategy."""

from __future__ import annotations

from pathlib import Path

import pytest

import edgetl
from edgetl.export.config import ExportConfig
from edgetl.export.package import export_bundle
from edgetl.train.config.options import TrainConfig
from edgetl.train.workflows.train import train

FAMILIES = {
    "resnet18": 64,
    "efficientnet_b0": 64,
    "mobilenetv3_small_050": 64,
    "mobilenetv4_conv_small_035": 64,
    "vit_tiny_patch16_224": 224,
    "convnext_atto": 64,
}


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["probe", "partial", "full", "progressive", "scratch"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_trains_and_exports(colors: Path, tmp_path: Path, name: str, strategy: str) -> None:
    side = FAMILIES[name]
    common = {"pretrained": False, "epochs": 1, "batch_size": 8, "augmented_views": 1, "workers": 0, "val": 0.25, "test": 0.25}
    config = TrainConfig.from_options(**{**common, "backbone": name, "strategy": strategy, "input_size": (side, side)})
    run = train(colors, config, tmp_path / "run")
    assert run.record.plan.strategy == strategy and run.record.plan.steps == (0 if strategy == "probe" else 3)
    bundle = export_bundle(run.path, ExportConfig(precisions=("fp32",)), tmp_path / "bundle")
    predictor = edgetl.load(bundle.path)
    assert predictor.predict(next(colors.rglob("*.png"))).label in run.record.labels
