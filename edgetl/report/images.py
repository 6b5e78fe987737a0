"""Small JPEG images of the report. They are encoded again from pixels, so that no metadata (EXIF, GPS, comments) remains."""

from __future__ import annotations

import base64
import io

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageFilter

from edgetl.core.images.heat_map import draw_heat_map

# Longest side, pixels, and JPEG quality: about 8 kB for an image.
SIDE = 192
QUALITY = 80
# Ratio of the longest side to the standard deviation of the smoothing, which is half the step of the windows.
_SMOOTHING = 16


def thumbnail(image: Image.Image, side: int = SIDE) -> bytes:
    """Return a copy of an RGB image with at most ``side`` pixels per side as JPEG."""
    small = image.copy()
    small.thumbnail((side, side))
    return _jpeg(small)


def heat_overlay(pixels: NDArray[np.uint8], heat_map: ArrayLike) -> bytes:
    """Return a gray copy of an image uint8 ``[H, W, 3]`` with a heat map, values 0..1 ``[rows, columns]``, in orange as JPEG."""
    return thumbnail(draw_heat_map(Image.fromarray(pixels), heat_map))


def saliency_overlay(pixels: NDArray[np.uint8], saliency: NDArray[np.float32]) -> bytes:
    """Return a gray copy of an image with its saliency map in orange as JPEG.

    Args:
        pixels: uint8 ``[H, W, 3]``, RGB.
        saliency: float32 ``[H, W]``. Values of at most 0 stay gray; the largest value becomes orange.
    """
    heat = np.clip(np.nan_to_num(saliency), 0.0, None)
    levels = np.rint(255 * heat / max(float(heat.max()), 1e-12)).astype(np.uint8)
    # The windows of the occlusion leave steps in the map.
    smooth = np.asarray(Image.fromarray(levels).filter(ImageFilter.GaussianBlur(max(levels.shape) / _SMOOTHING)), np.float64)
    return heat_overlay(pixels, smooth / max(smooth.max(), 1.0))


def data_uri(jpeg: bytes) -> str:
    """Return a JPEG image as a data URI."""
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"


def _jpeg(image: Image.Image) -> bytes:
    # The dictionary of a copy still has the metadata of the file.
    clean = Image.fromarray(np.asarray(image.convert("RGB")))
    buffer = io.BytesIO()
    clean.save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return buffer.getvalue()
