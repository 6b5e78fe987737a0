"""Images and small networks for tests of continued pretraining."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch

from tests.conftest import write_colors


def _write_network(folder: Path, architecture: str, license: str) -> None:
    """Write a folder in timm's format with random weights."""
    folder.mkdir()
    model = timm.create_model(architecture, num_classes=7)
    with torch.no_grad():  # gives the BatchNorm layers their statistics
        for _ in range(30):
            model(torch.rand(32, 3, 32, 32) * 2 - 1)
    safetensors.torch.save_file(model.state_dict(), folder / "model.safetensors")
    cfg = {"input_size": [3, 32, 32], "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.2, 0.3], "num_classes": 7, "license": license}
    cfg |= {"classifier": model.pretrained_cfg["classifier"]}
    (folder / "config.json").write_text(json.dumps({"architecture": architecture, "num_classes": 7, "pretrained_cfg": cfg}))


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with 120 images, a start and a teacher."""
    root = tmp_path_factory.mktemp("continued")
    write_colors(root / "images", 40, side=48)
    torch.manual_seed(3)
    _write_network(root / "start", "test_resnet", "mit")
    _write_network(root / "teacher", "test_efficientnet", "cc-by-nc-4.0")
    return root
