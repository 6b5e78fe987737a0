"""Number of colors of an image: photos have many, segmentation masks few."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

# Number of pixels that are counted, on a regular grid.
GRID_PIXELS = 16_384
MAIN_RATIO = 0.95


@dataclass(frozen=True, slots=True)
class Colors:
    """Colors on a regular grid of at most about ``GRID_PIXELS`` pixels.

    Attributes:
        distinct: number of different colors.
        main: smallest number of colors that cover ``MAIN_RATIO`` of the pixels. Low for masks that were resized or stored as JPEG.
        plain: true if all pixels are gray, or if the most frequent color is black.
    """

    distinct: int
    main: int
    plain: bool


def count_colors(image: Image.Image) -> Colors:
    """Count the colors of an RGB image."""
    step = max(1, int((image.width * image.height / GRID_PIXELS) ** 0.5))
    width, height = (len(range(step // 2, side, step)) for side in image.size)
    # The pixels step // 2, step // 2 + step, … of each axis, without a copy of the whole image.
    sampled = image.transform((width, height), Image.Transform.AFFINE, (step, 0, 0, 0, step, 0), Image.Resampling.NEAREST)
    grid = np.asarray(sampled).astype(np.int32)
    codes = grid[..., 0] << 16 | grid[..., 1] << 8 | grid[..., 2]
    values, counts = np.unique(codes, return_counts=True)
    covered = np.cumsum(np.sort(counts)[::-1])
    gray = bool((values >> 16 == (values >> 8 & 255)).all() and (values >> 16 == (values & 255)).all())
    return Colors(
        distinct=len(values),
        main=int(np.searchsorted(covered, MAIN_RATIO * covered[-1])) + 1,
        plain=gray or bool(values[counts.argmax()] == 0),
    )
