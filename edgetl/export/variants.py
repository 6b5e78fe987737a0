"""Export of one variant: write its files and evaluate them in the device's engine. int8 uses a quantization search."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import onnx

from edgetl.core.manifest import Format, Precision, Sensitivity
from edgetl.export.context import ExportContext, open_files
from edgetl.export.formats import FORMATS
from edgetl.export.quantize.attempts import AccuracyControl, QuantizerInput
from edgetl.export.quantize.search import ExportedVariant, SearchContext, search_quantization

# Number of gate images on which NNCF's accuracy-aware search measures accuracy.
CONTROL_IMAGES = 300
# Largest number of operations in the manifest. It keeps the manifest of a large network small.
MOST_SENSITIVITIES = 60


def export_variant(context: ExportContext, format_: Format, precision: Precision, target: Path) -> ExportedVariant:
    """Write one variant into the folder ``target`` and evaluate it. An empty ``result.reason`` means that it passed.

    Raises:
        ExportError: the network cannot be converted.
    """
    backend, exact = FORMATS[format_], precision == "fp32"
    if precision == "int8":
        variant = quantize(context, format_, target)
    else:
        files = backend.write(precision, context.source, target)
        variant = ExportedVariant(files, context.evaluate(open_files(format_, files), exact=exact))
    if context.config.input == "float" or variant.result.reason:
        return variant
    backend.add_normalization(variant.files[0], context.gate.spec)
    return replace(variant, result=context.evaluate(context.open_variant(format_, variant.files), exact=exact))


def quantize(context: ExportContext, format_: Format, target: Path) -> ExportedVariant:
    """Quantize the fp32 ONNX file for one engine by a quantization search, into the folder ``target``.

    Raises:
        ExportError: no attempt could write a file.
    """
    task = context.gate.decoding.task
    calibration = [row[None] for batch in context.calibration.batches() for row in batch]
    control = (
        AccuracyControl(partial(context.measurement_images, CONTROL_IMAGES), context.limits.max_drop) if task == "classification" else None
    )
    with tempfile.TemporaryDirectory(dir=context.work) as work:
        # 8-bit similarities change the nearest neighbors, which costs 1 to 6 points of accuracy on the digits.
        fp32_end = context.run.record.head.kind == "knn"
        quantizer = FORMATS[format_].quantizer(QuantizerInput(context.source, calibration, Path(work), fp32_end, control))
        search = SearchContext(
            open_files=partial(open_files, format_),
            evaluate=context.evaluate,
            refit=lambda: context.refit,
            measurement_images=context.measurement_images,
            task=task,
            explain=context.config.explain,
            progress=context.progress,
        )
        variant = search_quantization(quantizer, quantizer.attempts(context.config.cpu), target, search)
    return replace(variant, sensitivities=_with_layers(variant.sensitivities[:MOST_SENSITIVITIES], context.source))


def _with_layers(measured: tuple[Sensitivity, ...], source: Path) -> tuple[Sensitivity, ...]:
    """Add the names of the trained model's modules. The exporter names an operation's weights after its module."""
    graph = onnx.load(source).graph
    weights = {item.name for item in graph.initializer if item.name.endswith(".weight")}
    layers = {node.name: name.removesuffix(".weight") for node in graph.node for name in node.input if name in weights}
    return tuple(item.model_copy(update={"layer": layers.get(item.operation.removesuffix("/WithoutBiases"), "")}) for item in measured)
