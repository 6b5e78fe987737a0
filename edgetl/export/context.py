"""Export context: the run, its images, the trained model's outputs and the accuracy gate, shared by all steps of one export."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgetl.core.images.decode import upright_jpeg_size
from edgetl.core.manifest import Calibration, Format
from edgetl.core.output_decoding import decode
from edgetl.core.preprocess import PreprocessSpec, decode_factor, pixels_of
from edgetl.core.progress import Progress
from edgetl.core.reference import Reference, describe_validation, image_statistics
from edgetl.core.results import Proportion, validation_images
from edgetl.core.system.execution import DEFAULT_SETTING, ExecutionSetting
from edgetl.core.system.host import available_cores, versions
from edgetl.core.tasks import KnnHead
from edgetl.data.anomalies.defects import with_confetti
from edgetl.data.loading import PixelSet, stratified, truth_of
from edgetl.errors import AccuracyGateError, ConfigError, first_line
from edgetl.export.config import ExportConfig
from edgetl.export.convert.metadata import file_metadata
from edgetl.export.convert.to_onnx import to_onnx
from edgetl.export.formats import SOURCE_FORMAT
from edgetl.export.gate.agreement import (
    GateResult,
    GateSet,
    Logits,
    drop_reason,
    evaluate_file,
    outputs_of,
    too_few_for_strict,
    trained_logits,
)
from edgetl.export.gate.anomalies import ConfettiSet, choose_confetti
from edgetl.export.gate.images import ExportImages, read_images
from edgetl.export.gate.unlabeled import AgreementSet, choose_images, decide_alone
from edgetl.export.quantize.attempts import FloatHead, MeasurementImages
from edgetl.export.quantize.search import RefitData
from edgetl.runtime.engine import load_engine
from edgetl.train.artifacts.run import Run
from edgetl.train.heads.modules import HeadedNetwork, KnnOutputs, knn_head

# Number of gate images for measuring the sensitivity of single operations.
MEASUREMENT_IMAGES = 64
LEAST_REFIT_IMAGES = 2000
LEAST_CALIBRATION = 10
# The fp32 ONNX file. All other files are converted from it.
SOURCE_NAME = "model.onnx"


@dataclass(frozen=True)
class ScaledImages:
    """Validation and test images with scaled JPEG decoding; ``count`` validation images are decoded at a smaller scale."""

    validation: PixelSet
    test: PixelSet
    count: int


@dataclass
class ExportContext:
    """State of an export in progress.

    Attributes:
        run: the exported run.
        config: options of the export.
        limits: options of the accuracy gate. If the input is smaller than the run's, the drop that this costs is subtracted from
            ``max_drop``.
        images: images of the export, see ``edgetl.export.gate.images``.
        gate: images at the bundle's input size that decide whether a variant passes. Anomaly detection: normal images, and copies of them
            with synthetic defects.
        monitored: images of the monitoring reference. All of ``images.reference``, or a random sample of ``config.gate_images``. In a
            cross-validated run, the images of the gate.
        test: test images. They are reported only.
        calibration: images for measuring the int8 ranges. Anomaly detection: also a copy of each with confetti noise, because ranges of
            normal images alone clip the activations of anomalies.
        work: folder for intermediate files.
        progress: called at each stage.
        full_size: the trained model's score at the run's input size, if the bundle's input size differs.
    """

    run: Run
    config: ExportConfig
    limits: ExportConfig
    images: ExportImages
    gate: GateSet
    monitored: PixelSet
    test: PixelSet
    calibration: PixelSet
    work: Path
    progress: Progress
    full_size: Proportion | None = None

    @property
    def source(self) -> Path:
        """Path of the fp32 ONNX file that ``write_source`` writes."""
        return self.work / SOURCE_NAME

    @cached_property
    def knn(self) -> KnnHead | None:
        """Record of the k-NN head of the trained model; none for other heads."""
        return knn_head(self.run.load_model())

    def write_source(self) -> None:
        """Export the trained model as the fp32 ONNX file. All variants are converted from this file.

        Raises:
            ExportError: torch cannot export the network.
        """
        metadata = file_metadata(self.gate.spec, self.gate.decoding, versions()["edgetl"], self.config.input)
        self.progress("exporting to ONNX", 0, 1)
        model, knn = self.run.load_model(), self.knn
        if knn is not None and isinstance(model, HeadedNetwork):
            to_onnx(KnnOutputs(model), self.gate.spec, self.source, metadata, more=tuple(knn.outputs(len(self.gate.decoding.labels))))
        else:
            to_onnx(model, self.gate.spec, self.source, metadata)
        self.progress("exporting to ONNX", 1, 1)

    def evaluate(self, logits: Logits, *, exact: bool = False) -> GateResult:
        """Return the gate result of a loaded file; ``exact`` is true for fp32."""
        return evaluate_file(logits, self.gate, self.limits, exact=exact, progress=self.progress)

    @property
    def strict_problem(self) -> str:
        """Reason why ``--strict`` rejects every file of reduced precision on so few images of the gate; empty if it does not."""
        n, images = len(self.gate.samples), self.gate.name
        return too_few_for_strict(n, self.limits, images=images) if self.gate.decoding.task == "classification" else ""

    def open_variant(self, format_: Format, files: Sequence[Path], setting: ExecutionSetting = DEFAULT_SETTING) -> Logits:
        """Load a variant's files as a function of normalized float32 batches, even if the network takes uint8 pixels."""
        run = open_files(format_, files, setting=setting)
        return run if self.config.input == "float" else lambda batch: run(pixels_of(batch, self.gate.spec))  # type: ignore[arg-type]

    @cached_property
    def agreement_set(self) -> AgreementSet:
        """Unlabeled images and crops in addition to the gate's images, with the trained model's outputs for them.

        None if the gate's images have no labels, and decide alone: their expected drop is then that of the file.
        """
        others = [] if self.gate.folds else self.images.fitting
        images = choose_images(self.gate.samples, others, self.images.unlabeled, self.gate.spec)
        if not self.gate.labeled and decide_alone(len(self.gate.samples), self.limits.max_drop):
            images = ()
        outputs = np.concatenate([self.gate.trained[:0], *(self._trained_outputs(part) for part in images)])
        offset = np.zeros_like(outputs)
        if self.gate.folds and images and images[-1].crops:
            offset[-len(images[-1]) :] = np.repeat(self.gate.offset, images[-1].crops, axis=0)
        return AgreementSet(images, outputs + offset, offset)

    @cached_property
    def confetti(self) -> ConfettiSet:
        """Anomaly detection: copies of the gate's normal images with confetti noise, and the trained model's outputs for them."""
        images = PixelSet(choose_confetti(self.gate.samples), self.gate.spec)
        return ConfettiSet(images, self._trained_outputs(images))

    @cached_property
    def scaled(self) -> ScaledImages:
        """Validation and test images with scaled JPEG decoding."""
        spec = self.gate.spec.model_copy(update={"decode": "scaled"})
        sizes = [upright_jpeg_size(sample.path) for sample in self.gate.samples]
        count = sum(size is not None and decode_factor(*size, spec) > 1 for size in sizes)
        return ScaledImages(PixelSet(self.gate.samples, spec), PixelSet(self.test.samples, spec), count)

    @cached_property
    def refit(self) -> RefitData:
        """Data for re-fitting the head: images, the trained model's outputs for them, and its head."""
        images = PixelSet(stratified(self.images.fitting, max(LEAST_REFIT_IMAGES, self.config.calibration_images)), self.gate.spec)
        head = self.run.load_model().get_submodule(self.run.record.backbone.head_name)
        assert isinstance(head, nn.Linear)
        found: torch.Tensor | None = head.bias
        bias = torch.zeros(head.out_features) if found is None else found.detach()
        return RefitData(images, self._trained_outputs(images), FloatHead(head.weight.detach().numpy(), bias.numpy()))

    @cached_property
    def reference(self) -> Reference | None:
        """Monitoring reference: predictions of the trained model and image statistics of validation or target images."""
        images, decoding = self.monitored, self.gate.decoding
        outputs = self.gate.trained if images is self.gate.images else self._trained_outputs(images)
        statistics = np.concatenate([image_statistics(batch, images.spec) for batch in images.batches()])
        return describe_validation(decode(decoding, outputs), statistics, decoding)

    def _trained_outputs(self, images: PixelSet) -> NDArray[np.float32]:
        """Return the outputs of the fp32 ONNX file. The gate has compared this file with torch."""
        return outputs_of(open_files(SOURCE_FORMAT, [self.source]), images, stage="running the trained model", progress=self.progress)

    def calibration_record(self) -> Calibration | None:
        """Return the record of the calibration images; none if no int8 variant is requested."""
        if "int8" not in self.config.precisions:
            return None
        samples = [sample for sample in self.calibration.samples if sample.synthetic is None]
        digest = hashlib.sha256("\n".join(sorted(sample.content for sample in samples)).encode()).hexdigest()
        source, preprocess = self.images.source, self.gate.spec.digest()
        return Calibration(n=len(samples), source=source, images_sha256=digest, preprocess_sha256=preprocess)

    def measurement_images(self, count: int = MEASUREMENT_IMAGES) -> MeasurementImages:
        """Return ``count`` gate images for measuring operations. Classes alternate. Anomaly detection: half have confetti noise."""
        task, count = self.gate.decoding.task, min(count, len(self.gate.images))
        images = np.concatenate([batch for _, batch in zip(range(0, count, 32), self.gate.images.batches(), strict=False)])[:count]
        trained = (self.gate.trained - self.gate.offset)[:count]
        if task == "anomaly":
            normal, changed = truth_of(self.gate.samples)[:count] == 0, range(count // 2)
            images = np.concatenate([images[normal], self.confetti.images.rows(changed)])
            trained = np.concatenate([trained[normal], self.confetti.trained[: len(changed)]])
        known = truth_of(self.gate.samples)[:count] if task == "classification" else np.empty(0, np.intp)
        return MeasurementImages(images, trained, known)


def prepare(run: Run, config: ExportConfig, work: Path, progress: Progress) -> ExportContext:
    """Prepare the context of an export: find the images and compute the trained model's outputs.

    Raises:
        DataError: the run's images are missing, or ``unlabeled`` contains no usable image.
        ConfigError: the network does not support the requested input size, or an option does not fit the run.
        AccuracyGateError: a smaller input alone exceeds ``max_drop``, or there are too few calibration images for int8, or too few
            validation images for ``strict``.
    """
    images = read_images(run, config, progress=progress)
    _check_request(run, config, images)
    spec = resized(run.record.preprocess, config.input_size)
    gate, full = _gate_sets(run, config, images, spec, progress=progress)
    limits, full_size = config, None
    if spec != run.record.preprocess:
        full_size, left = _allow_for_size(full, gate, config)
        limits = config.model_copy(update={"max_drop": left})
    calibrating = stratified(images.fitting, config.calibration_images)
    calibrating = with_confetti(calibrating) if run.record.task == "anomaly" else calibrating
    test_images, calibration = PixelSet(stratified(images.test, config.gate_images), spec), PixelSet(calibrating, spec)
    # The gate's images are balanced over the classes. The reference needs the class frequencies of the data.
    sample = PixelSet(sorted(images.reference, key=lambda item: item.content)[: config.gate_images], spec)
    complete = images.reference is images.gate and len(images.gate) <= config.gate_images
    monitored = gate.images if images.folds or complete else sample
    context = ExportContext(run, config, limits, images, gate, monitored, test_images, calibration, work, progress, full_size)
    if run.record.task == "anomaly":
        context.gate = replace(context.gate, confetti=lambda: context.confetti)
    # Crops of normal images change the decisions of an anomaly detector, whose gate has synthetic defects instead.
    if run.record.task != "anomaly" or images.unlabeled:
        context.gate = replace(context.gate, more=lambda: context.agreement_set)
    return context


def _check_request(run: Run, config: ExportConfig, images: ExportImages) -> None:
    """Check that the run's images and task allow the requested files, before anything is computed.

    Raises:
        AccuracyGateError: there are too few calibration images for int8, or too few validation images for ``strict``.
        ConfigError: an input size is requested for an anomaly detector, or ``strict`` without labels.
    """
    if run.record.task == "anomaly" and config.input_size is not None:
        raise ConfigError("--input-size: the heat map of an anomaly detector has a fixed size. Train at this size (--input-size).")
    used = min(len(images.fitting), config.calibration_images)
    if "int8" in config.precisions and used < LEAST_CALIBRATION:
        raise AccuracyGateError(
            f"int8 calibration needs at least {LEAST_CALIBRATION} images, and {used} would be used. Nothing was written. Raise "
            f"--num-samples, add {images.source} images, or remove int8 from --precision."
        )
    reduced = run.record.task == "classification" and any(precision != "fp32" for precision in config.precisions)
    if reduced and config.strict and images.kind == "unlabeled target":
        raise ConfigError(
            f"--strict needs labels, and the target images of {run.path} have none. Adapt the run with --target-labels, or omit --strict."
        )
    name = validation_images(images.folds) if images.kind == "validation" else f"{images.kind} images"
    n = min(len(images.gate), config.gate_images)
    if reduced and not config.allow_missing and (problem := too_few_for_strict(n, config, images=name)):
        more = "training images" if images.folds else name
        raise AccuracyGateError(f"{problem}. Nothing was written. Add {more}, raise --max-drop, or omit --strict.")


def _gate_sets(
    run: Run, config: ExportConfig, images: ExportImages, spec: PreprocessSpec, *, progress: Progress
) -> tuple[GateSet, GateSet]:
    """Return the gate's images with the trained model's outputs, at the bundle's input size (``spec``) and at the run's."""
    gate = _gate_set(run, PixelSet(stratified(images.gate, config.gate_images), spec), progress)
    full = gate if spec == run.record.preprocess else _gate_set(run, PixelSet(gate.samples, run.record.preprocess), progress)
    gate, full = (replace(item, kind=images.kind, folds=images.folds) for item in (gate, full))
    if images.folds:
        rows = {sample.path: row for sample, row in zip(images.fitting, run.out_of_fold_outputs(), strict=True)}
        offset = np.stack([rows[sample.path] for sample in gate.samples]) - full.trained
        gate, full = (replace(item, trained=item.trained + offset, offset=offset) for item in (gate, full))
    if not gate.labeled:
        predicted = full.trained.argmax(axis=1).tolist()
        gate, full = (replace(item, images=item.images.with_labels(predicted)) for item in (gate, full))
    return gate, full


def resized(spec: PreprocessSpec, side: int | None) -> PreprocessSpec:
    """Return ``spec`` with a square input of ``side`` pixels; none keeps the input size."""
    return spec if side is None else spec.model_copy(update={"input_size": (side, side)})


def _gate_set(run: Run, images: PixelSet, progress: Progress) -> GateSet:
    try:
        return GateSet(images, trained_logits(run.load_model(), images, progress=progress), run.record.decoding)
    except (RuntimeError, AssertionError) as error:
        size = " x ".join(str(side) for side in images.spec.input_size)
        raise ConfigError(
            f"{run.record.backbone.architecture} does not support an input of {size} pixels: {first_line(error)} Export without "
            f"--input-size, or train at this size: "
            f"edgetl train DATA --input-size {','.join(map(str, images.spec.input_size))} --backbone {run.path}."
        ) from error


def _allow_for_size(full: GateSet, gate: GateSet, config: ExportConfig) -> tuple[Proportion, float]:
    """Return the trained model's score at the run's input size (``full``), and ``max_drop`` less the drop that the size of ``gate`` costs.

    Raises:
        AccuracyGateError: the input size alone exceeds ``max_drop``.
    """
    if reason := drop_reason(full, gate.trained, config):
        raise AccuracyGateError(
            f"the input size of {gate.spec.input_size[0]} pixels lowers the score of the trained model: {reason}. Nothing was written. "
            f"Train at this size, or raise --max-drop."
        )
    return full.evaluation.score, min(config.max_drop, config.max_drop - full.drop_of(gate.trained))


def open_files(
    format_: Format, files: Sequence[Path], *, threads: int | None = None, setting: ExecutionSetting = DEFAULT_SETTING
) -> Logits:
    """Load files in the engine that the device uses, and return the function from a batch to logits."""
    return load_engine(format_, [path.read_bytes() for path in files], threads=threads or available_cores(), setting=setting).run
