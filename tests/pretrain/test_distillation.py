"""Distillation on unlabeled images: result as a backbone with its lineage, resuming, and errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from edgetl.data.folder import scan_unlabeled
from edgetl.errors import BackboneError, ConfigError, DataError
from edgetl.pretrain import loop
from edgetl.pretrain.options import DistillConfig
from edgetl.pretrain.unlabeled import distillation
from edgetl.pretrain.unlabeled.distillation import distill_unlabeled
from edgetl.train.artifacts.continued import RECORD_NAMES, WEIGHTS_NAME, ContinuedRecord
from edgetl.train.artifacts.loading.lineage import find_in_pretraining
from edgetl.train.artifacts.loading.load import load_backbone
from edgetl.train.config.options import BackboneConfig, TrainConfig
from tests.command import edgetl
from tests.conftest import write_colors


def _distill(inputs: Path, out: Path, **changes: object) -> ContinuedRecord:
    own = DistillConfig.model_validate({"teacher": f"local-dir:{inputs / 'teacher'}", "steps": 12, "batch_size": 16, **changes})
    config = TrainConfig.from_options(backbone=f"local-dir:{inputs / 'start'}", device="cpu", workers=0)
    return distill_unlabeled(inputs / "images", out, config, own)


@pytest.fixture(scope="module")
def distilled(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ContinuedRecord]:
    out = tmp_path_factory.mktemp("out") / "distilled"
    return out, _distill(inputs, out)


@pytest.mark.slow
def test_distillation_explains_more_of_the_teachers_features(shared: Path, tmp_path: Path) -> None:
    config = TrainConfig.from_options(backbone="edgetl_small", device="cpu")
    teacher = f"local-dir:{shared / 'weights/mobilenetv2_100.imagenet'}"
    record = distill_unlabeled(shared / "data/pacs/sketch", tmp_path, config, DistillConfig(teacher=teacher, steps=60))
    assert record.explained_before is not None and record.explained is not None
    assert record.explained > record.explained_before + 0.05


def test_distilled_backbone_loads_with_the_lineage_of_teacher_and_start(distilled: tuple[Path, ContinuedRecord]) -> None:
    out, record = distilled
    backbone = load_backbone(BackboneConfig(name=f"local-dir:{out}"), 3)
    assert [(item.kind, item.name, item.license) for item in backbone.parents] == [
        ("teacher", "teacher", "cc-by-nc-4.0"),
        ("weights", "start", "mit"),
        ("weights", "distilled", "cc-by-nc-4.0"),
    ]
    assert backbone.license == "cc-by-nc-4.0"
    assert backbone.weights_sha256 == record.files[WEIGHTS_NAME]
    assert backbone.parents[-1].data_fingerprint == record.data_fingerprint
    saved = safetensors.torch.load_file(out / WEIGHTS_NAME)
    loaded = backbone.model.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in saved.items())
    assert set(loaded) - set(saved) == {"fc.weight", "fc.bias"}
    assert backbone.spec.mean == (0.4, 0.5, 0.6) and backbone.spec.input_size == (32, 32)


def test_unlabeled_images_are_recognized_as_images_of_the_pretraining(inputs: Path, distilled: tuple[Path, ContinuedRecord]) -> None:
    samples = scan_unlabeled(inputs / "images")
    assert len(find_in_pretraining(samples, BackboneConfig(name=f"local-dir:{distilled[0]}"))) == len(samples)
    assert not find_in_pretraining(samples, BackboneConfig(name=f"local-dir:{inputs / 'start'}"))


def test_changed_weights_are_rejected(inputs: Path, distilled: tuple[Path, ContinuedRecord], tmp_path: Path) -> None:
    for file in distilled[0].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / WEIGHTS_NAME).write_bytes((inputs / "start/model.safetensors").read_bytes())
    with pytest.raises(BackboneError, match=r"is missing or differs from its hash in distillation\.json\. Run edgetl distill again"):
        load_backbone(BackboneConfig(name=f"local-dir:{tmp_path}"), 3)


def test_record_of_the_first_version_is_read(distilled: tuple[Path, ContinuedRecord], tmp_path: Path) -> None:
    for file in distilled[0].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    path = tmp_path / RECORD_NAMES["distillation"]
    record = json.loads(path.read_text())
    for key in ("method", "matched_before", "matched"):
        del record[key]
    path.write_text(json.dumps(record))
    assert load_backbone(BackboneConfig(name=f"local-dir:{tmp_path}"), 3).parents[-1].name == "distilled"


@pytest.mark.slow
def test_resumed_distillation_gives_the_same_weights(
    inputs: Path, distilled: tuple[Path, ContinuedRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distillation, "CHECKPOINT_STEPS", 5)

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "pretraining" and done == 7:
            raise KeyboardInterrupt

    own = DistillConfig(teacher=f"local-dir:{inputs / 'teacher'}", steps=12, batch_size=16)
    config = TrainConfig.from_options(backbone=f"local-dir:{inputs / 'start'}", device="cpu", workers=0)
    with pytest.raises(KeyboardInterrupt):
        distill_unlabeled(inputs / "images", tmp_path, config, own, progress=stop)
    assert [path.name for path in tmp_path.iterdir()] == [loop.CHECKPOINT_NAME]
    with pytest.raises(ConfigError, match="belongs to another backbone, teacher, images or options"):
        _distill(inputs, tmp_path, lr=0.002)
    assert _distill(inputs, tmp_path).files[WEIGHTS_NAME] == distilled[1].files[WEIGHTS_NAME]
    assert not (tmp_path / loop.CHECKPOINT_NAME).exists()


def test_distillation_rejects_wrong_inputs(inputs: Path, distilled: tuple[Path, ContinuedRecord], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has other files .*\. Choose another --out"):
        _distill(inputs, distilled[0])
    with pytest.raises(ConfigError, match=r"out is inside the folder of images .*\. Choose another --out"):
        _distill(inputs, inputs / "images/out")
    assert not (inputs / "images/out").exists()
    with pytest.raises(ConfigError, match=r"there is no teacher\. Give a larger network with --teacher"):
        _distill(inputs, tmp_path / "a", teacher=None)
    with pytest.raises(ConfigError, match="is the backbone itself"):
        _distill(inputs, tmp_path / "b", teacher=f"local-dir:{inputs / 'start'}")
    config = TrainConfig.from_options(backbone=f"local-dir:{inputs / 'start'}")
    few = write_colors(tmp_path / "few", 3)
    with pytest.raises(BackboneError, match="gone"):  # before the images are read
        distill_unlabeled(few, tmp_path / "c", config, DistillConfig(teacher=f"local-dir:{inputs / 'gone'}"))
    with pytest.raises(DataError, match=r"few has 9 different readable images\. At least 100 are needed\. Add images\."):
        distill_unlabeled(few, tmp_path / "c", config, DistillConfig(teacher=f"local-dir:{inputs / 'teacher'}"))
    torchvision = TrainConfig.from_options(backbone="torchvision:squeezenet1_0", pretrained=False)
    with pytest.raises(BackboneError, match="cannot be written in timm's format"):
        distill_unlabeled(inputs / "images", tmp_path / "d", torchvision, DistillConfig(teacher=f"local-dir:{inputs / 'teacher'}"))


@pytest.mark.slow
def test_command_distills_and_trains_on_the_result(inputs: Path, tmp_path: Path) -> None:
    out = tmp_path / "distilled"
    names = ("--backbone", f"local-dir:{inputs / 'start'}", "--teacher", f"local-dir:{inputs / 'teacher'}")
    done = edgetl("distill", inputs / "images", *names, "--steps", 2, "--batch-size", 16, "--out", out, "--json")
    record = json.loads(done.stdout)
    assert record["steps"] == 2 and record["license"] == "cc-by-nc-4.0"
    trained = edgetl(
        "train", inputs / "images", "--backbone", f"local-dir:{out}", "--strategy", "probe", "--out", tmp_path / "run", "--json"
    )
    facts = json.loads((tmp_path / "run/run.json").read_text())
    assert [item["kind"] for item in facts["backbone"]["parents"]] == ["teacher", "weights", "weights"]
    assert "are among the images that pretrained" in trained.stdout + trained.stderr + str(facts["alarms"])
