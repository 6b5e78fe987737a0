"""Quantization attempts in the order of their cost, and the protocol of a quantizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgetl.core.system.host import has_int8_dot_product

# Numbers of the most sensitive operations that stay in fp32, one attempt after the other. Each costs a little time and size.
FP32_OPERATIONS = (2, 4, 8, 16)


@dataclass(frozen=True)
class Int8Settings:
    """Settings of one quantization.

    Attributes:
        seven_bit: weights use 7 of 8 bits, so that x86 kernels without VNNI do not saturate.
        dynamic: only matrix products are quantized, and their inputs' ranges are measured anew for every image (ONNX Runtime).
        full_bias: each layer's mean error is taken off its bias in turn, with all before it quantized. NNCF takes it off at once
            otherwise, ONNX Runtime's quantizer not at all.
        refit: the head stays in fp32 and is fitted again on the features of the quantized backbone.
        sensitive: so many of the operations whose quantization costs most stay in fp32.
        controlled: NNCF's accuracy-aware search for operations that must stay in fp32.
    """

    seven_bit: bool = False
    dynamic: bool = False
    full_bias: bool = False
    refit: bool = False
    sensitive: int = 0
    controlled: bool = False

    @property
    def method(self) -> str:
        """A short description for people."""
        parts = ["7-bit weights" if self.seven_bit else "8-bit weights"]
        parts += ["matrix products only, dynamic"] if self.dynamic else []
        parts += ["full bias correction"] if self.full_bias else []
        parts += [f"{self.sensitive} most sensitive operations fp32"] if self.sensitive else []
        parts += ["head re-fitted"] if self.refit else []
        parts += ["accuracy-aware (NNCF)"] if self.controlled else []
        return ", ".join(parts)


@dataclass(frozen=True)
class FloatHead:
    """A linear layer left in fp32: ``weight`` ``[classes, width]``, ``bias`` ``[classes]``."""

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]


@dataclass(frozen=True)
class Probe:
    """Validation images and the trained model's outputs for them, to measure operations with.

    Attributes:
        images: float32 ``[n, 3, H, W]``.
        trained: the trained model's outputs ``[n, labels]``.
        right: of classes: the images' labels, int ``[n]``; empty for other tasks.
    """

    images: NDArray[np.float32]
    trained: NDArray[np.float32]
    right: NDArray[np.intp] = field(default_factory=lambda: np.empty(0, np.intp))


@dataclass(frozen=True)
class AccuracyControl:
    """Limits of an accuracy-aware quantization: ``probe`` returns labeled images, whose accuracy may drop by ``max_drop``, 0..1."""

    probe: Callable[[], Probe]
    max_drop: float


@dataclass(frozen=True)
class QuantizerInput:
    """Input of a quantizer.

    Attributes:
        source: the fp32 ONNX file.
        calibration: batches float32 ``[1, 3, H, W]``.
        work: empty folder for intermediate files.
        fp32_end: keep all operations that compare features with stored images in fp32.
        control: for NNCF's accuracy-aware search; none turns it off.
    """

    source: Path
    calibration: Sequence[NDArray[np.float32]]
    work: Path
    fp32_end: bool = False
    control: AccuracyControl | None = None


class Quantizer(Protocol):
    """Quantizer of one exported network for one engine."""

    def attempts(self, cpu: str) -> list[Int8Settings]:
        """Settings to attempt for this network, cheapest first; ``cpu`` is as in ``ExportConfig``."""

    def quantize(self, settings: Int8Settings, folder: Path, fp32: tuple[str, ...] = ()) -> list[Path]:
        """Write the quantized model into ``folder`` and return its files; the operations named in ``fp32`` stay in fp32."""

    def write_features(self, folder: Path) -> list[Path]:
        """Write the last quantized model without its head: the features ``[batch, width]`` are its output."""

    def replace_head(self, head: FloatHead, folder: Path) -> list[Path]:
        """Write the last quantized model with another head."""

    def operations(self) -> dict[str, str]:
        """Names and kinds of the operations that the last quantized model computes on quantized inputs, in its order."""

    def write_restored(self, name: str, folder: Path) -> list[Path]:
        """Write the last quantized model with one operation back in fp32."""


def plan_attempts(cpu: str, *, dynamic: bool = False, bias_corrected: bool = False, controlled: bool = False) -> list[Int8Settings]:
    """Settings that a quantization search attempts, cheapest first.

    Measured on a MobileNetV2 with real weights (trashnet), where plain quantization loses 2 to 5 points: 7-bit weights avoid saturation on
    CPUs without VNNI, fp32 for the most sensitive operations restores the rest, a re-fitted head the drift of the features.

    Args:
        cpu: as in ``ExportConfig``.
        dynamic: begin with dynamic quantization.
        bias_corrected: the quantizer corrects biases by itself, nearly as well as one by one, which costs a minute. Without it full bias
            correction, which costs seconds, is part of every attempt: most networks lose points without.
        controlled: end with an accuracy-aware quantization.
    """
    seven, full = cpu == "any" or not has_int8_dot_product(), not bias_corrected
    return [
        *([Int8Settings(seven_bit=seven, dynamic=True)] if dynamic else []),
        *([Int8Settings(seven_bit=seven)] if bias_corrected else []),
        Int8Settings(seven_bit=seven, full_bias=True),
        Int8Settings(seven_bit=seven, full_bias=full, refit=True),
        *(Int8Settings(seven_bit=seven, full_bias=full, refit=True, sensitive=count) for count in FP32_OPERATIONS),
        *([Int8Settings(seven_bit=seven, controlled=True)] if controlled else []),
    ]
