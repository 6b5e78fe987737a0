"""Very many images: a pilot asks whether pretrained weights are worth keeping."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgetl.data.folder import scan
from edgetl.data.split import split
from edgetl.errors import ConfigError
from edgetl.train.config.options import TrainConfig
from edgetl.train.workflows import pilot
from edgetl.train.workflows.compare import train
from edgetl.train.workflows.pilot import LEAST_GAIN, gain_of_pretraining, wants_pilot
from tests.conftest import write_colours

# The embedded backbone on tiny pictures.
SMALL: dict[str, Any] = {
    "input_size": (32, 32),
    "val": 0.25,
    "test": 0.25,
    "workers": 0,
    "epochs": 2,
    "batch_size": 8,
    "augmented_views": 1,
}


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> None:
    """20 training images are very many."""
    monkeypatch.setattr(pilot, "FULL_UP_TO", 20)
    monkeypatch.setattr(pilot, "PILOT_SHARE", 0.6)


def _noise(root: Path, count: int) -> Path:
    """Two classes that no weights tell apart."""
    rng = np.random.default_rng(0)
    for name in ("a1", "b1"):
        (root / name).mkdir(parents=True)
        for index in range(count):
            Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8)).save(root / name / f"{index}.png")
    return root


def test_only_auto_with_more_than_100_000_images_wants_a_pilot(colours: Path, many: None) -> None:
    splits = split(scan(colours))
    assert len(splits.train) > 20 and wants_pilot(splits, TrainConfig())
    assert not wants_pilot(splits, TrainConfig.from_options(strategy="full"))
    assert not wants_pilot(splits, TrainConfig.from_options(pretrained=False))


@pytest.mark.slow
def test_pretrained_features_gain_on_digits_and_not_on_noise(digits: Path, tmp_path: Path) -> None:
    config = TrainConfig.from_options(**SMALL)
    assert gain_of_pretraining(split(scan(_noise(tmp_path / "noise", 40))), config) < LEAST_GAIN
    assert gain_of_pretraining(split(scan(digits)), config.with_options(input_size=(48, 48))) > 0.02


def test_far_pictures_get_a_pilot_and_the_better_start_and_the_record_says_so(tmp_path: Path, many: None) -> None:
    data = write_colours(tmp_path / "colours", 16)
    run = train(data, TrainConfig.from_options(**SMALL), tmp_path / "run")
    full, scratch = run.record.compared
    assert (full.strategy, scratch.strategy) == ("full", "scratch") and full.steps == scratch.steps > 0
    better = "scratch" if scratch.validation.value >= full.validation.value else "full"
    assert run.record.plan.strategy == better
    assert "pretrained features are" in run.record.plan.reason and "a pilot on 14 of 24 training images" in run.record.plan.reason
    assert not (tmp_path / "run.pilot").exists()
    run.load_model()


def test_a_stopped_pilot_is_not_overwritten_unasked(tmp_path: Path, many: None) -> None:
    data = write_colours(tmp_path / "colours", 16)
    states = tmp_path / "run.pilot" / "full.checkpoints"
    states.mkdir(parents=True)
    (states / f"step-00000001-{'0' * 16}.safetensors").touch()
    with pytest.raises(ConfigError, match="--resume, or begin again with --overwrite"):
        train(data, TrainConfig.from_options(**SMALL), tmp_path / "run")
