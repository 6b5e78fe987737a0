"""Image towers of DINO, CLIP and SimCLR with random weights, as backbone and as teacher, and the zero-shot head of CLIP."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import timm
import torch
import torch.nn.functional as F
from timm.models import save_for_hf

from edgetl.core.preprocess import preprocess
from edgetl.data.folder import scan
from edgetl.errors import ConfigError
from edgetl.export import ExportConfig, export_bundle
from edgetl.train import train
from edgetl.train.artifacts.loading.load import load_backbone, load_published
from edgetl.train.artifacts.run import open_run
from edgetl.train.config.options import BackboneConfig, TrainConfig
from edgetl.train.heads.zero_shot import read_text_embeddings
from tests.command import edgetl

SMALL_VIT = {"img_size": 32, "embed_dim": 32, "depth": 1, "num_heads": 2}
# Architecture, arguments, and number of outputs of the published head. DINO and SimCLR publish no head, CLIP its projection.
TOWERS: dict[str, tuple[str, dict[str, Any], int]] = {
    "dino": ("vit_small_patch16_224.dino", SMALL_VIT, 0),
    # Untrained layer scales of 1e-5 would hide the image from the class token.
    "dinov2": ("vit_small_patch14_reg4_dinov2", {**SMALL_VIT, "img_size": 28, "init_values": 1.0}, 0),
    "clip": ("vit_base_patch16_clip_224", SMALL_VIT, 16),
    "siglip": ("vit_base_patch16_siglip_224", SMALL_VIT, 0),
    "simclr": ("resnet10t", {}, 0),
    "clip-resnet": ("resnet50_clip.openai", {"img_size": 64}, 1024),
}
QUICK = [name for name in TOWERS if name != "clip-resnet"]
# One of 6 validation images may change, because random weights have no margin.
EXPORT = ExportConfig(precisions=("fp32", "int8"), max_drop=0.5)
EXPORTED = {"onnx-fp32", "onnx-int8", "openvino-fp32", "openvino-int8"}


def save_tower(name: str, folder: Path) -> str:
    """Write a tower with random weights as a folder in timm's format, and return its name for ``--backbone``."""
    architecture, args, outputs = TOWERS[name]
    torch.manual_seed(0)
    model = timm.create_model(architecture, num_classes=outputs, **args)
    save_for_hf(model, str(folder), model_args=args, safe_serialization=True)
    return f"local-dir:{folder}"


