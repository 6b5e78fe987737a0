"""Intensity rule (``--intensity``): derived from training images, recorded in the run, and inherited by child runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from edgetl.core.images.intensity import FULL_RANGE, Intensity
from edgetl.train.config.options import TrainConfig
from edgetl.train.workflows.train import train


def _twelve_bits(root: Path) -> Path:
    """Write two classes of eight gray 16-bit PNG files with 12-bit values."""
    rng = np.random.default_rng(0)
    for index, label in enumerate(("dark", "light")):
        (root / label).mkdir(parents=True)
        for number in range(8):
            values = rng.integers(1500 * index, 1500 * index + 1200, (24, 24)).astype(np.uint16)
            Image.fromarray(values).save(root / label / f"{number}.png")
    return root


def _config(**changes: object) -> TrainConfig:
    common = {"backbone": "test_resnet", "pretrained": False, "input_size": (32, 32), "augmented_views": 1, "strategy": "probe"}
    return TrainConfig.from_options(**{**common, **changes})


def test_auto_intensity_records_the_bits_in_use_and_child_runs_inherit_them(tmp_path: Path) -> None:
    data = _twelve_bits(tmp_path / "images")
    record = train(data, _config(), tmp_path / "run").record
    assert (record.preprocess.intensity, record.high_bit_images) == (Intensity(high=4095), record.images["train"])
    child = train(data, _config(backbone=str(tmp_path / "run"), pretrained=True), tmp_path / "child").record
    assert child.preprocess.intensity == Intensity(high=4095)


def test_intensity_range_is_recorded_and_8_bit_images_keep_the_full_range(tmp_path: Path) -> None:
    data = _twelve_bits(tmp_path / "images")
    assert train(data, _config(intensity="0,3000"), tmp_path / "run").record.preprocess.intensity == Intensity(high=3000)
    for file in data.rglob("*.png"):
        Image.open(file).convert("L").save(file)
    record = train(data, _config(), tmp_path / "plain").record
    assert (record.preprocess.intensity, record.high_bit_images) == (FULL_RANGE, 0)


def test_unknown_intensity_rule_is_refused() -> None:
    with pytest.raises(ValidationError, match="LOW,HIGH"):
        _config(intensity="brighter")
