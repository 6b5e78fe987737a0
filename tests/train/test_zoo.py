from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import timm
import torchvision

from edgetl.core.licenses import freedom
from edgetl.errors import BackboneError
from edgetl.train.artifacts.loading.catalogue import catalogue, list_backbones, show_backbone
from edgetl.train.networks.backbone import TORCHVISION, count_macs, torchvision_model
from tests.command import edgetl


def test_catalogue_lists_existing_networks_with_plausible_figures() -> None:
    entries = catalogue()
    assert 20 <= len(entries) <= 35 and len({entry.name for entry in entries}) == len(entries)
    known = set(timm.list_pretrained())
    for entry in entries:
        if entry.name.startswith(TORCHVISION):
            assert entry.name.removeprefix(TORCHVISION) in torchvision.models.list_models()
        else:
            assert entry.name in known, entry.name
            assert entry.crop_pct == timm.get_pretrained_cfg(entry.name).crop_pct, entry.name
        assert entry.top1 is not None and 40 < entry.top1 < 85 and len(entry.note) <= 60


@pytest.mark.parametrize("architecture", ["mobilenetv3_small_050", "lcnet_050", "torchvision:squeezenet1_1"])
def test_catalogue_parameters_and_macs_match_the_network(architecture: str) -> None:
    entry = show_backbone(architecture).entry
    short = architecture.removeprefix(TORCHVISION)
    model = (torchvision.models.get_model(short) if architecture != short else timm.create_model(short)).eval()
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(entry.params_m, rel=0.01)
    assert count_macs(model, (entry.input, entry.input)) / 1e6 == pytest.approx(entry.mmacs, rel=0.03)
    assert torchvision_model("squeezenet1_1", None, 3) is not None


def test_list_backbones_applies_filters() -> None:
    everything = list_backbones().backbones
    small = list_backbones(max_params_m=3.0, max_mmacs=100).backbones
    assert 0 < len(small) < len(everything)
    assert all(item.entry.params_m <= 3.0 and item.entry.mmacs <= 100 for item in small)
    free = list_backbones(policy="commercial").backbones
    assert {freedom(item.entry.license) for item in free} <= {"permissive", "share-alike"} and len(free) < len(everything)
    assert all(item.entry.license == "apache-2.0" for item in list_backbones(license="Apache").backbones)


def test_weights_directory_makes_a_backbone_available_offline(tmp_path: Path) -> None:
    (tmp_path / "lcnet_050.ra2_in1k.safetensors").write_bytes(b"")
    names = [item.entry.name for item in list_backbones(weights_dir=tmp_path, offline=True).backbones]
    assert "lcnet_050.ra2_in1k" in names
    assert show_backbone("lcnet_050", weights_dir=tmp_path).path == str(tmp_path / "lcnet_050.ra2_in1k.safetensors")
    with pytest.raises(
        BackboneError, match=r"resnet5 is not one of the \d+ backbones in the model catalogue.*also accepts any timm or torchvision name"
    ):
        show_backbone("resnet5")


def test_models_command_lists_filters_and_shows_one_backbone() -> None:
    done = edgetl("models", "--max-params", "3", "--json")
    assert done.returncode == 0, done.stderr
    listed = json.loads(done.stdout)["backbones"]
    assert listed and all(item["entry"]["params_m"] <= 3 for item in listed)
    one = edgetl("models", "mobilenetv3_small_100")
    assert one.returncode == 0 and "hard-swish" in one.stdout and "apache-2.0" in one.stdout and "0.875 of the resized image" in one.stdout
    assert edgetl("models", "--max-params", "0.001").returncode == 3
    wrong = edgetl("models", "--license-policy", "free")
    assert wrong.returncode == 2 and "is not one of: any, commercial" in wrong.stderr


def test_missing_network_error_names_the_embedded_backbone(tmp_path: Path, colors: Path) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub"), "EDGETL_WEIGHTS": str(tmp_path)}
    done = edgetl("train", colors, "--backbone", "mobilenetv3_small_100", "--out", tmp_path / "run", environment=environment)
    assert done.returncode == 6, done.stderr
    for part in ("mobilenetv3_small_100", "HF_HUB_OFFLINE forbids", str(tmp_path), "--backbone edgetl_small", "--weights-dir"):
        assert part in done.stderr
    assert not (tmp_path / "run").exists()
