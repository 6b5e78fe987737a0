"""Untrusted model files: they never run code, read other files or open a network connection."""

from __future__ import annotations

import ast
import json
import pickle
import socket
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch

import edgetl
from edgetl.errors import BackboneError
from edgetl.train.artifacts.loading.load import load_backbone
from edgetl.train.config.options import TrainConfig
from edgetl.train.networks.backbone import rebuild
from edgetl.train.networks.model_args import architecture_problem, args_problem
from tests.train.test_input_size import SMALL_SWIN, build_saved


class _Payload:
    """Object that creates a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the code opened a network connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.parametrize(
    "name",
    [
        "checkpoint_path",
        "pretrained",
        "pretrained_cfg",
        "pretrained_cfg_overlay",
        "cache_dir",
        "features_only",
        "scriptable",
        "exportable",
        "pruned",
        "device",
        "block_args",
        "hybrid_backbone",
        "pretrained_model_args",
        "kwargs_filter",
        "feature_cfg",
        "out_indices",
    ],
)
def test_rebuild_rejects_arguments_that_load_files_or_change_the_network(tmp_path: Path, name: str) -> None:
    mark, file = tmp_path / "ran", tmp_path / "payload.pth"
    file.write_bytes(pickle.dumps(_Payload(mark)))
    with pytest.raises(BackboneError, match=f"'{name}' is not an allowed argument"):
        rebuild("test_resnet", {name: str(file)}, 3)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        ({"embed_dim": 10**9}, "embed_dim is not a number"),
        ({"depth": 5000}, "depth is not a number"),
        ({"img_size": [10**6, 10**6]}, "img_size is not a number"),
        ({"img_size": {"a": 1}}, "img_size is not a number"),
        ({"depths": [1] * 100}, "depths is not a number"),
        ({"drop_rate": float("nan")}, "drop_rate is not a number"),
        ({"global_pool": "__import__('os')"}, "global_pool is not a word"),
        ({"in_chans": 1}, "in_chans is not 3"),
        ({"edgetl_pruned": {"conv1": [0, 3, 1]}}, "edgetl_pruned is not a table"),
    ],
)
def test_rebuild_rejects_arguments_of_wrong_type_or_size(args: dict[str, object], reason: str) -> None:
    with pytest.raises(BackboneError, match=reason):
        rebuild("test_vit", args, 3)


@pytest.mark.parametrize("name", ["hf-hub:evil/net", "local-dir:/tmp", "evil/net", "../net", "hf_hub:a", "torchvision:../x", ""])
def test_architecture_name_cannot_be_a_location(no_network: None, name: str) -> None:
    assert architecture_problem(name)
    with pytest.raises(BackboneError):
        rebuild(name, {}, 3)


def test_rebuild_rejects_unknown_architectures_of_both_libraries() -> None:
    for name in ("nothing_like_it", "torchvision:nothing_like_it"):
        with pytest.raises(BackboneError, match="nothing_like_it"):
            rebuild(name, {}, 3)


def test_args_problem_accepts_arguments_that_timm_saves() -> None:
    for args in ({"pad_type": "same"}, {"img_size": 224, "dynamic_img_size": True}, SMALL_SWIN, {"global_pool": "", "class_token": False}):
        assert args_problem(args) is None


@pytest.mark.parametrize("key", ["file", "url", "hf_hub_id", "state_dict", "source", "custom_load", "hf_hub_filename"])
def test_config_json_cannot_set_the_location_of_weights(tmp_path: Path, no_network: None, key: str) -> None:
    """The weights are always the safetensors file of the folder."""
    mark, file = tmp_path / "ran", tmp_path / "payload.pth"
    file.write_bytes(pickle.dumps(_Payload(mark)))
    name = build_saved(tmp_path / "net", "test_resnet", {})
    path = tmp_path / "net" / "config.json"
    config = json.loads(path.read_text())
    config["pretrained_cfg"][key] = {"source": "hf-hub", "custom_load": True, "url": f"file://{file}"}.get(key, str(file))
    path.write_text(json.dumps(config))
    loaded = load_backbone(TrainConfig.from_options(backbone=name).backbone, 3)
    saved = safetensors.torch.load_file(tmp_path / "net" / "model.safetensors")
    assert torch.equal(loaded.model.state_dict()["conv1.0.weight"], saved["conv1.0.weight"]) and not mark.exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"model_args": {"checkpoint_path": "payload.pth"}},
        {"model_args": "checkpoint"},
        {"model_args": [1]},
        {"architecture": "hf-hub:evil/net"},
        {"architecture": None},
        {"pretrained_cfg": {"input_size": "large"}},
        {"pretrained_cfg": {"input_size": [3, 10**7, 10**7]}},
        {"pretrained_cfg": {"mean": "gray"}},
        {"pretrained_cfg": 3},
        {"pretrained_cfg": {"classifier": "nothing"}},
        {"pretrained_cfg": {"first_conv": "nothing"}},
        {"num_classes": -1},
        {"num_classes": 10**12},
    ],
)
def test_hostile_config_json_gives_a_one_line_error(tmp_path: Path, no_network: None, changes: dict[str, object]) -> None:
    name = build_saved(tmp_path / "net", "test_resnet", {}, changes)
    try:
        load_backbone(TrainConfig.from_options(backbone=name).backbone, 3)
    except BackboneError as error:
        assert "\n" not in str(error)
    else:
        assert "pretrained_cfg" in changes, "only the names of layers may be ignored"


def test_folder_with_only_a_pickle_is_rejected(tmp_path: Path) -> None:
    name = build_saved(tmp_path / "net", "test_resnet", {})
    mark = tmp_path / "ran"
    (tmp_path / "net" / "model.safetensors").unlink()
    (tmp_path / "net" / "pytorch_model.bin").write_bytes(pickle.dumps(_Payload(mark)))
    with pytest.raises(BackboneError, match=r"has no model\.safetensors"):
        load_backbone(TrainConfig.from_options(backbone=name).backbone, 3)
    assert not mark.exists()


def test_json_beside_weights_cannot_add_model_arguments(tmp_path: Path) -> None:
    torch.manual_seed(0)
    safetensors.torch.save_file(timm.create_model("test_resnet").state_dict(), tmp_path / "test_resnet.safetensors")
    for facts in ({"checkpoint_path": "x.pth", "custom_load": True, "url": "http://evil"}, {"model_args": {"checkpoint_path": "x"}}):
        (tmp_path / "test_resnet.json").write_text(json.dumps(facts))
        assert load_backbone(TrainConfig.from_options(backbone="test_resnet", weights_dir=str(tmp_path)).backbone, 3).model_args == {}


def test_package_does_not_unpickle() -> None:
    """``torch.load`` has ``weights_only=True``, nothing calls ``pickle.load``, ``eval`` or ``exec``, and four modules build timm models."""
    makers = set()
    for path in Path(edgetl.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            if called == "torch.load":
                assert any(item.arg == "weights_only" and ast.unparse(item.value) == "True" for item in node.keywords), path
            assert called not in (
                "pickle.load",
                "pickle.loads",
                "eval",
                "exec",
                "joblib.load",
                "torch.hub.load",
                "timm.models.load_checkpoint",
            )
            assert not (called == "np.load" and any(item.arg == "allow_pickle" for item in node.keywords)), path
            if called == "timm.create_model":
                makers.add(path.stem)
    assert makers == {"backbone", "build", "input_size", "pretrain"}
