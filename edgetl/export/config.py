"""Options of an export and of ``fit``: type, default, bounds and help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import BeforeValidator, Field

from edgetl.core.config import StrictModel
from edgetl.core.contract import Contract
from edgetl.core.manifest import Format, Precision
from edgetl.core.options import option_field, words
from edgetl.core.preprocess import InputForm
from edgetl.train.config.options import TrainConfig
from edgetl.train.config.ranking import RankConfig

# Formats that others write from an export. The names are reserved, so that a bundle with such a variant will never mean something else.
RESERVED = {
    "tflite": "export onnx, then `onnx2tf -i model.onnx`; or give the run's timm network to litert-torch (once ai-edge-torch)",
    "executorch": "torch.export the run's timm network, then executorch.exir.to_edge_transform_and_lower",
    "coreml": "torch.export or trace the run's timm network, then coremltools.convert (coremltools reads no ONNX)",
    "ncnn": "export onnx, then `pnnx model.onnx inputshape=[1,3,H,W]`",
}


def _precisions(value: object) -> object:
    return _check(words(value), get_args(Precision))


def _formats(value: object) -> object:
    names = words(value)
    if isinstance(names, tuple) and not set(names) - set(get_args(Format)) - set(RESERVED) and (reserved := set(names) & set(RESERVED)):
        lines = [f"{name}: edgetl does not write it yet; {RESERVED[name]}." for name in names if name in reserved]
        loads = 'The network is timm.create_model("local-dir:RUN", pretrained=True)'
        raise ValueError("\n".join([f"{','.join(names)} is not possible.", *lines, loads]))
    return _check(names, get_args(Format))


def _check(names: object, known: tuple[str, ...]) -> object:
    if not isinstance(names, tuple):
        return names
    unknown = ", ".join(name for name in names if name not in known)
    if unknown or not names:
        raise ValueError(f"{f'{unknown} is not possible' if unknown else 'nothing given'}; it takes {', '.join(known)}")
    return names


class ExportConfig(StrictModel):
    """Options of an export."""

    formats: Annotated[tuple[Format, ...], BeforeValidator(_formats)] = option_field(
        ("onnx", "openvino"), "File formats: onnx, openvino, or both, separated by commas.", option="format"
    )
    precisions: Annotated[tuple[Precision, ...], BeforeValidator(_precisions)] = option_field(
        ("fp32", "int8"), "Precisions: fp32, fp16, int8 (weights and activations), int8-weights, or several.", option="precision"
    )
    data: Path | None = option_field(None, "Folder of the run's images (default: where they were).")
    unlabeled: Path | None = option_field(
        None, "Folder of unlabeled images. The accuracy gate also measures agreement with the trained model on them."
    )
    name: str | None = option_field(None, "Name of the model in the manifest and for servers (default: the run's).")
    max_drop: float = option_field(
        0.01,
        "Largest drop of a quantized variant on the validation images, 0..1: of accuracy; of mean average precision and of the ratio of "
        "right decisions (multi-label); of R² (regression).",
        ge=0.0,
        le=1.0,
    )
    strict: bool = option_field(False, "Compare --max-drop with the one-sided 95 % bound of the drop.")
    min_agreement: float = option_field(
        0.97,
        "Smallest ratio of predictions equal to the trained model's where that is confident: it scores the class at least 0.6; a label's "
        "log-odds are as far from its threshold; a number always, within the tolerance; a grade is 0.1 from the next.",
        ge=0.0,
        le=1.0,
    )
    calibration_images: int = option_field(300, "Training images for the calibration of int8.", option="num_samples", ge=1)
    gate_images: int = option_field(1000, "Validation images for the accuracy gate, at most.", ge=1)
    cpu: Literal["here", "any"] = option_field("here", "here: quantize for this CPU. any: 7-bit weights, safe on x86 without VNNI.")
    release: int = option_field(1, "Release counter of the bundle; raise it with every shipment.", ge=1, lt=2**53)
    allow_missing: bool = option_field(
        False, "Keep the variants that passed when another failed. fp16 takes the place of an int8 variant that failed."
    )
    input: InputForm = option_field("float", "Input: float, or uint8: files take resized RGB pixels (batch, H, W, 3) and normalize them.")
    input_size: int | None = option_field(
        None, "Height and width of the input, pixels (default: the run's). The drop of another size counts in --max-drop.", ge=32, le=1024
    )
    explain: bool = option_field(False, "Measure the sensitivity of each operation to quantization, also if the gate passed.")
    profile: Path | None = option_field(None, "Output of `edgetl bench --json` on the device; --max-latency-ms then holds there.")


class FitConfig(StrictModel):
    """Options of ``fit``.

    Attributes:
        rank: comparison of the backbones.
        train: training of each; its backbone is replaced.
        export: formats, precisions and the accuracy gate.
        contract: the limits.
        tries: backbones that are trained, at most.
    """

    rank: RankConfig = RankConfig()
    train: TrainConfig = TrainConfig()
    export: ExportConfig = ExportConfig()
    contract: Contract
    tries: int = Field(default=3, ge=1, le=20)
