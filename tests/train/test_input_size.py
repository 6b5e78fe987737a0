"""Input size (``--input-size``) of networks with a fixed input size (ViT, Swin)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch

from edgetl.errors import ConfigError
from edgetl.export.config import ExportConfig
from edgetl.export.package import export_bundle
from edgetl.runtime.predictor import load
from edgetl.train.artifacts.loading.load import load_backbone
from edgetl.train.artifacts.run import Run, open_run
from edgetl.train.config.options import TrainConfig
from edgetl.train.workflows.train import train
from tests.conftest import write_colors

SMALL_SWIN = {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 4]}
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("vit_tiny_patch16_224", {"depth": 2, "embed_dim": 48, "num_heads": 3}),
    "swin": ("swin_tiny_patch4_window7_224", SMALL_SWIN),
    "swinv2": ("swinv2_tiny_window8_256", SMALL_SWIN),
}


def build_saved(folder: Path, architecture: str, model_args: dict[str, Any], more: dict[str, object] | None = None) -> str:
    """Save a network with random weights in timm's format, and return its name for ``--backbone``."""
    folder.mkdir()
    torch.manual_seed(0)
    model = timm.create_model(architecture, num_classes=5, **model_args)
    safetensors.torch.save_file(model.state_dict(), folder / "model.safetensors")
    keys = ("input_size", "fixed_input_size", "interpolation", "crop_pct", "mean", "std", "first_conv", "classifier")
    cfg = {key: model.pretrained_cfg[key] for key in keys} | {"num_classes": 5}
    (folder / "config.json").write_text(
        json.dumps({"architecture": architecture, "num_classes": 5, "model_args": model_args, "pretrained_cfg": cfg, **(more or {})})
    )
    return f"local-dir:{folder}"


def _trained(tmp_path: Path, kind: str, **changes: object) -> Run:
    data = write_colors(tmp_path / "colors", 8)
    backbone = build_saved(tmp_path / "net", *NETWORKS[kind])
    given = {"backbone": backbone, "strategy": "full", "input_size": (64, 96), "epochs": 1, "val": 0.25, "test": 0.0, "augmented_views": 1}
    return train(data, TrainConfig.from_options(**{**given, "workers": 0, **changes}), tmp_path / "run")


@pytest.mark.parametrize("kind", ["vit", "swin", "swinv2"])
def test_transformer_run_at_another_input_size_is_rebuilt_by_edgetl_and_timm(tmp_path: Path, kind: str) -> None:
    run = _trained(tmp_path, kind)
    assert run.record.preprocess.input_size == (64, 96)
    assert run.record.backbone.model_args["img_size"] == [64, 96]
    ours, theirs = run.load_model(), timm.create_model(f"local-dir:{run.path}", pretrained=True).eval()
    images = torch.rand(2, 3, 64, 96)
    with torch.inference_mode():
        assert torch.equal(ours(images), theirs(images))
    # A run that starts from this run may have another input size.
    backbone = load_backbone(TrainConfig.from_options(backbone=str(run.path), input_size=(96, 96)).backbone, 3)
    assert backbone.model_args["img_size"] == [96, 96] and backbone.parents[-1].kind == "run"
    with torch.inference_mode():
        assert backbone.model(torch.rand(1, 3, 96, 96)).shape == (1, 3)


def test_input_size_interpolates_position_embeddings_and_keeps_other_weights(tmp_path: Path) -> None:
    name = build_saved(tmp_path / "net", *NETWORKS["vit"])
    own = load_backbone(TrainConfig.from_options(backbone=name).backbone, 5).model.state_dict()
    sized = load_backbone(TrainConfig.from_options(backbone=name, input_size=(112, 112)).backbone, 5).model.state_dict()
    assert own["pos_embed"].shape[1] == 1 + 14 * 14 and sized["pos_embed"].shape[1] == 1 + 7 * 7
    torch.testing.assert_close(sized["pos_embed"][:, 1:].mean(dim=1), own["pos_embed"][:, 1:].mean(dim=1), atol=5e-3, rtol=0)
    for key, value in own.items():
        assert key == "pos_embed" or torch.equal(sized[key], value), key


def test_input_size_error_lists_the_nearest_multiples_of_the_patch_size(tmp_path: Path) -> None:
    name = build_saved(tmp_path / "net", *NETWORKS["vit"])
    with pytest.raises(ConfigError, match=r"100,100.*16 x 16 pixels.*Nearest supported sizes: 96,96 and 112,112\."):
        load_backbone(TrainConfig.from_options(backbone=name, input_size=(100, 100)).backbone, 3)


def test_torchvision_vit_refuses_another_input_size_and_swin_accepts_it() -> None:
    with pytest.raises(ConfigError, match=r"does not support this size: .* to use 224 x 224, or use timm's"):
        load_backbone(TrainConfig.from_options(backbone="torchvision:vit_b_32", pretrained=False, input_size=(128, 128)).backbone, 3)
    assert load_backbone(
        TrainConfig.from_options(backbone="torchvision:swin_t", pretrained=False, input_size=(64, 64)).backbone, 3
    ).spec.input_size == (64, 64)


def test_convolutional_network_needs_no_argument_for_another_input_size() -> None:
    assert (
        load_backbone(TrainConfig.from_options(backbone="test_resnet", pretrained=False, input_size=(72, 40)).backbone, 3).model_args == {}
    )


def test_transformer_at_another_input_size_is_exported_and_export_error_names_a_working_command(tmp_path: Path) -> None:
    run = _trained(tmp_path, "vit", strategy="probe", input_size=(64, 64))
    config = ExportConfig(formats=("onnx",), precisions=("fp32",))
    bundle = export_bundle(run.path, config, tmp_path / "bundle")
    assert bundle.manifest.preprocess.input_size == (64, 64)
    prediction = load(bundle.path).predict(run.samples("val")[0].path)
    assert prediction.label in run.record.labels
    with pytest.raises(ConfigError, match=r"Export without --input-size, or train at this size: edgetl train DATA --input-size 96,96"):
        export_bundle(run.path, config.model_copy(update={"input_size": 96}), tmp_path / "other")
    again = TrainConfig.from_options(backbone=str(run.path), strategy="probe", input_size=(96, 96), val=0.25, augmented_views=1, workers=0)
    assert open_run(train(tmp_path / "colors", again, tmp_path / "larger").path).record.preprocess.input_size == (96, 96)


def test_progressive_training_keeps_the_input_size_of_the_previous_network(tmp_path: Path) -> None:
    run = _trained(tmp_path, "vit", strategy="probe", input_size=(64, 64))
    given = {"backbone": str(run.path), "forgetting": "progressive", "strategy": "full", "epochs": 1, "val": 0.25, "augmented_views": 1}
    for size, kept in (((64, 64), True), ((96, 96), False)):
        config = TrainConfig.from_options(**{**given, "input_size": size, "workers": 0})
        if kept:
            assert train(tmp_path / "colors", config, tmp_path / "same").record.backbone.columns
        else:
            with pytest.raises(
                ConfigError, match="keeps the previous network unchanged, but this network does not accept images of --input-size"
            ):
                train(tmp_path / "colors", config, tmp_path / "other")
