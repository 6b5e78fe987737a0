"""Options that the tests of trainings share."""

from __future__ import annotations

from typing import Any

from edgetl.train.config.options import TrainConfig

SMALL: dict[str, Any] = {
    "backbone": "test_resnet",
    "pretrained": False,
    "input_size": (32, 32),
    "val": 0.25,
    "test": 0.25,
    "workers": 0,
    "patience": 100,
}


def small_config(**options: Any) -> TrainConfig:
    """Return the options of a training from random weights that takes about a second, changed and completed by ``options``."""
    return TrainConfig.from_options(**{**SMALL, **options})
