"""Synthetic defects: CutPaste and confetti noise on normal images, for validation and calibration without anomalies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from edgetl.core.preprocess import PreprocessSpec, decode_image, to_pixels
from edgetl.data.folder import Sample, SyntheticDefect

# Ratio of the patch's area to that of the image, its aspect ratio (up to 1 to this value), and change of its colors, as in CutPaste.
AREA = (0.02, 0.15)
MOST_ASPECT = 3.3
COLOR_CHANGE = 0.1
# Confetti noise: number of rectangles, and the range of their sides relative to the shorter side of the input.
CONFETTI = {"confetti": (3, (0.03, 0.27)), "small-confetti": (1, (0.02, 0.09))}


def with_defects(samples: Sequence[Sample]) -> list[Sample]:
    """Return ``samples``, followed by a copy of each with a synthetic defect if there is no anomaly among them."""
    if any(sample.label == 1 for sample in samples):
        return list(samples)
    return [*samples, *(replace(sample, label=1, synthetic=SyntheticDefect("cut-paste")) for sample in samples)]


def with_confetti(samples: Sequence[Sample]) -> list[Sample]:
    """Return ``samples``, followed by a copy of each with confetti noise."""
    return [*samples, *(replace(sample, label=1, synthetic=SyntheticDefect("confetti")) for sample in samples)]


def read_sample(sample: Sample, spec: PreprocessSpec) -> Image.Image:
    """Decode the image of a sample to upright RGB, with its CutPaste defect.

    Raises:
        ImageError: the image cannot be read.
    """
    image = decode_image(sample.path, spec)
    return cut_paste(image, _seed(sample)) if sample.synthetic and sample.synthetic.kind == "cut-paste" else image


def read_pixels(sample: Sample, spec: PreprocessSpec) -> NDArray[np.uint8]:
    """Decode and resize the image of a sample to the pixels of the network input, uint8 ``[H, W, 3]``, RGB, with its synthetic defect.

    Confetti noise is drawn on the resized pixels. Its edges are then sharp, whatever the size of the image.

    Raises:
        ImageError: the image cannot be read.
    """
    pixels = np.asarray(to_pixels(read_sample(sample, spec), spec))
    if sample.synthetic is None or sample.synthetic.kind == "cut-paste":
        return pixels
    count, sides = CONFETTI[sample.synthetic.kind]
    return confetti(pixels, _seed(sample), count=count, sides=sides)


def _seed(sample: Sample) -> int:
    return int(sample.content[:16], 16) + (sample.synthetic.copy if sample.synthetic else 0)


def cut_paste(image: Image.Image, seed: int) -> Image.Image:
    """Return a copy of an RGB image with a rectangle of it, slightly changed in color, pasted at another place.

    Source: CutPaste (Li et al. 2021, arXiv:2104.04015, section 2.2 and appendix A.1).
    """
    random = np.random.default_rng(seed)
    area = random.uniform(*AREA) * image.width * image.height
    aspect = math.exp(random.uniform(-1, 1) * math.log(MOST_ASPECT))
    width = min(image.width, max(1, round(math.sqrt(area * aspect))))
    height = min(image.height, max(1, round(math.sqrt(area / aspect))))
    left, top, new_left, new_top = (int(random.integers(0, free + 1)) for free in (image.width - width, image.height - height) * 2)
    patch = image.crop((left, top, left + width, top + height))
    for kind in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        patch = kind(patch).enhance(1 + float(random.uniform(-COLOR_CHANGE, COLOR_CHANGE)))
    changed = image.copy()
    changed.paste(patch, (new_left, new_top))
    return changed


def confetti(pixels: NDArray[np.uint8], seed: int, *, count: int, sides: tuple[float, float]) -> NDArray[np.uint8]:
    """Return a copy of RGB pixels ``[H, W, 3]`` with ``count`` rectangles of random colors. ``sides`` are relative to the shorter side.

    Source: confetti noise (Liznerski et al. 2021, arXiv:2007.01760), which inserts colored blobs.
    """
    random = np.random.default_rng(seed)
    changed = pixels.copy()
    for _ in range(count):
        size = [max(1, round(min(pixels.shape[:2]) * side)) for side in random.uniform(*sides, 2).tolist()]
        top, left = (int(random.integers(0, free - taken + 1)) for free, taken in zip(pixels.shape, size, strict=False))
        changed[top : top + size[0], left : left + size[1]] = random.integers(0, 256, 3)
    return changed
