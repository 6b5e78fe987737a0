"""The quantization ladder's steps, and what a quantizer must be able to do to climb them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgetl.core.host import has_int8_dot_product

# The first layers see the widest range and have the fewest channels: leaving them in fp32 costs little time and returns
# what plain post-training quantization loses on depthwise networks.
SPARED_CONVOLUTIONS = 3


@dataclass(frozen=True)
class Step:
    """One way to quantize.

    Attributes:
        seven_bit: weights use 7 of 8 bits, so that x86 kernels without VNNI do not saturate.
        spared: convolutions at the input that stay in fp32.
        refit: the head stays in fp32 and is fitted again on the quantized trunk's features.
    """

    seven_bit: bool = False
    spared: int = 0
    refit: bool = False

    @property
    def method(self) -> str:
        """A short description for people."""
        parts = ["7-bit weights" if self.seven_bit else "8-bit weights"]
        parts += [f"first {self.spared} convolutions fp32"] if self.spared else []
        parts += ["head re-fitted"] if self.refit else []
        return ", ".join(parts)


@dataclass(frozen=True)
class FloatHead:
    """A linear layer left in fp32: ``weight`` ``[classes, width]``, ``bias`` ``[classes]``."""

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]


class Quantizer(Protocol):
    """Quantizes one exported network for one engine."""

    def quantize(self, step: Step, folder: Path) -> list[Path]:
        """Write the quantized model into ``folder`` and return its files."""

    def write_trunk(self, folder: Path) -> list[Path]:
        """Write the last quantized model without its head: features ``[batch, width]`` are its output."""

    def replace_head(self, head: FloatHead, folder: Path) -> list[Path]:
        """Write the last quantized model with another head."""


def ladder(cpu: str) -> list[Step]:
    """The steps to climb, cheapest first.

    Measured on a MobileNetV2 with real weights (trashnet), where plain quantization loses 2 to 5 points: 7-bit weights repair
    saturation on CPUs without VNNI, fp32 first convolutions the rest of it, a re-fitted head what a drift of features costs.
    """
    seven = cpu == "any" or not has_int8_dot_product()
    return [
        Step(seven_bit=seven),
        Step(seven_bit=seven, spared=SPARED_CONVOLUTIONS),
        Step(seven_bit=seven, refit=True),
        Step(seven_bit=seven, spared=SPARED_CONVOLUTIONS, refit=True),
    ]
