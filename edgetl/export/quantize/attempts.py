"""Quantization attempts, ordered by cost, and the protocol of a quantizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgetl.core.system.host import has_int8_dot_product

# Numbers of operations kept in fp32, one for each attempt. Each operation in fp32 adds a little latency and size.
FP32_OPERATIONS = (2, 4, 8, 16)


@dataclass(frozen=True)
class Int8Settings:
    """Settings of one quantization attempt.

    Attributes:
        seven_bit: limit weights to 7 of 8 bits, because x86 kernels without VNNI saturate with 8.
        dynamic: quantize matrix products only, and measure the ranges of their inputs for every image (ONNX Runtime).
        full_bias: correct the bias of each layer in turn, with all preceding layers quantized. Otherwise NNCF corrects all biases at once,
            and ONNX Runtime's quantizer corrects none.
        refit: keep the head in fp32 and re-fit it on the features of the quantized backbone.
        sensitive: number of the most sensitive operations kept in fp32.
        controlled: use NNCF's accuracy-aware search for operations to keep in fp32.
    """

    seven_bit: bool = False
    dynamic: bool = False
    full_bias: bool = False
    refit: bool = False
    sensitive: int = 0
    controlled: bool = False

    @property
    def method(self) -> str:
        """Short description of the settings, as recorded in the manifest."""
        parts = ["7-bit weights" if self.seven_bit else "8-bit weights"]
        parts += ["matrix products only, dynamic"] if self.dynamic else []
        parts += ["full bias correction"] if self.full_bias else []
        parts += [f"{self.sensitive} most sensitive operations in fp32"] if self.sensitive else []
        parts += ["head re-fitted"] if self.refit else []
        parts += ["accuracy-aware (NNCF)"] if self.controlled else []
        return ", ".join(parts)


@dataclass(frozen=True)
class FloatHead:
    """Linear head kept in fp32: ``weight`` ``[classes, width]``, ``bias`` ``[classes]``."""

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]


@dataclass(frozen=True)
class MeasurementImages:
    """Validation images for measuring operations, with the trained model's outputs.

    Attributes:
        images: float32 ``[n, 3, H, W]``.
        trained: the trained model's outputs ``[n, labels]``.
        truth: classification: the true classes, int ``[n]``. Empty for other tasks.
    """

    images: NDArray[np.float32]
    trained: NDArray[np.float32]
    truth: NDArray[np.intp] = field(default_factory=lambda: np.empty(0, np.intp))


@dataclass(frozen=True)
class AccuracyControl:
    """Limit of an accuracy-aware quantization.

    Attributes:
        measurement_images: returns the labeled images for measuring the accuracy.
        max_drop: largest accuracy drop on these images, 0..1.
    """

    measurement_images: Callable[[], MeasurementImages]
    max_drop: float


@dataclass(frozen=True)
class QuantizerInput:
    """Input of a quantizer.

    Attributes:
        source: fp32 ONNX file.
        calibration: calibration batches, float32 ``[1, 3, H, W]``.
        work: empty folder for intermediate files.
        float_ends: keep the head in fp32: the operations from the subtraction of the features' center to the output. It is the number of
            vector lengths (``ReduceL2``) in the head, each of which measures the result of such a subtraction. 0 quantizes the head.
        control: limit of NNCF's accuracy-aware search. None turns the search off.
    """

    source: Path
    calibration: Sequence[NDArray[np.float32]]
    work: Path
    float_ends: int = 0
    control: AccuracyControl | None = None


class Quantizer(Protocol):
    """Quantizer of one exported network for one engine."""

    def attempts(self, cpu: str) -> list[Int8Settings]:
        """Return the settings to attempt for this network, cheapest first; ``cpu`` as in ``ExportConfig``."""

    def quantize(self, settings: Int8Settings, folder: Path, fp32: tuple[str, ...] = ()) -> list[Path]:
        """Write the quantized model into ``folder`` and return its files. The operations named in ``fp32`` are kept in fp32."""

    def write_features(self, folder: Path) -> list[Path]:
        """Write the last quantized model without its head; the output is the features ``[batch, width]``."""

    def replace_head(self, head: FloatHead, folder: Path) -> list[Path]:
        """Write the last quantized model with ``head``."""

    def operations(self) -> dict[str, str]:
        """Return names and kinds of the operations with quantized inputs in the last quantized model, in its order."""

    def write_restored(self, name: str, folder: Path) -> list[Path]:
        """Write the last quantized model with one operation restored to fp32."""


def plan_attempts(cpu: str, *, dynamic: bool = False, bias_corrected: bool = False, controlled: bool = False) -> list[Int8Settings]:
    """Return the settings of a quantization search, cheapest first.

    The order was measured on a MobileNetV2 with pretrained weights (trashnet), where plain quantization loses 2 to 5 points of accuracy.
    7-bit weights avoid saturation on CPUs without VNNI. A re-fitted head corrects the shift of the features. The most sensitive operations
    in fp32 restore the rest.

    Args:
        cpu: as in ``ExportConfig``.
        dynamic: start with dynamic quantization.
        bias_corrected: the quantizer corrects biases (NNCF). Full bias correction, which takes a minute there and gains little, is then a
            later attempt. Otherwise every attempt includes it: it takes seconds, and most networks lose accuracy without it.
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
