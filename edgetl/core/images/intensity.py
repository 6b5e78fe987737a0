"""Intensity rule: conversion of more than 8 bits per channel to 8 bits. Training, export and device use the same rule.

``scale`` maps ``low`` to 0 and ``high`` to 255, rounds, and clips values outside. ``percentile`` computes ``low`` and ``high`` from the
values of each image. The default is ``scale`` with the full range of 16 bits, 0 to 65535. Runs and bundles without a recorded rule use the
default. Images with 8 bits are never changed.
"""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import ImageFile
from pydantic import Field, model_validator

from edgetl.core.config import StrictModel
from edgetl.errors import ConfigError

_log = logging.getLogger(__name__)

# Smallest and largest value of an image with more than 8 bits.
Levels: TypeAlias = tuple[int, int]
CHOICES = ("auto", "clip", "scale", "percentile")
PERCENTILES = (0.5, 99.5)

# Pillow decodes the high bytes of 16-bit color. The other byte order decodes the low bytes. N is the byte order of the machine.
_NATIVE = "L" if sys.byteorder == "little" else "B"
_SWAPPED = {"B": "L", "L": "B", "N": "B" if _NATIVE == "L" else "L"}
_WIDE_COLOR = ("RGB;16", "RGBA;16")


class Intensity(StrictModel):
    """Intensity rule for images with more than 8 bits per channel.

    Attributes:
        rule: ``scale``: ``low`` and ``high`` are pixel values. ``percentile``: they are percentiles of the values of each image.
        low: pixel value that becomes 0. With ``percentile``: percentile of the image's values, 0..100.
        high: pixel value that becomes 255. With ``percentile``: percentile of the image's values, 0..100. Greater than ``low``.
    """

    rule: Literal["scale", "percentile"] = "scale"
    low: float = Field(default=0.0, ge=-(2.0**31), le=2.0**32)
    high: float = Field(default=65535.0, ge=-(2.0**31), le=2.0**32)

    @model_validator(mode="after")
    def _ordered(self) -> Intensity:
        if self.low >= self.high or (self.rule == "percentile" and not 0 <= self.low < self.high <= 100):
            raise ValueError(f"an intensity rule from {self.low:g} to {self.high:g} is not possible")
        return self

    def describe(self) -> str:
        """Describe the rule in one phrase."""
        unit = "% of each image's values" if self.rule == "percentile" else ""
        return f"{self.low:g} to {self.high:g}{unit} become 0 to 255"


FULL_RANGE = Intensity()


def to_8_bits(values: NDArray[Any], intensity: Intensity) -> NDArray[np.uint8]:
    """Convert integers of any shape to uint8 by ``intensity``."""
    low, high = intensity.low, intensity.high
    if intensity.rule == "percentile":
        low, high = (float(value) for value in np.percentile(values, (low, high)))
    if high <= low:  # one value everywhere
        return np.zeros(values.shape, np.uint8)
    if values.dtype.itemsize == 2 and values.dtype.kind == "u":
        # A lookup table is exact, and needs a fraction of the memory.
        table = _scaled(np.arange(65536), low, high)
        found: NDArray[np.uint8] = table[values]
        return found
    return _scaled(values, low, high)


def _scaled(values: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    scaled: NDArray[np.uint8] = np.clip(np.floor((values.astype(np.float64) - low) * 255 / (high - low) + 0.5), 0, 255).astype(np.uint8)
    return scaled


def resolve_intensity(choice: str, kept: Intensity, levels: Sequence[Levels]) -> Intensity:
    """Resolve the intensity rule of a training from ``--intensity``.

    Args:
        choice: ``auto``, ``clip``, ``scale``, ``percentile`` or ``LOW,HIGH`` (see ``check_choice``).
        kept: rule of the backbone. ``auto`` keeps it unless it is the default.
        levels: smallest and largest value of each training image with more than 8 bits. ``auto`` uses the number of bits of the largest
            value, such as 4095 for 12-bit data.

    Raises:
        ConfigError: ``choice`` is ``scale``, but no training image has more than 8 bits, or all values are equal.
    """
    if choice == "percentile":
        return Intensity(rule="percentile", low=PERCENTILES[0], high=PERCENTILES[1])
    if choice == "clip":
        return Intensity(high=255.0)
    if choice not in CHOICES:
        low, high = check_choice(choice).split(",")
        return Intensity(low=float(low), high=float(high))
    lowest, highest = min((low for low, _ in levels), default=0), max((high for _, high in levels), default=0)
    if choice == "scale":
        if lowest == highest:
            raise ConfigError(
                f"--intensity scale: {len(levels)} training images have more than 8 bits, and all their values are equal. "
                f"Leave the option out, or give the range: --intensity 0,4095."
            )
        return Intensity(low=float(lowest), high=float(highest))
    if not levels or kept != FULL_RANGE:
        return kept
    if lowest < 0:
        return Intensity(low=float(lowest), high=float(max(highest, lowest + 1)))
    return Intensity(high=float(2 ** max(8, highest.bit_length()) - 1))


def check_choice(text: str) -> str:
    """Return ``text`` if it is one of ``CHOICES``, or two finite numbers ``LOW,HIGH`` in ascending order.

    Raises:
        ValueError: it is neither.
    """
    if text in CHOICES:
        return text
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        low = high = math.nan
    if not -(2.0**31) <= low < high <= 2.0**32:
        raise ValueError(f"{text!r} is not possible. Use {', '.join(CHOICES)}, or two numbers LOW,HIGH")
    return text


def has_wide_color(image: ImageFile.ImageFile) -> bool:
    """Return true if an opened, not yet decoded image has 16-bit color. Pillow decodes only its high bytes."""
    return bool(image.tile) and _raw_mode(image.tile[0].args).startswith(_WIDE_COLOR) and "transparency" not in image.info


def read_low_bytes(image: ImageFile.ImageFile) -> NDArray[np.uint8]:
    """Decode the low bytes of an opened image with 16-bit color (see ``has_wide_color``)."""
    image.tile = [tile._replace(args=_swapped(tile.args)) for tile in image.tile]
    image.load()
    return np.asarray(image)


def _raw_mode(args: Any) -> str:
    found = args[0] if isinstance(args, tuple) and args else args
    return found if isinstance(found, str) else ""


def _swapped(args: Any) -> Any:
    raw = _raw_mode(args)
    other = raw[:-1] + _SWAPPED[raw[-1]]
    return (other, *args[1:]) if isinstance(args, tuple) else other