def read_images(backbone: str, data: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the preprocessed images of ``data`` and their classes."""
    spec, samples = load_backbone(BackboneConfig(name=backbone), 3).spec, scan(data).samples
    images = np.stack([preprocess(sample.path, spec) for sample in samples])
    return torch.from_numpy(images), torch.tensor([sample.label for sample in samples])


def save_class_means(backbone: str, data: Path, path: Path) -> None:
    """Write the mean projected feature of each class, without the mean of all images, in place of text embeddings.

    The features of random weights are nearly parallel.
    """
    published = load_published(BackboneConfig(name=backbone))
    assert published is not None
    images, labels = read_images(backbone, data)
    with torch.inference_mode():
        rows = F.normalize(published.eval()(images), dim=1)
    rows = rows - rows.mean(dim=0)
    means: dict[str, Any] = {name: rows[labels == index].mean(dim=0).numpy() for index, name in enumerate(scan(data).labels)}
    np.savez(path, **means)


def zero_shot(backbone: str, embeddings: Path) -> TrainConfig:
    return TrainConfig.from_options(backbone=backbone, strategy="probe", head="text", text_embeddings=str(embeddings), val=0.25, test=0.25)


@pytest.mark.parametrize("name", QUICK)
def test_image_tower_loads_from_a_folder_and_gets_a_head(name: str, tmp_path: Path) -> None:
    backbone = load_backbone(BackboneConfig(name=save_tower(name, tmp_path), license="mit"), 3)
    side = TOWERS[name][1].get("img_size", backbone.spec.input_size[0])
    assert backbone.spec.input_size == (side, side) and backbone.license is not None and len(backbone.parents) == 1
    with torch.inference_mode():
        logits = backbone.model.eval()(torch.rand(2, 3, side, side))
    assert logits.shape == (2, 3) and logits.isfinite().all()


def test_text_head_computes_the_cosine_of_projected_image_and_text(colors: Path, tmp_path: Path) -> None:
    name, embeddings = save_tower("clip", tmp_path / "tower"), tmp_path / "text.npz"
    save_class_means(name, colors, embeddings)
    run = train(colors, zero_shot(name, embeddings), tmp_path / "run")
    assert run.record.head.describe() == "text (zero-shot, embeddings of 16 values)" and run.record.plan.steps == 0
    images, _ = read_images(name, colors)
    published, text = load_published(BackboneConfig(name=name)), torch.from_numpy(read_text_embeddings(embeddings, run.record.labels))
    assert published is not None
    with torch.inference_mode():
        expected = 100 * (F.normalize(published.eval()(images), dim=1) @ text.T - 1)
        torch.testing.assert_close(open_run(run.path).load_model().eval()(images), expected, rtol=1e-4, atol=1e-3)


def test_text_embeddings_are_read_by_name_or_in_the_order_of_the_classes(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)
    np.savez(tmp_path / "a.npz", glass=rows[1], paper=rows[0], other=rows[0])
    safetensors.numpy.save_file({"glass": rows[1], "paper": rows[0]}, tmp_path / "a.safetensors")
    np.save(tmp_path / "a.npy", rows)
    expected = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    for suffix in ("npz", "safetensors", "npy"):
        np.testing.assert_array_equal(read_text_embeddings(tmp_path / f"a.{suffix}", ("paper", "glass")), expected)


def test_unusable_text_embeddings_give_an_error_with_the_remedy(tmp_path: Path) -> None:
    cases: tuple[tuple[str, dict[str, Any], str], ...] = (
        ("missing", {"paper": np.ones(4)}, "has no vector for glass. Its names are paper"),
        ("sizes", {"paper": np.ones(4), "glass": np.ones(5)}, "does not have one vector of floating-point numbers per class"),
        ("zeros", {"paper": np.ones(4), "glass": np.zeros(4)}, "has a vector of zeros"),
        ("objects", {"paper": np.array([{}], dtype=object), "glass": np.ones(4)}, "cannot be read: Object arrays"),
    )
    for name, arrays, message in cases:
        np.savez(tmp_path / f"{name}.npz", **arrays)
        with pytest.raises(ConfigError, match=message):
            read_text_embeddings(tmp_path / f"{name}.npz", ("paper", "glass"))
    np.save(tmp_path / "rows.npy", np.ones((3, 4)))
    with pytest.raises(ConfigError, match="but the images have 2 classes"):
        read_text_embeddings(tmp_path / "rows.npy", ("paper", "glass"))
    (tmp_path / "text.pt").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"is not a \.npz, \.safetensors or \.npy file"):
        read_text_embeddings(tmp_path / "text.pt", ("paper", "glass"))


def test_text_head_rejects_embeddings_of_another_tower(colors: Path, tmp_path: Path) -> None:
    name = save_tower("clip", tmp_path / "tower")
    np.save(tmp_path / "text.npy", np.ones((3, 8), np.float32))
    with pytest.raises(ConfigError, match="the text embeddings have 8 values, but the backbone projects images to 16"):
        train(colors, zero_shot(name, tmp_path / "text.npy"), tmp_path / "run")
    for options, message in (
        ({"head": "text"}, "--head text and --text-embeddings FILE belong together"),
        ({"head": "text", "text_embeddings": str(tmp_path / "text.npy"), "pretrained": False}, "--head text needs the pretrained weights"),
    ):
        with pytest.raises(ConfigError, match=message):
            train(colors, TrainConfig.from_options(backbone=name, strategy="probe", **options), tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("name", TOWERS)
def test_image_tower_trains_teaches_and_exports_to_int8(name: str, colors: Path, tmp_path: Path) -> None:
    backbone = save_tower(name, tmp_path / "tower")
    common = {"augmented_views": 1, "epochs": 2, "batch_size": 8}
    run = train(colors, TrainConfig.from_options(backbone=backbone, strategy="partial", **common), tmp_path / "run")
    bundle = export_bundle(run.path, EXPORT, tmp_path / "bundle")
    assert {variant.name for variant in bundle.manifest.variants} == EXPORTED
    config = TrainConfig.from_options(
        backbone="test_byobnet", pretrained=False, input_size=(32, 32), strategy="scratch", teacher=backbone, **common
    )
    student = train(colors, config, tmp_path / "student").record.backbone
    assert [parent.kind for parent in student.parents] == ["teacher"] and not student.pretrained


@pytest.mark.slow
@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_text_head_exports_to_int8(name: str, colors: Path, tmp_path: Path) -> None:
    backbone, embeddings = save_tower(name, tmp_path / "tower"), tmp_path / "text.npz"
    if name == "clip":
        save_class_means(backbone, colors, embeddings)
    else:
        rows: dict[str, Any] = {label: np.random.default_rng(index).normal(size=32) for index, label in enumerate(scan(colors).labels)}
        np.savez(embeddings, **rows)
    run = train(colors, zero_shot(backbone, embeddings), tmp_path / "run")
    bundle = export_bundle(run.path, EXPORT, tmp_path / "bundle")
    assert {variant.name for variant in bundle.manifest.variants} == EXPORTED
    assert "text (zero-shot" in (bundle.path / "card.md").read_text("utf-8")


@pytest.mark.slow
def test_image_tower_of_a_hub_trains_from_the_cache_without_network(colors: Path, tmp_path: Path) -> None:
    save_tower("clip", tmp_path / "tower")
    cached = tmp_path / "home/hub/models--org--tower"
    shutil.copytree(tmp_path / "tower", cached / "snapshots" / ("0" * 40))
    (cached / "refs").mkdir()
    (cached / "refs/main").write_text("0" * 40)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    options = ("--backbone", "hf-hub:org/tower", "--augmented-views", "1", "--json")
    done = edgetl("train", colors, *options, "--out", tmp_path / "run", environment=environment)
    assert done.returncode == 0, done.stderr
    (parent,) = json.loads(done.stdout)["backbone"]["parents"]
    assert parent["kind"] == "weights" and parent["sha256"] is not None
