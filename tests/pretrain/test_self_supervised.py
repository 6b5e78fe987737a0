"""Self-supervised continued pretraining: loss, result as a backbone with its lineage, resuming, and errors."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from edgetl.core.files.atomic import write_text
from edgetl.data.folder import scan_unlabeled
from edgetl.errors import BackboneError, ConfigError, DataError
from edgetl.pretrain import loop
from edgetl.pretrain.options import SelfSupervisedConfig
from edgetl.pretrain.unlabeled import self_supervised, writer
from edgetl.pretrain.unlabeled.self_supervised import match, pretrain_self_supervised
from edgetl.pretrain.unlabeled.vicreg import vicreg
from edgetl.train.artifacts.continued import WEIGHTS_NAME, ContinuedRecord
from edgetl.train.artifacts.loading.lineage import find_in_pretraining
from edgetl.train.artifacts.loading.load import load_backbone
from edgetl.train.config.options import BackboneConfig, TrainConfig
from tests.command import Command, edgetl, edgetl_in_one_process
from tests.conftest import write_colors


@pytest.fixture(autouse=True, scope="module")
def _without_conversion() -> Iterator[None]:
    """Compute the features before the training with torch. The conversion to OpenVINO takes longer than the training of these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(self_supervised, "MANY", 0)
        yield


def _config(inputs: Path) -> TrainConfig:
    return TrainConfig.from_options(backbone=f"local-dir:{inputs / 'start'}", device="cpu", workers=0)


def _pretrain(inputs: Path, out: Path, **changes: object) -> ContinuedRecord:
    own = SelfSupervisedConfig.model_validate({"steps": 6, "batch_size": 16, "lr": 1e-3, **changes})
    return pretrain_self_supervised(inputs / "images", out, _config(inputs), own)


@pytest.fixture(scope="module")
def pretrained(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ContinuedRecord]:
    out = tmp_path_factory.mktemp("out") / "pretrained"
    return out, _pretrain(inputs, out)


def test_vicreg_loss_is_that_of_the_code_of_the_paper() -> None:
    rng = np.random.default_rng(0)
    one, two = rng.normal(0, 0.5, (2, 7, 3)).astype(np.float32)
    expected = 25 * ((one - two) ** 2).mean()
    for rows in (one, two):
        covariance = np.cov(rows.T)
        expected += 25 / 2 * np.maximum(0, 1 - np.sqrt(np.diag(covariance) + 1e-4)).mean()
        expected += ((covariance - np.diag(np.diag(covariance))) ** 2).sum() / 3
    assert float(vicreg(torch.from_numpy(one), torch.from_numpy(two))) == pytest.approx(expected, rel=1e-5)


def test_match_is_one_for_equal_views_and_small_for_random_ones() -> None:
    rows = torch.randn(2, 50, 1, 8, generator=torch.Generator().manual_seed(0))
    assert match(rows.expand(-1, -1, 2, -1)) == 1.0
    assert match(torch.randn(2, 50, 2, 8, generator=torch.Generator().manual_seed(1))) < 0.2


@pytest.mark.slow
def test_views_of_real_images_match_more_often_after_the_training(shared: Path, tmp_path: Path) -> None:
    config = TrainConfig.from_options(backbone="edgetl_small", device="cpu")
    record = pretrain_self_supervised(shared / "data/pacs/sketch", tmp_path, config, SelfSupervisedConfig(steps=50))
    assert record.matched_before is not None and record.matched is not None
    assert record.matched > record.matched_before + 0.02


def test_result_loads_with_the_lineage_of_the_start(pretrained: tuple[Path, ContinuedRecord]) -> None:
    out, record = pretrained
    backbone = load_backbone(BackboneConfig(name=f"local-dir:{out}"), 3)
    assert [(item.kind, item.name, item.license) for item in backbone.parents] == [
        ("weights", "start", "mit"),
        ("weights", "pretrained", "mit"),
    ]
    assert record.method == "vicreg" and record.teacher is None and record.images == 120
    assert backbone.weights_sha256 == record.files[WEIGHTS_NAME] and backbone.parents[-1].data_fingerprint == record.data_fingerprint
    assert backbone.spec.mean == (0.4, 0.5, 0.6) and backbone.spec.input_size == (32, 32)


