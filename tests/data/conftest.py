"""Fixtures: small folders of real images, and a cache folder for each test."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgetl.data.folder import ImageFolder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Cache folder of the test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Image folder with two classes of three images."""
    return fill(tmp_path / "pets", "dog", "cat")


def noise_image(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8))


def put(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise_image(seed).save(path)
    return path


def fill(root: Path, *classes: str, count: int = 3, seed: int = 0) -> Path:
    """Write ``count`` different images into each class folder."""
    for number, name in enumerate(classes):
        for index in range(count):
            put(root / name / f"{index:03d}.png", seed + 1000 * number + index)
    return root


def paths(folder: ImageFolder) -> list[str]:
    return [sample.path.relative_to(folder.root).as_posix() for sample in folder.samples]
