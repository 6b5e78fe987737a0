"""What a user may ask of an export, and the defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from edgetl.core.config import StrictModel
from edgetl.core.manifest import Format, Precision
from edgetl.core.preprocess import InputForm


class ExportConfig(StrictModel):
    """Options of an export.

    Attributes:
        formats: file formats, each for its own engine.
        precisions: ``int8`` means weights and activations; ``int8-weights`` weights alone.
        name: of the model, in the manifest and for servers; none takes the run's.
        max_drop: largest loss of a quantized variant on the validation images, absolute, 0..1: of accuracy; of a multi-label model of mean
            average precision and of the share of right decisions; of a regression of R².
        strict: ask ``max_drop`` of the one-sided 95 % bound of the loss of accuracy, and not of the loss itself.
        min_agreement: least share of equal answers where the trained model is sure: it scores the class at least 0.6; a label's log-odds
            are as far from its threshold; a number is always sure, and equal within the tolerance; a grade is 0.1 from the next.
        calibration_images: training images that int8 ranges are measured on.
        gate_images: validation images that decide, at most.
        unlabeled: folder of unlabeled images, on which agreement with the trained model is measured too.
        cpu: ``here`` quantizes for this machine's instruction set; ``any`` keeps weights to 7 bits, which no x86 kernel saturates on.
        allow_missing: keep the variants that passed when another failed; fp16 stands in for an int8 that failed.
        qat_steps: where the ladder ends without an int8 that passes, so many steps of quantization-aware training; 0 is none.
        explain: measure what quantizing each operation costs, also where the gate passed.
        input: ``uint8``: files take pixels ``[batch, H, W, 3]``, RGB, and normalise them; for users without NumPy.
        input_size: height and width of the input, pixels; none takes the run's. What another size costs counts in ``max_drop``.
        seed: of NNCF's and the head's fits.
        release: the bundle's release counter.
    """

    formats: tuple[Format, ...] = Field(default=("onnx", "openvino"), min_length=1)
    precisions: tuple[Precision, ...] = Field(default=("fp32", "int8"), min_length=1)
    name: str | None = None
    max_drop: float = Field(default=0.01, ge=0.0, le=1.0)
    strict: bool = False
    min_agreement: float = Field(default=0.97, ge=0.0, le=1.0)
    calibration_images: int = Field(default=300, ge=1)
    gate_images: int = Field(default=1000, ge=1)
    unlabeled: Path | None = None
    cpu: Literal["here", "any"] = "here"
    allow_missing: bool = False
    qat_steps: int = Field(default=0, ge=0, le=100_000)
    explain: bool = False
    input: InputForm = "float"
    input_size: int | None = Field(default=None, ge=32, le=1024)
    seed: int = Field(default=0, ge=0, lt=2**31)
    release: int = Field(default=1, ge=1, lt=2**53)
