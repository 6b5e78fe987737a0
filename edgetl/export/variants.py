"""One variant's files: written, judged in the engine that the device uses, and for int8 quantized until the gate holds."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import assert_never

import onnx
from torch import nn

from edgetl.core.manifest import Attempt, Format, Precision, Sensitivity
from edgetl.export.context import WATCHED_IMAGES, Workbench, open_files
from edgetl.export.convert.to_onnx import to_half
from edgetl.export.convert.to_openvino import read_onnx, save
from edgetl.export.convert.weights_only import pack_onnx, pack_openvino
from edgetl.export.gate.agreement import Logits, Verdict, judge
from edgetl.export.quantize.attempts import ladder
from edgetl.export.quantize.nncf_quantizer import OpenVinoQuantizer
from edgetl.export.quantize.ort_quantizer import OnnxQuantizer
from edgetl.export.quantize.search import Ground, climb

# A record is a proof for people, not a log of every operation of a large network.
MOST_SENSITIVITIES = 60


@dataclass(frozen=True)
class Made:
    """One variant's files and what the gate said; an empty ``verdict.reason`` is a pass."""

    files: list[Path]
    verdict: Verdict
    attempts: tuple[Attempt, ...] = ()
    sensitivities: tuple[Sensitivity, ...] = ()


def make(bench: Workbench, format_: Format, precision: Precision, source: Path, target: Path) -> Made:
    """Write one variant into the folder ``target`` and judge it; ``source`` is the fp32 ONNX file."""
    if precision == "int8":
        return quantize(bench, format_, source, target)
    files = _write(bench, format_, precision, source, target)
    return Made(files, judge(open_files(format_, files), bench.gate, bench.limits, exact=precision == "fp32", progress=bench.progress))


def _write(bench: Workbench, format_: Format, precision: Precision, source: Path, target: Path) -> list[Path]:
    files = [target / "model.onnx"] if format_ == "onnx" else [target / "model.xml", target / "model.bin"]
    match precision:
        case "fp32" | "int8":
            shutil.copyfile(source, files[0]) if format_ == "onnx" else save(read_onnx(source, *bench.infos), files[0])
        case "fp16":
            to_half(source, files[0]) if format_ == "onnx" else save(read_onnx(source, *bench.infos), files[0], half=True)
        case "int8-weights":
            if format_ == "onnx":
                pack_onnx(source, files[0])
            else:
                plain = bench.work / "plain.xml"
                save(read_onnx(source, *bench.infos), plain)
                pack_openvino(plain, files[0], bench.infos)
        case _:
            assert_never(precision)
    return files


def quantize(bench: Workbench, format_: Format, source: Path, target: Path) -> Made:
    """Climb the ladder from the fp32 ONNX file ``source``; where it ends and training is allowed, climb again from trained weights."""
    made = _climb(bench, format_, source, target)
    if not made.verdict.reason or bench.config.qat_steps == 0:
        return made
    trained, model = bench.trained_for_int8()
    again = _climb(bench, format_, trained, target, model=model)
    method = f"quantization-aware training ({bench.config.qat_steps} steps)"
    attempts = tuple(attempt.model_copy(update={"method": f"{method}, {attempt.method}"}) for attempt in again.attempts)
    return replace(again, attempts=(*made.attempts, *attempts), sensitivities=again.sensitivities or made.sensitivities)


def _climb(bench: Workbench, format_: Format, source: Path, target: Path, *, model: nn.Module | None = None) -> Made:
    """``model`` is the network of ``source`` where that is not the run's."""
    calibration = [row[None] for batch in bench.calibration.batches() for row in batch]
    work = Path(tempfile.mkdtemp(dir=bench.work))
    # Similarities in 8 bits choose other neighbours: on the digits that costs 1 to 6 points of accuracy.
    float_end = bench.run.record.head.kind == "knn"
    classes = bench.gate.decoding.task == "classification"
    quantizer: OnnxQuantizer | OpenVinoQuantizer
    products = False
    if format_ == "onnx":
        quantizer = OnnxQuantizer(source, calibration, work, float_end=float_end)
        products = quantizer.products
    else:
        save(read_onnx(source, *bench.infos), work / "model.xml")
        watched = partial(bench.probe, WATCHED_IMAGES) if classes else None
        quantizer = OpenVinoQuantizer(
            work / "model.xml", calibration, bench.infos, float_end=float_end, watched=watched, max_drop=bench.max_drop
        )
    ground = Ground(
        open_files=lambda files: open_files(format_, files),
        judge=lambda logits: _judge(bench, logits),
        refit=lambda: bench.refit(source, model),
        probe=bench.probe,
        task=bench.gate.decoding.task,
        explain=bench.config.explain,
        progress=bench.progress,
    )
    climbed = climb(quantizer, ladder(bench.config.cpu, format_, products=products, classes=classes), target, ground)
    shutil.rmtree(work)
    return Made(climbed.files, climbed.verdict, climbed.attempts, _with_layers(climbed.sensitivities[:MOST_SENSITIVITIES], source))


def _with_layers(measured: tuple[Sensitivity, ...], source: Path) -> tuple[Sensitivity, ...]:
    """Name the trained model's modules: the exporter calls an operation's weights by theirs."""
    graph = onnx.load(source).graph
    weights = {item.name for item in graph.initializer if item.name.endswith(".weight")}
    layers = {node.name: name.removesuffix(".weight") for node in graph.node for name in node.input if name in weights}
    return tuple(item.model_copy(update={"layer": layers.get(item.operation.removesuffix("/WithoutBiases"), "")}) for item in measured)


def _judge(bench: Workbench, logits: Logits) -> Verdict:
    return judge(logits, bench.gate, bench.limits, exact=False)
