"""Pretraining from a recipe: batches, published weights, resuming after an interruption, and errors."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image

from edgetl.errors import BackboneError, ConfigError, DataError, StorageError
from edgetl.pretrain.fractals import draw_fractals
from edgetl.pretrain.images import Views, count_labels, load_pools
from edgetl.pretrain.loop import CHECKPOINT_NAME
from edgetl.pretrain.pretrain import Folders, pretrain
from edgetl.pretrain.recipe import ImageSource, Losses, Recipe, read_recipe
from edgetl.train.artifacts.loading.catalogue import Pretrained
from tests.conftest import write_colors

RECIPE = """
name = "tiny"
architecture = "test_resnet"
license = "apache-2.0"
teacher = "teacher"
side = 32
use_side = 32
steps = 40
batch_size = 16
lr = 0.001
[losses]
features = 1.0
logits = 0.5
labels = 0.5
[[images]]
source = "colors.tar"
grid = 2
weight = 1
[[images]]
source = "colors.tar"
weight = 1
[[images]]
formula = "fractals"
classes = 5
per_class = 4
side = 32
weight = 2
"""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a recipe, a tar file of small images, and a teacher in timm's format with random weights."""
    root = tmp_path_factory.mktemp("pretrain")
    (root / "tiny.toml").write_text(RECIPE)
    write_colors(root / "colors", 8)
    with tarfile.open(root / "colors.tar", "w") as tar:
        tar.add(root / "colors", "colors")
    torch.manual_seed(5)
    teacher = timm.create_model("test_efficientnet", num_classes=7)
    (root / "teacher").mkdir()
    safetensors.torch.save_file(teacher.state_dict(), root / "teacher/model.safetensors")
    cfg = {"input_size": [3, 32, 32], "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "num_classes": 7, "license": "mit"}
    facts = {"architecture": "test_efficientnet", "num_classes": 7, "pretrained_cfg": cfg}
    (root / "teacher/config.json").write_text(json.dumps(facts))
    return root


def _pretrain(inputs: Path, out: Path, **changes: object) -> Pretrained:
    recipe = Recipe.model_validate({**read_recipe(inputs / "tiny.toml").model_dump(), **changes})
    return pretrain(recipe, Folders(out=out, data=inputs, weights=inputs), checkpoint_steps=7)


def test_resumed_pretraining_after_a_kill_gives_the_same_weights(inputs: Path, tmp_path: Path) -> None:
    whole = _pretrain(inputs, tmp_path / "whole")
    child = (
        "import sys; from pathlib import Path; from edgetl.pretrain.pretrain import Folders, pretrain; "
        "from edgetl.pretrain.recipe import read_recipe; root, out = map(Path, sys.argv[1:]); "
        "pretrain(read_recipe(root / 'tiny.toml'), Folders(out=out, data=root, weights=root), checkpoint_steps=7, "
        "progress=lambda stage, done, total: print(done, flush=True) if stage == 'pretraining' else None)"
    )
    stop_at = random.randint(8, 38)
    command = [sys.executable, "-c", child, str(inputs), str(tmp_path / "broken")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) >= stop_at:
                process.send_signal(signal.SIGKILL)
                break
    assert (tmp_path / "broken" / CHECKPOINT_NAME).is_file(), f"no checkpoint after a kill at step {stop_at}"
    assert not (tmp_path / "broken/tiny.safetensors").exists()
    resumed = _pretrain(inputs, tmp_path / "broken")
    assert resumed.weights_sha256 == whole.weights_sha256, f"killed at step {stop_at}"
    assert sorted(os.listdir(tmp_path / "broken")) == ["tiny.hashes.bin", "tiny.json", "tiny.safetensors"]
    assert whole.teacher is not None and (whole.teacher.license, whole.steps) == ("mit", 40)


def test_published_weights_are_half_precision_and_fit_the_architecture(inputs: Path, tmp_path: Path) -> None:
    record = _pretrain(inputs, tmp_path, steps=3)
    tensors = safetensors.torch.load_file(tmp_path / "tiny.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    loaded = timm.create_model("test_resnet", num_classes=0).load_state_dict(tensors, strict=False)
    assert not loaded.unexpected_keys and all(key.endswith("num_batches_tracked") for key in loaded.missing_keys)
    statistics = [tensors[key] for key in tensors if key.endswith("running_mean")]
    assert statistics and all(bool(value.any()) for value in statistics), "BatchNorm has measured statistics"
    assert record.params_m == pytest.approx(0.373, abs=0.001) and record.mmacs > 0


def test_training_lowers_the_loss(inputs: Path, tmp_path: Path) -> None:
    recipe = read_recipe(inputs / "tiny.toml").model_copy(update={"teacher": None, "losses": Losses(labels=1.0), "steps": 60})
    losses: list[float] = []
    from edgetl.pretrain.distillation import Distillation

    step = Distillation.forward

    def recorded(self: Distillation, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        loss = step(self, images, labels)
        losses.append(loss.item())
        return loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Distillation, "forward", recorded)
        pretrain(recipe, Folders(out=tmp_path, data=inputs))
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])


