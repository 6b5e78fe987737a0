"""Weight files: valid files, damaged files, and files that contain code."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
import torchvision

from edgetl.errors import BackboneError, ConfigError
from edgetl.train.artifacts.loading.catalogue import read_embedded
from edgetl.train.artifacts.loading.load import load_backbone
from edgetl.train.artifacts.loading.weights import load_tensors
from edgetl.train.config.options import TrainConfig
from edgetl.train.config.weights_dir import find_weights


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    torch.manual_seed(3)
    return timm.create_model("test_resnet", num_classes=10)


class _Payload:
    """Object that creates a folder when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.trace),)


def test_load_backbone_rejects_a_truncated_safetensors_file(tmp_path: Path, network: torch.nn.Module) -> None:
    path = tmp_path / "half.safetensors"
    safetensors.torch.save_file(network.state_dict(), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(BackboneError, match=r"half\.safetensors cannot be read as safetensors: .* Download the file again"):
        load_backbone(TrainConfig.from_options(backbone="test_resnet", weights=str(path)).backbone, 3)


def _header(entries: str, *, length: int | None = None, data: bytes = bytes(16)) -> bytes:
    header = entries.encode()
    return (len(header) if length is None else length).to_bytes(8, "little") + header + data


@pytest.mark.parametrize(
    "content",
    [
        _header("{}", length=0),
        _header("{}", length=200_000_000),
        _header("{}", length=2**63),
        _header('{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}'),
        _header('{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[1],"data_offsets":[12,16]}}'),
        _header('{"a":{"dtype":"F32","shape":[4294967296,4294967296,4294967296],"data_offsets":[0,16]}}'),
        _header(
            '{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}', data=bytes(32)
        ),
        _header('{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}'),
    ],
    ids=["no header", "longer than allowed", "longer than any", "overlapping", "hole", "overflow", "twice", "beyond the file"],
)
def test_load_tensors_rejects_a_malformed_safetensors_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "odd.safetensors"
    path.write_bytes(content)
    with pytest.raises(BackboneError, match=r"odd\.safetensors cannot be read as safetensors"):
        load_tensors(path)


def test_load_tensors_rejects_a_pickle_named_safetensors_without_running_it(tmp_path: Path) -> None:
    path = tmp_path / "fake.safetensors"
    torch.save({"a": _Payload(tmp_path / "ran")}, path)
    with pytest.raises(BackboneError, match="cannot be read as safetensors"):
        load_tensors(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("legacy", [False, True])
def test_load_tensors_rejects_a_pth_with_code_without_running_it(tmp_path: Path, legacy: bool) -> None:
    path = tmp_path / "evil.pth"
    torch.save({"state_dict": {"a": torch.zeros(2)}, "x": _Payload(tmp_path / "ran")}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(BackboneError, match=r"evil\.pth contains Python objects other than tensors"):
        load_tensors(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin"])
def test_load_backbone_reads_nested_checkpoints_of_tensors(tmp_path: Path, network: torch.nn.Module, suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    torch.save({"epoch": 3, "state_dict": {f"module.{key}": value for key, value in network.state_dict().items()}}, path)
    backbone = load_backbone(TrainConfig.from_options(backbone="test_resnet", weights=str(path)).backbone, 3)
    assert torch.equal(backbone.model.state_dict()["conv1.0.weight"], network.state_dict()["conv1.0.weight"])
    assert backbone.weights_sha256 == backbone.parents[0].sha256 is not None


def test_load_tensors_reports_why_a_file_cannot_be_read(tmp_path: Path) -> None:
    for name, content, message in (
        ("list.pth", None, "is not a state_dict"),
        ("empty.pth", b"", "cannot be read as torch weights"),
        ("noise.pt", b"\x00\x01noise" * 50, "cannot be read as torch weights|contains Python objects other than tensors"),
        ("model.onnx", b"x", r"is not a weights file\. Supported suffixes: \.safetensors, \.pth"),
        ("absent.safetensors", None, "cannot be read: No such file"),
    ):
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        elif name == "list.pth":
            torch.save([torch.zeros(2)], path)
        with pytest.raises(BackboneError, match=message):
            load_tensors(path)


def test_find_weights_searches_by_name_then_by_its_only_tag(tmp_path: Path) -> None:
    for name in ("a.safetensors", "a.tag.safetensors", "b.tag.pth", "c.one.safetensors", "c.two.safetensors", "d.json"):
        (tmp_path / name).write_bytes(b"{}")
    (tmp_path / "e.tag").mkdir()
    (tmp_path / "e.tag/config.json").write_text("{}")
    assert find_weights("a", tmp_path) == tmp_path / "a.safetensors"
    assert find_weights("a.tag", tmp_path) == tmp_path / "a.tag.safetensors"
    assert find_weights("torchvision:b", tmp_path) == tmp_path / "b.tag.pth"
    assert find_weights("hf-hub:timm/e.tag", tmp_path) == find_weights("e", tmp_path) == tmp_path / "e.tag"
    assert find_weights("d", tmp_path) is None and find_weights("[ab]", tmp_path) is None
    with pytest.raises(BackboneError, match=r"several weights for c: c\.one\.safetensors, c\.two\.safetensors"):
        find_weights("c", tmp_path)
    with pytest.raises(BackboneError, match=r"does not exist.*EDGETL_WEIGHTS"):
        find_weights("a", tmp_path / "absent")


def test_weights_directory_uses_the_settings_in_the_json_beside_the_weights(tmp_path: Path, network: torch.nn.Module) -> None:
    safetensors.torch.save_file(network.state_dict(), tmp_path / "test_resnet.mine.safetensors")
    facts = {"input_size": [3, 96, 160], "mean": [0.4, 0.5, 0.6], "std": [0.1, 0.1, 0.1], "license": "cc-by-nc-4.0"}
    (tmp_path / "test_resnet.mine.json").write_text(json.dumps(facts))
    backbone = load_backbone(TrainConfig.from_options(backbone="test_resnet", weights_dir=str(tmp_path)).backbone, 3)
    assert (backbone.spec.input_size, backbone.spec.mean, backbone.license) == ((96, 160), (0.4, 0.5, 0.6), "cc-by-nc-4.0")
    assert backbone.parents[0].name == "test_resnet.mine.safetensors"
    (tmp_path / "test_resnet.mine.json").write_text("[")
    with pytest.raises(BackboneError, match=r"test_resnet\.mine\.json cannot be read as JSON"):
        load_backbone(TrainConfig.from_options(backbone="test_resnet", weights_dir=str(tmp_path)).backbone, 3)


def test_load_backbone_rejects_a_backbone_for_gray_images(tmp_path: Path, network: torch.nn.Module) -> None:
    safetensors.torch.save_file(network.state_dict(), tmp_path / "test_resnet.safetensors")
    (tmp_path / "test_resnet.json").write_text(json.dumps({"input_size": [1, 96, 96]}))
    with pytest.raises(BackboneError, match=r"needs images with 1 channel\(s\), but edgetl uses 3"):
        load_backbone(TrainConfig.from_options(backbone="test_resnet", weights_dir=str(tmp_path)).backbone, 3)


def test_license_option_applies_only_if_the_weights_state_no_license(tmp_path: Path, network: torch.nn.Module) -> None:
    path = tmp_path / "test_resnet.safetensors"
    safetensors.torch.save_file(network.state_dict(), path)
    config = TrainConfig.from_options(backbone="test_resnet", weights=str(path), license="mit")
    assert load_backbone(config.backbone, 3).license == "mit"
    (tmp_path / "test_resnet.json").write_text(json.dumps({"license": "cc-by-nc-4.0"}))
    assert load_backbone(config.backbone, 3).license == "cc-by-nc-4.0"


def test_random_weights_ignore_the_weights_directory(tmp_path: Path, network: torch.nn.Module) -> None:
    safetensors.torch.save_file(network.state_dict(), tmp_path / "test_resnet.safetensors")
    torch.manual_seed(0)
    backbone = load_backbone(TrainConfig.from_options(backbone="test_resnet", weights_dir=str(tmp_path), pretrained=False).backbone, 3)
    assert not backbone.parents and backbone.weights_sha256 is None
    assert not torch.equal(backbone.model.state_dict()["conv1.0.weight"], network.state_dict()["conv1.0.weight"])


@pytest.mark.parametrize("name", ["edgetl_small", "hf-hub:org/name", "local-dir:somewhere"])
def test_weights_option_conflicts_with_a_name_that_has_its_own_weights(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"conflicts with --backbone .*, which has its own weights"):
        load_backbone(TrainConfig.from_options(backbone=name, weights=str(tmp_path / "x.safetensors")).backbone, 3)
    with pytest.raises(ConfigError, match="conflicts with --random-weights"):
        load_backbone(TrainConfig.from_options(backbone="test_resnet", pretrained=False, weights="x.safetensors").backbone, 3)


def test_unknown_tag_and_invalid_hub_name_give_an_error_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match=r"no weights named mobilenetv3_small_100\.lamb_in1\. Available: .*lamb_in1k"):
        load_backbone(TrainConfig.from_options(backbone="mobilenetv3_small_100.lamb_in1").backbone, 3)
    with pytest.raises(BackboneError, match="is not a valid hub name"):
        load_backbone(TrainConfig.from_options(backbone="hf-hub:not a name").backbone, 3)


def test_torchvision_files_are_read_without_running_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    name = Path(torchvision.models.SqueezeNet1_1_Weights.DEFAULT.url).name
    path = tmp_path / "hub/checkpoints" / name
    path.parent.mkdir(parents=True)
    torch.save({"x": _Payload(tmp_path / "ran")}, path)
    with pytest.raises(BackboneError, match="contains Python objects other than tensors"):
        load_backbone(TrainConfig.from_options(backbone="torchvision:squeezenet1_1").backbone, 3)
    assert not (tmp_path / "ran").exists()
    torch.save(torchvision.models.squeezenet1_1().state_dict(), path)
    backbone = load_backbone(TrainConfig.from_options(backbone="torchvision:squeezenet1_1").backbone, 3)
    assert (backbone.license, backbone.parents[0].name) == ("bsd-3-clause", "squeezenet1_1.IMAGENET1K_V1")
    assert find_weights("torchvision:squeezenet1_1", path.parent) == path


def test_pretraining_record_beside_weights_sets_preprocessing_and_license(tmp_path: Path) -> None:
    weights, record = read_embedded("edgetl_small")
    shutil.copy(weights, tmp_path / "mine.safetensors")
    shutil.copy(weights.with_suffix(".json"), tmp_path / "mine.json")
    backbone = load_backbone(TrainConfig.from_options(backbone=record.architecture, weights=str(tmp_path / "mine.safetensors")).backbone, 3)
    assert backbone.spec == record.preprocess and backbone.license == record.license
    (tmp_path / "mine.json").write_text('{"input_size": 96}')
    with pytest.raises(BackboneError, match=r"mine\.json does not have the keys of timm's pretrained_cfg"):
        load_backbone(TrainConfig.from_options(backbone=record.architecture, weights=str(tmp_path / "mine.safetensors")).backbone, 3)
