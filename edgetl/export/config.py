"""Configuration of ``export`` and ``fit``: types, defaults, bounds and help texts."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import BeforeValidator, Field

from edgetl.core.config import StrictModel
from edgetl.core.contract import Contract
from edgetl.core.manifest import Format, Precision
from edgetl.core.options import COMMON, option_field, words
from edgetl.core.preprocess import InputForm
from edgetl.train.config.options import TrainConfig
from edgetl.train.config.ranking import RankConfig

# Formats that other tools write from an export. The names are reserved for future variants of edgetl.
RESERVED = {
    "tflite": "export onnx and run `onnx2tf -i model.onnx`, or convert the run's timm network with litert-torch (formerly ai-edge-torch)",
    "executorch": "apply torch.export to the run's timm network, then executorch.exir.to_edge_transform_and_lower",
    "coreml": "apply torch.export or torch.jit.trace to the run's timm network, then coremltools.convert (it does not read ONNX)",
    "ncnn": "export onnx and run `pnnx model.onnx inputshape=[1,3,H,W]`",
}


def _precisions(value: object) -> object:
    return _check(words(value), get_args(Precision))


def _formats(value: object) -> object:
    names = words(value)
    if isinstance(names, tuple) and not set(names) - set(get_args(Format)) - set(RESERVED) and (reserved := set(names) & set(RESERVED)):
        lines = [f"{name}: edgetl does not write this format. Instead, {RESERVED[name]}." for name in names if name in reserved]
        loads = 'Load the run\'s timm network with timm.create_model("local-dir:RUN", pretrained=True)'
        raise ValueError("\n".join([f"{','.join(names)} is not supported.", *lines, loads]))
    return _check(names, get_args(Format))


def _check(names: object, known: tuple[str, ...]) -> object:
    if not isinstance(names, tuple):
        return names
    unknown = ", ".join(name for name in names if name not in known)
    if unknown or not names:
        raise ValueError(f"{f'{unknown} is not supported' if unknown else 'no value was given'}. Choose from {', '.join(known)}")
    return names


_common = partial(option_field, panel=COMMON)
_gate = partial(option_field, panel="Accuracy gate")
_quantization = partial(option_field, panel="Quantization")
_input = partial(option_field, panel="Model input")
_bundle = partial(option_field, panel="Bundle")


class ExportConfig(StrictModel):
    """Configuration of an export: formats, precisions, accuracy gate, calibration.

    ``export_bundle`` takes it. ``edgetl export`` has one option for each field; the option's help describes the field.

    Attributes:
        formats: file formats, ``onnx`` and ``openvino``.
        precisions: ``fp32``, ``fp16``, ``int8`` (weights and activations), ``int8-weights`` (weights only).
        data: folder of the run's images. None uses the folder of the training.
        unlabeled: folder of unlabeled images for the accuracy gate, for an adapted run also for the calibration. None uses the images of
            the adaptation.
        name: name of the model in the manifest. None uses the name of the run.
        max_drop: largest drop of a quantized variant on the validation images, 0..1.
        strict: compare ``max_drop`` with the one-sided 95 % bound of the drop.
        min_agreement: smallest ratio of confident predictions that equal the trained model's, 0..1.
        calibration_images: number of training images for the calibration of int8.
        gate_images: largest number of validation images for the accuracy gate.
        cpu: ``here`` quantizes for this CPU. ``any`` uses 7-bit weights, which are safe on x86 CPUs without VNNI.
        release: release number of the bundle. Raise it with every shipment. None: 1, or that of the update.
        signed_by: fingerprint of the key that signs the bundle after the export. The model card shows it.
        allow_missing: keep the variants that passed when another variant was rejected.
        input: input of the files. ``float`` is float32 ``[batch, 3, H, W]``; ``uint8`` is RGB pixels ``[batch, H, W, 3]``.
        input_size: height and width of the input, pixels. None uses the run's size.
        explain: measure the sensitivity of each operation to quantization.
        profile: output of ``edgetl bench --json`` on the device. Latency limits then apply to that device.
    """

    formats: Annotated[tuple[Format, ...], BeforeValidator(_formats)] = _common(
        ("onnx", "openvino"), "File formats: onnx, openvino, or both, separated by commas.", option="format", metavar="LIST"
    )
    precisions: Annotated[tuple[Precision, ...], BeforeValidator(_precisions)] = _common(
        ("fp32", "int8"),
        "Precisions: fp32, fp16, int8 (weights and activations), int8-weights (weights only), or several, separated by commas.",
        option="precision",
        metavar="LIST",
    )
    data: Path | None = _common(
        None, "Folder of the images that the run was trained on, except for adapted runs. Default: its original path."
    )
    max_drop: float = _gate(
        0.01,
        "Accuracy gate: largest accuracy drop of a variant on the validation images, 0..1. The metric is accuracy; for multi-label, mean "
        "average precision and the ratio of correct decisions; for regression, R².",
        ge=0.0,
        le=1.0,
    )
    strict: bool = _gate(False, "Compare --max-drop with the upper 95 % confidence bound of the drop, not with its estimate.")
    unlabeled: Path | None = _gate(
        None,
        "Folder of unlabeled images. The accuracy gate also measures agreement with the trained model on them. Adapted run: images of the "
        "target domain for calibration and gate. Default: those of the adaptation, or none for other runs.",
    )
    allow_missing: bool = _gate(False, "Write the bundle although a variant failed the gate. fp16 replaces an int8 variant that failed.")
    min_agreement: float = _gate(
        0.97,
        "Smallest ratio of confident predictions that equal those of the trained model, 0..1. Confident: a class score of at least 0.6; "
        "log-odds of a label as far from its threshold; a grade 0.1 from the next. In regression every prediction counts, within the "
        "tolerance.",
        ge=0.0,
        le=1.0,
    )
    gate_images: int = _gate(1000, "Largest number of validation images for the accuracy gate.", ge=1)
    calibration_images: int = _quantization(300, "Training images for the calibration of int8.", option="num_samples", ge=1)
    cpu: Literal["here", "any"] = _quantization(
        "here", "CPU of the device. here: like this host. any: 7-bit weights, which are also accurate on x86 CPUs without VNNI."
    )
    explain: bool = _quantization(False, "Measure the sensitivity of each operation to quantization, even if the gate passed.")
    input: InputForm = _input(
        "float", "Input of the exported models. float: normalized tensor. uint8: resized RGB pixels (batch, H, W, 3); the model normalizes."
    )
    input_size: int | None = _input(
        None,
        "Height and width of the input, pixels, 32..1024. The accuracy drop of the new size counts in --max-drop. Default: the run's.",
        ge=32,
        le=1024,
    )
    name: str | None = _bundle(None, "Model name in the manifest and in the HTTP API. Default: the name of the run.", metavar="NAME")
    release: int | None = _bundle(
        None,
        "Release number of the bundle. Increase it with every shipment. Default: 1; one more for each `edgetl update`.",
        metavar="INT",
        ge=1,
        lt=2**53,
    )
    signed_by: str | None = _bundle(None, "Fingerprint of the key that signs the bundle after the export, for the model card.")
    profile: Path | None = option_field(
        None,
        "Output of `edgetl bench --json` on the device. --max-latency-ms then applies to that device.",
        panel="Deployment contract",
    )


class FitConfig(StrictModel):
    """Configuration of ``fit``.

    Attributes:
        rank: ranking of the candidate backbones.
        train: training of each backbone. Its ``backbone`` is replaced.
        export: formats, precisions and the accuracy gate.
        contract: limits of the deployment contract.
        tries: largest number of backbones that are trained.
    """

    rank: RankConfig = RankConfig()
    train: TrainConfig = TrainConfig()
    export: ExportConfig = ExportConfig()
    contract: Contract
    tries: int = Field(default=3, ge=1, le=20)
