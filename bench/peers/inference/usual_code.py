"""Preprocessing as in the examples of the engines: Pillow and NumPy, for one center crop."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def prepare(data: bytes, spec: dict[str, Any]) -> NDArray[np.float32]:
    """Return a JPEG image as a normalized batch, float32 ``[1, 3, H, W]``."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    height, width = spec["input_size"]
    scale = math.floor(height / spec["crop_pct"]) / min(image.size)
    image = image.resize((int(image.width * scale), int(image.height * scale)), Image.Resampling[spec["interpolation"].upper()])
    left, top = (image.width - width) // 2, (image.height - height) // 2
    pixels = np.asarray(image.crop((left, top, left + width, top + height)), np.float32) / 255
    mean, std = np.asarray(spec["mean"], np.float32), np.asarray(spec["std"], np.float32)
    return np.ascontiguousarray(((pixels - mean) / std).transpose(2, 0, 1)[None])
