"""Very small or unusual image sets: the training works, or ends with a clear error."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgetl.errors import ConfigError, DataError, StorageError, TrainingError
from edgetl.train.config.options import TrainConfig
from edgetl.train.workflows.train import train
from tests.command import edgetl
from tests.conftest import write_colors
from tests.disks import small_disk


def _write(root: Path, classes: int, per_class: int, mode: str = "RGB") -> Path:
    rng = np.random.default_rng(0)
    for index in range(classes):
        folder = root / f"class {index:03d}"
        folder.mkdir(parents=True)
        for number in range(per_class):
            noise = rng.integers(0, 60, (20, 20, 3), dtype=np.uint8) + np.uint8(index * 150 // classes)
            Image.fromarray(noise).convert(mode).save(folder / f"{number}.png")
    return root


def _config(**changes: object) -> TrainConfig:
    common = {"backbone": "test_resnet", "pretrained": False, "input_size": (32, 32), "augmented_views": 1, "workers": 0, "epochs": 2}
    return TrainConfig.from_options(**{**common, "strategy": "full", **changes})


@pytest.mark.parametrize("strategy", ["probe", "full", "partial"])
def test_training_works_with_three_images_per_class(tmp_path: Path, strategy: str) -> None:
    run = train(_write(tmp_path / "images", 4, 3), _config(strategy=strategy), tmp_path / "run")
    # With the strategy full, there is a validation split instead of a cross-validation.
    assert run.record.images == ({"train": 4, "val": 4, "test": 4} if strategy == "full" else {"train": 8, "val": 0, "test": 4})


def test_training_works_with_300_classes_of_two_images(tmp_path: Path) -> None:
    run = train(_write(tmp_path / "images", 300, 2), _config(strategy="probe"), tmp_path / "run")
    assert len(run.record.labels) == 300 and sum(run.record.images.values()) == 600


def test_training_rejects_one_image_per_class(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Each class folder needs at least 2"):
        train(_write(tmp_path / "images", 3, 1), _config(), tmp_path / "run")


def test_training_works_with_gray_images(tmp_path: Path) -> None:
    run = train(_write(tmp_path / "images", 2, 12, "L"), _config(epochs=30), tmp_path / "run")
    assert run.record.validation.accuracy.n > 0


def test_class_without_validation_images_is_counted_as_zero(tmp_path: Path) -> None:
    _write(tmp_path / "all", 3, 8)
    for index in range(3):
        for number, path in enumerate(sorted((tmp_path / "all" / f"class {index:03d}").iterdir())):
            part = "val" if number > 5 and index else "train"
            target = tmp_path / "images" / part / path.parent.name
            target.mkdir(parents=True, exist_ok=True)
            path.rename(target / path.name)
    run = train(tmp_path / "images", _config(), tmp_path / "run")
    assert [score.n for score in run.record.validation.classes] == [0, 2, 2]


def test_batches_of_one_image_require_frozen_batchnorm(tmp_path: Path) -> None:
    images = _write(tmp_path / "images", 2, 8)
    with pytest.raises(ConfigError, match="each batch needs at least 2 images"):
        train(images, _config(batch_size=1), tmp_path / "run")
    done = edgetl("train", images, "--out", tmp_path / "run", "--strategy", "full", "--batch-size", 1, "--epochs", 1, "--input-size", 64)
    assert done.returncode == 0, done.stderr


def test_diverged_training_reports_the_remedy_and_leaves_no_run(colors: Path, tmp_path: Path) -> None:
    arguments = (
        "--strategy",
        "full",
        "--augmented-views",
        1,
        "--input-size",
        64,
        "--lr",
        0.3,
        "--backbone-lr",
        0.3,
        "--lr-decay",
        1,
        "--unfreeze",
        1,
    )
    done = edgetl("train", colors, "--out", tmp_path / "run", *arguments)
    assert done.returncode == 10 and "diverged" in done.stderr and "Lower --lr" in done.stderr, done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_missing_shared_memory_ends_with_an_error_that_names_the_remedy(tmp_path: Path) -> None:
    write_colors(tmp_path / "colors", 30, side=100)
    command = [sys.executable, "-m", "edgetl.cli.app", "train", str(tmp_path / "colors"), "--backbone", "test_resnet", "--random-weights"]
    command += ["--input-size", "224", "--workers", "2", "--epochs", "1", "--out", str(tmp_path / "run")]
    script = f"mount -t tmpfs -o size=1m tmpfs /dev/shm || exit 99; exec {shlex.join(command)}"
    done = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True, check=False)
    if done.returncode in (1, 99) and "Traceback" not in done.stderr:
        pytest.skip("a mount namespace of its own needs root on Linux")
    assert done.returncode == TrainingError.exit_code, done.stderr
    assert "--workers 0" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_full_disk_during_a_save_keeps_the_last_state(colors: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "48m") as disk:
        config = _config(epochs=10, checkpoint_s=0.0001, patience=100)

        def fill(stage: str, done: int, total: int) -> None:
            if stage == "fine-tuning" and done == total // 2:
                (disk / "filler").write_bytes(b"x" * (shutil.disk_usage(disk).free - 1000))

        with pytest.raises(StorageError, match="ree some space"):
            train(colors, config, disk / "run", progress=fill)
        assert not (disk / "run").exists()
        (disk / "filler").unlink()
        assert list((disk / "run.checkpoints").glob("step-*.safetensors"))
        resumed = train(colors, config, disk / "run", resume=True)
        whole = train(colors, config, tmp_path / "whole")
        assert resumed.record.files["weights.safetensors"] == whole.record.files["weights.safetensors"]
