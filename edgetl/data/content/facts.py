"""Facts of an image: size, brightness, contrast, sharpness, perceptual hash and capture. The scan computes them once per file."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from edgetl.core.images.capture import Capture
from edgetl.data.content.perceptual_hash import SIDE, perceptual_hash

# Longest side for brightness, contrast and sharpness, pixels. Large and small photos of one scene then have similar values.
MEASURED_SIDE = 256
# Standard deviation of the gray values of a uniform image, 0..1 and relative to their mean, and mean gray value of a dark image.
UNIFORM, RELATIVE_UNIFORM, DARK = 0.02, 0.1, 0.08


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """Facts of an upright image.

    Attributes:
        width, height: size in pixels.
        brightness: mean of the gray values, 0..1.
        contrast: standard deviation of the gray values, 0..0.5.
        sharpness: standard deviation of the Laplacian of the gray values, relative to ``contrast``. Blur lowers it (Pech-Pacheco et al.
            2000, doi:10.1109/ICPR.2000.903548).
        hash: perceptual hash, 64 bits.
        capture: camera and time from EXIF; none without them.
    """

    width: int
    height: int
    brightness: float
    contrast: float
    sharpness: float
    hash: int
    capture: Capture | None = None

    @property
    def uniform(self) -> bool:
        """True for an image without details. A dark photo has a low contrast, but not relative to its brightness."""
        return self.contrast < UNIFORM and self.contrast < RELATIVE_UNIFORM * max(self.brightness, UNIFORM)

    @property
    def dark(self) -> bool:
        """True for a dark image that is not uniform."""
        return self.brightness < DARK and not self.uniform


def measure_facts(image: Image.Image, capture: Capture | None = None) -> ImageFacts:
    """Measure the facts of an upright RGB image."""
    factor = max(1.0, max(image.size) / MEASURED_SIDE)
    size = (max(1, round(image.width / factor)), max(1, round(image.height / factor)))
    small = image.resize(size, Image.Resampling.BOX, reducing_gap=2.0).convert("L") if factor > 1 else image.convert("L")
    values = np.asarray(small, np.float32) / 255
    contrast = float(values.std())
    padded = np.pad(values, 1, mode="edge")
    laplacian = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:] - 4 * values
    square = np.asarray(small.resize((SIDE, SIDE), Image.Resampling.BOX))
    return ImageFacts(
        width=image.width,
        height=image.height,
        brightness=round(float(values.mean()), 4),
        contrast=round(contrast, 4),
        sharpness=round(float(laplacian.std()) / max(contrast, 1e-3), 4),
        hash=perceptual_hash(square),
        capture=capture,
    )
