"""Image quality and class sizes: uniform, dark, bright, blurred and oddly sized images, tiny classes, imbalance."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from edgetl.data.audit.result import Flaw, FlawedImage
from edgetl.data.content.facts import ImageFacts

# Fewer images of a label cannot be split and evaluated with a useful interval.
SMALL_CLASS = 10
# Mean gray value of a bright image, 0..1.
BRIGHT = 0.95
# An outlier is farther from the median than this number of robust standard deviations (Iglewicz and Hoaglin 1993).
OUTLIER = 3.5
# Ratio of an odd image area, and of an odd aspect ratio, to the median.
ODD_AREA, ODD_ASPECT = 16.0, 3.0
# A property of more than this fraction of the images is one of the data set, not a flaw of single images.
COMMON = 0.2


def find_flaws(files: Sequence[str], facts: Sequence[ImageFacts | None]) -> tuple[FlawedImage, ...]:
    """Find images with possible flaws.

    Sizes and sharpness are compared with the other images. A property of more than 20 % of the images is not reported.

    Args:
        files: paths of the images.
        facts: facts of the images; None for images without facts.
    """
    known = [item for item in facts if item is not None]
    if not known:
        return ()
    names = [file for file, item in zip(files, facts, strict=True) if item is not None]
    uniform, dark = (np.array([getattr(item, name) for item in known]) for name in ("uniform", "dark"))
    bright = ~uniform & np.array([item.brightness > BRIGHT for item in known])
    sharpness = np.log(np.array([max(item.sharpness, 1e-4) for item in known]))
    areas = np.log(np.array([item.width * item.height for item in known]))
    aspects = np.log(np.array([item.width / item.height for item in known]))
    odd = (np.abs(areas - np.median(areas)) > np.log(ODD_AREA)) | (np.abs(aspects - np.median(aspects)) > np.log(ODD_ASPECT))
    tests: list[tuple[Flaw, NDArray[np.bool_], list[str]]] = [
        ("uniform", uniform, [f"contrast {item.contrast:.3f}" for item in known]),
        ("dark", dark, [f"brightness {item.brightness:.2f}" for item in known]),
        ("bright", bright, [f"brightness {item.brightness:.2f}" for item in known]),
        ("blurred", ~uniform & (_deviation(sharpness) < -OUTLIER), [f"sharpness {item.sharpness:.2f}" for item in known]),
        ("odd-size", odd, [f"{item.width} × {item.height} px" for item in known]),
    ]
    found = []
    for flaw, flagged, texts in tests:
        if flagged.mean() <= COMMON:
            found += [FlawedImage(file=names[index], flaw=flaw, text=texts[index]) for index in np.flatnonzero(flagged).tolist()]
    return tuple(found)


def measure_imbalance(counts: Iterable[int]) -> float:
    """Return the number of images of the most frequent label relative to the rarest one that has images, at least 1."""
    sizes = [count for count in counts if count] or [1]
    return round(max(sizes) / min(sizes), 2)


def _deviation(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the distance of each value from the median in robust standard deviations, ``[n]``."""
    middle = np.median(values)
    return (values - middle) / max(1.4826 * float(np.median(np.abs(values - middle))), 0.05)
