"""Training estimate (``edgetl plan``) and preview of augmented images (``--preview``)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgetl.train.config.options import TrainConfig
from edgetl.train.workflows.estimate import estimate
from tests.command import edgetl

SMALL = ("--backbone", "edgetl_small", "--input-size", "64", "--augmented-views", 1)


def test_estimate_reports_time_and_memory_of_each_strategy(digits: Path) -> None:
    found = estimate(digits, TrainConfig.from_options(input_size=(64, 64), augmented_views=1))
    probe, partial, full = found.strategies
    assert [item.plan.strategy for item in found.strategies] == ["probe", "partial", "full"]
    assert [item.chosen for item in found.strategies] == [False, True, False], f"{found.images} images"
    assert probe.plan.steps == 0 and partial.plan.steps == full.plan.steps >= 300
    assert probe.trained_m < partial.trained_m < full.trained_m
    assert 0 < probe.minutes < full.minutes and 0 <= probe.memory_mb < partial.memory_mb < full.memory_mb


def test_plan_command_prints_a_table_or_json(colors: Path) -> None:
    shown = edgetl("plan", colors, *SMALL)
    assert shown.returncode == 0, shown.stderr
    assert "probe *" in shown.stdout and "next: edgetl train" in shown.stdout
    as_json = json.loads(edgetl("plan", colors, *SMALL, "--json").stdout)
    assert [item["chosen"] for item in as_json["strategies"]] == [True, False, False]
    assert [item["validation_images"] for item in as_json["strategies"]] == [0, 0, 6], "probe and partial are cross-validated"
    assert "cross-validation" in shown.stdout and "6 images" in shown.stdout


@pytest.mark.slow
def test_preview_writes_an_image_without_training(colors: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    done = edgetl("train", colors, *SMALL, "--augment", "strong", "--preview", sheet)
    assert done.returncode == 0, done.stderr
    assert sorted(tmp_path.iterdir()) == [tmp_path / "colors", sheet] and "picture:" in done.stdout
    pixels = np.asarray(Image.open(sheet).convert("RGB"))
    assert pixels.shape[1] > 800 and len(np.unique(pixels.reshape(-1, 3), axis=0)) > 200
    unwritable = edgetl("train", colors, *SMALL, "--preview", sheet / "none" / "sheet.png")
    assert unwritable.returncode == 15 and "cannot write" in unwritable.stderr
    neither = edgetl("train", colors)
    assert neither.returncode == 3 and "--out RUN" in neither.stderr
