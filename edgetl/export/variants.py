"""Export of one variant: write its files, evaluate them in the device's engine, and evaluate its execution settings.

int8 uses a quantization search.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from edgetl.core.manifest import Format, MeasuredSetting, Precision, Sensitivity
from edgetl.core.metrics import evaluate
from edgetl.core.output_decoding import scores_of
from edgetl.core.preprocess import preprocess
from edgetl.core.system.execution import DEFAULT_SETTING, ExecutionSetting
from edgetl.data.loading import truth_of
from edgetl.export.context import ExportContext, open_files
from edgetl.export.formats import FORMATS
from edgetl.export.gate.agreement import Logits, evaluate_file, outputs_of
from edgetl.export.gate.unlabeled import MAX_EXPECTED_DROP
from edgetl.export.quantize.attempts import AccuracyControl, QuantizerInput
from edgetl.export.quantize.search import ExportedVariant, SearchContext, search_quantization
from edgetl.runtime.engine import supported_settings
from edgetl.train.heads.modules import HeadSpec

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
    task, head = context.gate.decoding.task, context.run.record.head
    calibration = [row[None] for batch in context.calibration.batches() for row in batch]
    control = (
        AccuracyControl(partial(context.measurement_images, CONTROL_IMAGES), context.limits.max_drop) if task == "classification" else None
    )
    with tempfile.TemporaryDirectory(dir=context.work) as work:
        quantizer = FORMATS[format_].quantizer(QuantizerInput(context.source, calibration, Path(work), _float_ends(head), control))
        search = SearchContext(
            open_files=partial(open_files, format_),
            evaluate=context.evaluate,
            refit=lambda: context.refit,
            measurement_images=context.measurement_images,
            task=task,
            explain=context.config.explain,
            progress=context.progress,
        )
        attempts = quantizer.attempts(context.config.cpu)
        if head.distances:  # it has no linear layer on features to re-fit
            attempts = list(dict.fromkeys(replace(item, refit=False) for item in attempts))
        # In a cross-validated run, the gate has the images that a head would be re-fitted on, and could not detect overfitting. The votes
        # of a gallery need the k-NN head as it was fitted.
        fixed_head = context.gate.folds or context.knn is not None
        attempts = [item for item in attempts if not (item.refit and fixed_head)]
        variant = search_quantization(quantizer, attempts, target, search)
    return replace(variant, sensitivities=_with_layers(variant.sensitivities[:MOST_SENSITIVITIES], context.source))


def _float_ends(head: HeadSpec) -> int:
    """Return the number of vector lengths in a head that stays in fp32; 0 if the head is quantized.

    8-bit similarities of a k-NN head change the nearest neighbors, which costs 1 to 6 points of accuracy on the digits. 8-bit distances of
    an anomaly head lose the directions of small variance.
    """
    if head.distances:
        return 2 if head.distances.image_width else 1
    return int(head.kind == "knn")


def measure_settings(
    context: ExportContext, format_: Format, files: Sequence[Path], golden: Sequence[Path], *, scores: NDArray[np.float32]
) -> tuple[MeasuredSetting, ...]:
    """Evaluate the execution settings of a variant that this host supports, with the accuracy gate.

    Precision (or provider) and scaled decoding are measured alone first. They are combined if the gate keeps both.

    Args:
        context: context of the export.
        format_: format of the files.
        files: files of the variant.
        golden: golden images.
        scores: scores of the default setting for the golden images, ``[n, labels]``.
    """

    def measure(setting: ExecutionSetting) -> MeasuredSetting:
        return _measure_setting(context, setting, context.open_variant(format_, files, setting), golden, scores=scores)

    found = [measure(setting) for setting in supported_settings(format_) if setting != DEFAULT_SETTING]
    scaled = ExecutionSetting(decode="scaled")
    if reason := _too_few_scaled(context):
        return (*found, MeasuredSetting(setting=scaled, kept=False, reason=reason, scaled_images=context.scaled.count))
    alone = measure(scaled)
    both = [item.setting.model_copy(update={"decode": "scaled"}) for item in found if item.kept and alone.kept]
    return (*found, alone, *map(measure, both))


def _too_few_scaled(context: ExportContext) -> str:
    """Return the reason why the validation images cannot measure scaled decoding; empty if they can."""
    count, n = context.scaled.count, len(context.gate.samples)
    limit = max(MAX_EXPECTED_DROP, context.limits.max_drop)
    if count * 2 >= n and count * limit >= 1:
        return ""
    validation = context.gate.kind == "validation"
    if count * 2 >= n:
        remedy = "Add validation images (--val)" if validation else "Give more target images"
    else:
        remedy = f"{'Train on' if validation else 'Give target'} images as large as those of the device"
    needed = max(math.ceil(1 / limit), math.ceil(n / 2))
    return f"{count} of {n} {context.gate.name} are JPEG files that this setting scales. It needs {needed} or more. {remedy}"


def _measure_setting(
    context: ExportContext, setting: ExecutionSetting, logits: Logits, golden: Sequence[Path], *, scores: NDArray[np.float32]
) -> MeasuredSetting:
    decoding, gate, tested = context.gate.decoding, context.gate, context.test
    if setting.decode == "scaled":
        # Random crops of a scaled image have fewer pixels than an image of that size.
        gate, tested = replace(gate, images=context.scaled.validation, more=None, confetti=None), context.scaled.test
    result = evaluate_file(logits, gate, context.limits, exact=False, progress=context.progress)
    outputs = outputs_of(logits, tested, progress=context.progress) if len(tested) else None
    found = scores_of(decoding.uncalibrated, np.concatenate([logits(preprocess(path, gate.spec)[None]) for path in golden]))
    return MeasuredSetting(
        setting=setting,
        kept=not result.reason,
        reason=result.reason,
        agreement=result.agreement,
        validation=result.validation,
        test=None if outputs is None else evaluate(decoding, truth_of(tested.samples), outputs).score,
        accuracy_drop=result.accuracy_drop,
        scaled_images=context.scaled.count if setting.decode == "scaled" else 0,
        golden_difference=float(np.abs(found - scores).max()) / decoding.decision_rule.spread,
    )


def _with_layers(measured: tuple[Sensitivity, ...], source: Path) -> tuple[Sensitivity, ...]:
    """Add the names of the trained model's modules. The exporter names an operation's weights after its module."""
    graph = onnx.load(source).graph
    weights = {item.name for item in graph.initializer if item.name.endswith(".weight")}
    layers = {node.name: name.removesuffix(".weight") for node in graph.node for name in node.input if name in weights}
    return tuple(item.model_copy(update={"layer": layers.get(item.operation.removesuffix("/WithoutBiases"), "")}) for item in measured)