def test_early_stages_and_batchnorm_are_frozen(inputs: Path, pretrained: tuple[Path, ContinuedRecord]) -> None:
    before, after = (safetensors.torch.load_file(folder / WEIGHTS_NAME) for folder in (inputs / "start", pretrained[0]))
    changed = {name for name, value in after.items() if not torch.equal(before[name], value)}
    assert {name.split(".")[0] for name in changed} == {"layer2", "layer3", "layer4"}
    assert not any("bn" in name for name in changed)


def test_unlabeled_images_are_recognized_as_images_of_the_pretraining(inputs: Path, pretrained: tuple[Path, ContinuedRecord]) -> None:
    samples = scan_unlabeled(inputs / "images")
    assert len(find_in_pretraining(samples, BackboneConfig(name=f"local-dir:{pretrained[0]}"))) == len(samples)


def test_changed_weights_are_rejected(inputs: Path, pretrained: tuple[Path, ContinuedRecord], tmp_path: Path) -> None:
    for file in pretrained[0].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / WEIGHTS_NAME).write_bytes((inputs / "start/model.safetensors").read_bytes())
    with pytest.raises(BackboneError, match=r"differs from its hash in self-supervised\.json\. Run edgetl pretrain --ssl again"):
        load_backbone(BackboneConfig(name=f"local-dir:{tmp_path}"), 3)


