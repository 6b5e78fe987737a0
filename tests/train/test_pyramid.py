"""Chains of runs: a run is the backbone of the next run, which records all parents and licenses."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch

from edgetl.core.lineage import describe_parent
from edgetl.errors import BackboneError, LicenseError, RunError
from edgetl.export.config import ExportConfig
from edgetl.export.package import export_bundle
from edgetl.pretrain.recipe import read_recipe
from edgetl.train.artifacts.loading.catalogue import embedded_names, read_embedded
from edgetl.train.artifacts.loading.load import load_backbone
from edgetl.train.artifacts.run import Run
from edgetl.train.config.options import TrainConfig
from edgetl.train.config.weights_dir import EMBEDDED_BACKBONE, sha256_of
from edgetl.train.workflows.train import train
from tests.command import edgetl
from tests.conftest import write_colors


@pytest.fixture
def first(colors: Path, tmp_path: Path) -> Run:
    """Linear probe on the embedded backbone."""
    return train(colors, TrainConfig.from_options(augmented_views=1, input_size=(64, 64)), tmp_path / "first")


def test_embedded_backbone_is_the_default_and_matches_its_record(first: Run) -> None:
    assert EMBEDDED_BACKBONE in embedded_names()
    path, record = read_embedded(EMBEDDED_BACKBONE)
    assert path.stat().st_size <= 2_000_000 and sha256_of(path) == record.weights_sha256
    assert read_recipe(path.with_suffix(".toml")).digest() == record.recipe_sha256, "the recipe beside the weights is the recorded one"
    (parent,) = first.record.backbone.parents
    assert (parent.kind, parent.name, parent.sha256) == ("embedded", EMBEDDED_BACKBONE, record.weights_sha256)
    assert first.record.backbone.license == record.license
    assert parent.data_fingerprint == record.images_sha256


def test_chain_of_runs_records_all_parents(first: Run, tmp_path: Path) -> None:
    write_colors(tmp_path / "more", 12, seed=3)
    config = TrainConfig.from_options(backbone=str(first.path), strategy="full", epochs=1, augmented_views=1)
    second = train(tmp_path / "more", config, tmp_path / "second")
    third = train(tmp_path / "more", TrainConfig.from_options(backbone=str(second.path), augmented_views=1), tmp_path / "third")
    parents = third.record.backbone.parents
    assert [parent.kind for parent in parents] == ["embedded", "run", "run"]
    assert [parent.sha256 for parent in parents[1:]] == [first.digest(), second.digest()]
    assert [parent.data_fingerprint for parent in parents[1:]] == [first.record.data_fingerprint, second.record.data_fingerprint]
    assert third.record.preprocess.input_size == (64, 64), "the preprocessing is inherited with the weights"
    trained, kept = second.load_model().state_dict(), third.load_model().state_dict()
    body = [key for key in trained if not key.startswith(second.record.backbone.head_name)]
    assert all(torch.equal(trained[key], kept[key]) for key in body), "a probe does not change the backbone"
    bundle = export_bundle(third.path, ExportConfig(precisions=("fp32",), formats=("onnx",)), tmp_path / "bundle")
    assert bundle.manifest.lineage.parents == parents
    card = (bundle.path / "card.md").read_text()
    assert all(describe_parent(parent) in card for parent in parents)
    shown = edgetl("inspect", bundle.path)
    assert shown.stdout.count("made from") == 3 and f"run {second.record.name}" in shown.stdout


def test_run_has_the_most_restrictive_license_of_its_parents(colors: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = tmp_path / "test_resnet.safetensors"
    safetensors.torch.save_file(timm.create_model("test_resnet").state_dict(), path)
    config = TrainConfig.from_options(
        backbone="test_resnet", weights=str(path), license="cc-by-nc-4.0", augmented_views=1, input_size=(64, 64)
    )
    run = train(colors, config, tmp_path / "research")
    as_timm_folder = load_backbone(TrainConfig.from_options(backbone=f"local-dir:{run.path}").backbone, 3)
    assert as_timm_folder.license == "cc-by-nc-4.0" and [parent.kind for parent in as_timm_folder.parents] == ["weights", "run"]
    again = TrainConfig.from_options(backbone=str(run.path), augmented_views=1)
    assert load_backbone(again.backbone, 3).license == "cc-by-nc-4.0"
    with pytest.raises(LicenseError, match=r"cc-by-nc-4\.0, which forbids commercial use"):
        train(colors, again.with_options(license_policy="commercial"), tmp_path / "refused")
    assert not (tmp_path / "refused").exists()


def test_train_command_logs_the_license_before_training_and_applies_the_policy(colors: Path, tmp_path: Path) -> None:
    path = tmp_path / "test_resnet.safetensors"
    safetensors.torch.save_file(timm.create_model("test_resnet").state_dict(), path)
    common = ("train", colors, "--backbone", "test_resnet", "--weights", path, "--augmented-views", 1, "--input-size", 64)
    done = edgetl(*common, "--license", "mit", "--license-policy", "commercial", "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    license_logged = done.stderr.index("backbone test_resnet, license of the weights: mit")
    assert license_logged < done.stderr.index("fitting the head")
    refused = edgetl(*common, "--license-policy", "commercial", "--out", tmp_path / "no")
    assert refused.returncode == 16 and "without a stated license" in refused.stderr
    wrong = edgetl(*common, "--license-policy", "whatever", "--out", tmp_path / "no")
    assert wrong.returncode == 2 and "--license-policy" in wrong.stderr


def test_load_backbone_rejects_a_damaged_run_and_an_unknown_embedded_name(first: Run) -> None:
    weights = first.path / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(RunError, match="changed since the training"):
        load_backbone(TrainConfig.from_options(backbone=str(first.path)).backbone, 3)
    with pytest.raises(BackboneError, match=r"edgetl_huge is not an embedded backbone\. This installation contains: edgetl_small"):
        read_embedded("edgetl_huge")