def test_pretrain_rejects_the_checkpoint_of_another_recipe(inputs: Path, tmp_path: Path) -> None:
    recipe = read_recipe(inputs / "tiny.toml")

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "pretraining" and done == 10:
            raise KeyboardInterrupt

    with pytest.raises((KeyboardInterrupt, SystemExit)):
        pretrain(recipe, Folders(out=tmp_path, data=inputs, weights=inputs), checkpoint_steps=7, progress=stop)
    with pytest.raises(ConfigError, match=r"out is inside --data .* which would be changed"):
        pretrain(recipe, Folders(out=inputs / "out", data=inputs))
    with pytest.raises(ConfigError, match="belongs to another recipe, teacher or images"):
        _pretrain(inputs, tmp_path, seed=1)


def test_read_recipe_reports_all_mistakes_together(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(RECIPE.replace("steps = 40", "steps = 0").replace("weight = 2", "weight = 0").replace('"tiny"', '"No Name"'))
    with pytest.raises(ConfigError, match=r"name: .*steps: .*images\.2\.weight: "):
        read_recipe(path)
    path.write_text(RECIPE.replace('teacher = "teacher"', ""))
    with pytest.raises(ConfigError, match="need a teacher"):
        read_recipe(path)
    path.write_text(
        RECIPE.replace('formula = "fractals"', 'source = "folder"').replace(
            '[[images]]\nsource = "colors.tar"\nweight', '[[images]]\nsource = "x"\nweight'
        )
    )
    with pytest.raises(ConfigError, match="needs labeled images"):
        read_recipe(path)
    path.write_text("name = ")
    with pytest.raises(ConfigError, match="is not TOML"):
        read_recipe(path)
    with pytest.raises(ConfigError, match=r"the recipe .* cannot be read"):
        read_recipe(tmp_path / "absent.toml")


def test_missing_input_error_names_the_option(inputs: Path, tmp_path: Path) -> None:
    recipe = read_recipe(inputs / "tiny.toml")
    with pytest.raises(DataError, match=r"colors\.tar are not in .*--data"):
        pretrain(recipe, Folders(out=tmp_path / "out", data=tmp_path / "data", weights=inputs))
    with pytest.raises(BackboneError, match=r"teacher is not in .*--weights-dir"):
        pretrain(recipe, Folders(out=tmp_path, data=inputs, weights=tmp_path))
    other = recipe.model_copy(update={"start": "teacher/model.safetensors"})
    with pytest.raises(BackboneError, match="does not fit test_resnet"):
        pretrain(other, Folders(out=tmp_path, data=inputs, weights=inputs, recipes=inputs))
    (tmp_path / "file").touch()
    with pytest.raises(StorageError):
        pretrain(recipe, Folders(out=tmp_path / "file", data=inputs, weights=inputs))
    with pytest.raises(BackboneError, match="cannot build no_such_net"):
        pretrain(recipe.model_copy(update={"architecture": "no_such_net"}), Folders(out=tmp_path, data=inputs, weights=inputs))


def test_batch_depends_only_on_seed_and_step(inputs: Path) -> None:
    recipe = read_recipe(inputs / "tiny.toml")
    pools = load_pools(recipe, inputs, lambda *_: None)
    assert [len(pool.images) for pool in pools] == [24, 24, 20] and count_labels(pools) == 3 + 5
    views = Views(recipe, pools)
    images, labels = views[3]
    torch.manual_seed(99)
    again, _ = Views(recipe, pools)[3]
    assert torch.equal(images, again) and not torch.equal(images, views[4][0])
    assert images.shape == (16, 3, 32, 32) and images.min() >= -1 and images.max() <= 1
    assert set(labels[8:].tolist()) <= set(range(3, 8)), "the second block contains fractals"
    other = recipe.model_copy(update={"seed": 1})
    assert not torch.equal(images, Views(other, pools)[3][0])


def test_long_image_gives_a_square_at_each_end(tmp_path: Path) -> None:
    (tmp_path / "long").mkdir()
    pixels = np.zeros((20, 60, 3), np.uint8)
    pixels[:, 30:] = 255
    Image.fromarray(pixels).save(tmp_path / "long/a.png")
    (tmp_path / "long/broken.png").write_bytes(b"not an image")
    recipe = Recipe(
        name="long",
        architecture="test_resnet",
        steps=1,
        license="mit",
        losses=Losses(labels=1.0),
        images=(ImageSource(source="long", side=20, weight=1), ImageSource(formula="fractals", classes=2, per_class=1, weight=1)),
    )
    pool, _ = load_pools(recipe, tmp_path, lambda *_: None)
    assert [float(image.float().mean()) for image in pool.images] == [0.0, 255.0]


def test_fractals_are_reproducible_and_differ_between_seeds() -> None:
    fractals = draw_fractals(6, 2, 48, seed=1)
    assert fractals.shape == (12, 3, 48, 48) and np.array_equal(fractals, draw_fractals(6, 2, 48, seed=1))
    assert not np.array_equal(fractals, draw_fractals(6, 2, 48, seed=2))
    assert fractals.std(axis=(1, 2, 3)).min() > 3, "no image is empty"