@pytest.mark.slow
def test_resumed_pretraining_gives_the_same_weights(
    inputs: Path, pretrained: tuple[Path, ContinuedRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(self_supervised, "CHECKPOINT_STEPS", 2)

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "pretraining" and done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        own = SelfSupervisedConfig(steps=6, batch_size=16, lr=1e-3)
        pretrain_self_supervised(inputs / "images", tmp_path, _config(inputs), own, progress=stop)
    assert [path.name for path in tmp_path.iterdir()] == [loop.CHECKPOINT_NAME]
    with pytest.raises(ConfigError, match="belongs to another backbone, images or options"):
        _pretrain(inputs, tmp_path, lr=0.002)
    assert _pretrain(inputs, tmp_path).files[WEIGHTS_NAME] == pretrained[1].files[WEIGHTS_NAME]
    assert not (tmp_path / loop.CHECKPOINT_NAME).exists()


def test_incomplete_folder_is_no_backbone_and_is_completed_by_the_next_call(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(self_supervised, "CHECKPOINT_STEPS", 1)
    for missing in ("self-supervised.json", "config.json"):

        def write(path: Path, text: str, *, missing: str = missing) -> None:
            if path.name == missing:
                raise KeyboardInterrupt
            write_text(path, text)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(writer, "write_text", write)
            _pretrain(inputs, tmp_path, steps=2)
        with pytest.raises(BackboneError):
            load_backbone(BackboneConfig(name=f"local-dir:{tmp_path}"), 3)
    record = _pretrain(inputs, tmp_path, steps=2)
    assert load_backbone(BackboneConfig(name=f"local-dir:{tmp_path}"), 3).weights_sha256 == record.files[WEIGHTS_NAME]


def test_wrong_inputs_are_rejected(inputs: Path, pretrained: tuple[Path, ContinuedRecord], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has other files .*\. Choose another --out"):
        _pretrain(inputs, pretrained[0])
    with pytest.raises(ConfigError, match=r"out is inside the folder of images .*\. Choose another --out"):
        _pretrain(inputs, inputs / "images/out")
    few = write_colors(tmp_path / "few", 3)
    with pytest.raises(DataError, match=r"few has 9 different readable images\. At least 100 are needed\. Add images\."):
        pretrain_self_supervised(few, tmp_path / "a", _config(inputs), SelfSupervisedConfig())
    assert not (tmp_path / "a").exists()
    torchvision = TrainConfig.from_options(backbone="torchvision:squeezenet1_0", pretrained=False)
    with pytest.raises(BackboneError, match="cannot be written in timm's format"):
        pretrain_self_supervised(inputs / "images", tmp_path / "b", torchvision, SelfSupervisedConfig())


def test_folder_that_is_no_run_is_an_error_with_the_name_of_its_weights(pretrained: tuple[Path, ContinuedRecord]) -> None:
    with pytest.raises(
        BackboneError, match=rf"is a folder, but not a run\. If it has weights in timm's format, give local-dir:{pretrained[0]}\."
    ):
        load_backbone(BackboneConfig(name=str(pretrained[0])), 3)


def test_matched_views_that_do_not_rise_are_a_warning(inputs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    record = _pretrain(inputs, tmp_path, steps=1, lr=1e-12)
    assert record.matched == record.matched_before
    assert f"matched views did not rise ({record.matched:.3f} before, {record.matched:.3f} after)" in caplog.text


@pytest.mark.slow
def test_message_of_an_interrupted_command_names_the_checkpoint(inputs: Path, tmp_path: Path) -> None:
    options = ("--backbone", f"local-dir:{inputs / 'start'}", "--steps", 200, "--batch-size", 8, "--workers", 0)
    for name, at in (("early", "training the projection"), ("late", "pretraining")):
        command = Command("pretrain", "--ssl", inputs / "images", *options, "--out", tmp_path / name)
        command.signal(0, at=at)
        while at == "pretraining" and command.is_running() and not (tmp_path / name / loop.CHECKPOINT_NAME).is_file():
            time.sleep(0.05)
        command.signal(signal.SIGINT)
        done = command.wait()
        assert done.returncode == 130
        saved = f". A checkpoint is in {tmp_path / name}. Repeat the command to continue."
        assert done.stderr.splitlines()[-1] == f"interrupted{saved if name == 'late' else '; no incomplete output was kept.'}"
        assert (tmp_path / name).exists() == (name == "late")


def test_command_rejects_options_of_the_other_kind_of_pretraining() -> None:
    commands = {
        "": "there is neither a folder of images nor a recipe. Give unlabeled images with --ssl, or a recipe.",
        "recipe.toml --ssl images": "--ssl images conflicts with the recipe recipe.toml. Give one of them.",
        ".": "the recipe . cannot be read: not a regular file. Give the folder of unlabeled images as --ssl ..",
        "--ssl images --data images": "--ssl images conflicts with --data, which names the images of a recipe. Give one of them.",
        "recipe.toml --seed 1 --steps 9": "options of --ssl, which a recipe sets itself: --seed, --steps. Remove them",
    }
    for done, message in zip(
        edgetl_in_one_process([["pretrain", *text.split(), "--out", "out"] for text in commands]), commands.values(), strict=True
    ):
        assert done.code == 3 and message in done.words


@pytest.mark.slow
def test_command_pretrains_and_trains_on_the_result(inputs: Path, tmp_path: Path) -> None:
    out = tmp_path / "pretrained"
    done = edgetl(
        "pretrain",
        "--ssl",
        inputs / "images",
        "--backbone",
        f"local-dir:{inputs / 'start'}",
        "--steps",
        2,
        "--batch-size",
        16,
        "--out",
        out,
        "--json",
    )
    record = json.loads(done.stdout)
    assert record["steps"] == 2 and record["method"] == "vicreg" and 0 <= record["matched"] <= 1
    trained = edgetl(
        "train", inputs / "images", "--backbone", f"local-dir:{out}", "--strategy", "probe", "--out", tmp_path / "run", "--json"
    )
    facts = json.loads((tmp_path / "run/run.json").read_text())
    assert [item["name"] for item in facts["backbone"]["parents"]] == ["start", "pretrained"]
    assert "are among the images that pretrained" in trained.stdout + trained.stderr + str(facts["alarms"])
