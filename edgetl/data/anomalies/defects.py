"""Synthetic defects: CutPaste on normal images, for validation without anomalies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from PIL import Image, ImageEnhance

from edgetl.core.preprocess import PreprocessSpec, decode_image
from edgetl.data.folder import Sample

# Ratio of the patch's area to that of the image, its aspect ratio (up to 1 to this value), and change of its colors, as in CutPaste.
AREA = (0.02, 0.15)
MOST_ASPECT = 3.3
COLOR_CHANGE = 0.1


def with_defects(samples: Sequence[Sample]) -> list[Sample]:
    """Return ``samples``, followed by a copy of each with a synthetic defect if there is no anomaly among them."""
    if any(sample.label == 1 for sample in samples):
        return list(samples)
    return [*samples, *(replace(sample, label=1, synthetic=True) for sample in samples)]


def read_sample(sample: Sample, spec: PreprocessSpec) -> Image.Image:
    """Decode the image of a sample to upright RGB. A synthetic sample gets its defect.

    Raises:
        ImageError: the image cannot be read.
    """
    image = decode_image(sample.path, spec)
    return cut_paste(image, int(sample.content[:16], 16)) if sample.synthetic else image


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
