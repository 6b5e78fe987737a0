"""Overlay of a heat map on an image."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

# Orange, RGB. It differs from gray in hue and brightness, also for color-blind readers.
HOT = (255.0, 107.0, 0.0)
# Largest weight of the color, so that the image stays visible.
MOST_COLOR = 0.85


def draw_heat_map(image: Image.Image, heat_map: ArrayLike) -> Image.Image:
    """Return a gray copy of an RGB image with a heat map in orange.

    Args:
        image: preprocessed image, as the network sees it.
        heat_map: values 0..1 ``[rows, columns]``, from top to bottom. 0 stays gray; 1 becomes orange.
    """
    gray = np.asarray(image.convert("L"), np.float32)[:, :, None]
    values = np.clip(np.nan_to_num(np.array(heat_map, np.float32)), 0, 1)
    heat = np.asarray(Image.fromarray(values).resize(image.size, Image.Resampling.BILINEAR))[:, :, None] * np.float32(MOST_COLOR)
    return Image.fromarray(np.rint(gray * (1 - heat) + np.array(HOT, np.float32) * heat).astype(np.uint8))
