"""The quantization ladder's steps, and what a quantizer must be able to do to climb them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgetl.core.manifest import Format
from edgetl.core.system.host import has_int8_dot_product

# How many of the most sensitive operations stay in fp32, one step after the other. Each costs a little time and size.
SPARED_OPERATIONS = (2, 4, 8, 16)


@dataclass(frozen=True)
class Step:
    """One way to quantize.

    Attributes:
        seven_bit: weights use 7 of 8 bits, so that x86 kernels without VNNI do not saturate.
        dynamic: only matrix products are quantized, and their inputs' ranges are measured anew for every image (ONNX Runtime).
        full_bias: each layer's mean error is taken off its bias in turn, with all before it quantized. NNCF takes it off at once
            otherwise, ONNX Runtime's quantizer not at all.
        refit: the head stays in fp32 and is fitted again on the quantized trunk's features.
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
    """A few validation images and the trained model's answers, to measure operations with.

    Attributes:
        images: float32 ``[n, 3, H, W]``.
        trained: the trained model's outputs ``[n, labels]``.
        right: of classes: the images' labels, int ``[n]``; empty for other tasks.
    """

    images: NDArray[np.float32]
    trained: NDArray[np.float32]
    right: NDArray[np.intp] = field(default_factory=lambda: np.empty(0, np.intp))


class Quantizer(Protocol):
    """Quantizes one exported network for one engine."""

    def quantize(self, step: Step, folder: Path, spared: tuple[str, ...] = ()) -> list[Path]:
        """Write the quantized model into ``folder`` and return its files; operations called ``spared`` stay in fp32."""

    def write_trunk(self, folder: Path) -> list[Path]:
        """Write the last quantized model without its head: features ``[batch, width]`` are its output."""

    def replace_head(self, head: FloatHead, folder: Path) -> list[Path]:
        """Write the last quantized model with another head."""

    def operations(self) -> dict[str, str]:
        """Names and kinds of the operations that the last quantized model computes on quantized inputs, in its order."""

    def write_restored(self, name: str, folder: Path) -> list[Path]:
        """Write the last quantized model with one operation back in fp32."""


def ladder(cpu: str, format_: Format = "onnx", *, products: bool = False, refit: bool = True, classes: bool = True) -> list[Step]:
    """The steps to climb, cheapest first.

    Measured on a MobileNetV2 with real weights (trashnet), where plain quantization loses 2 to 5 points: 7-bit weights repair
    saturation on CPUs without VNNI, fp32 for what is most sensitive the rest of it, a re-fitted head what a drift of features costs.

    Args:
        cpu: as in ``ExportConfig``.
        format_: whose engine.
        products: most weights belong to matrix products, as in a vision transformer.
        refit: the network ends in one linear layer, which can be fitted again.
        classes: the network answers classes, whose accuracy NNCF can watch.
    """
    seven = cpu == "any" or not has_int8_dot_product()
    steps = [Step(seven_bit=seven, dynamic=True)] if products and format_ == "onnx" else []
    # ONNX Runtime's quantizer corrects no biases by itself: ours costs seconds, and without it most networks lose points. NNCF corrects
    # them at once, nearly as well as one by one, which costs a minute.
    full = format_ == "onnx"
    steps += [Step(seven_bit=seven, full_bias=full), *([] if full else [Step(seven_bit=seven, full_bias=True)])]
    steps += [Step(seven_bit=seven, full_bias=full, refit=True)] if refit else []
    steps += [Step(seven_bit=seven, full_bias=full, refit=refit, sensitive=count) for count in SPARED_OPERATIONS]
    steps += [Step(seven_bit=seven, controlled=True)] if format_ == "openvino" and classes else []
    return steps
