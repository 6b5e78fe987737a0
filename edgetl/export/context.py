"""Export context: the run, its images, the trained model's outputs, and the gate, shared by all steps of one export."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgetl.core.manifest import Calibration, Format
from edgetl.core.preprocess import PreprocessSpec, pixels_of
from edgetl.core.progress import Progress
from edgetl.core.results import Proportion
from edgetl.core.system.host import available_cores, versions
from edgetl.data.folder import Sample
from edgetl.data.loading import PixelSet, stratified, truth_of
from edgetl.errors import AccuracyGateError, ConfigError, first_line
from edgetl.export.config import ExportConfig
from edgetl.export.convert.metadata import file_metadata
from edgetl.export.convert.to_onnx import to_onnx
from edgetl.export.formats import SOURCE_FORMAT
from edgetl.export.gate.agreement import GateResult, GateSet, Logits, accuracy_drop, drop_reason, evaluate_file, outputs_of, trained_logits
from edgetl.export.gate.unlabeled import AgreementSet, choose_images, read_unlabeled
from edgetl.export.quantize.attempts import FloatHead, Probe
from edgetl.export.quantize.search import RefitData
from edgetl.runtime.engine import load_engine
from edgetl.train.artifacts.run import Run

# Images of the gate on which single operations are measured.
PROBE_IMAGES = 64
LEAST_REFIT_IMAGES = 2000
LEAST_CALIBRATION = 10
# The fp32 ONNX file that all others are made from.
SOURCE_NAME = "model.onnx"


@dataclass
class ExportContext:
    """State of an export in progress.

    Attributes:
        run: the exported run.
        config: options.
        limits: options of the gate: their ``max_drop`` is what a smaller input leaves of that of ``config``.
        gate: validation images that decide, at the bundle's input size.
        train: samples to fit heads on again.
        test: images that are reported.
        calibration: images that int8 ranges are measured on.
        work: a folder for intermediate files.
        progress: called at each stage.
        unlabeled: further, unlabeled images on which agreement is measured.
        full_size: the trained model's figure at the run's own input size, if the bundle's is another.
    """

    run: Run
    config: ExportConfig
    limits: ExportConfig
    gate: GateSet
    train: list[Sample]
    test: PixelSet
    calibration: PixelSet
    work: Path
    progress: Progress
    unlabeled: list[Sample] = field(default_factory=list)
    full_size: Proportion | None = None

    @property
    def source(self) -> Path:
        """The fp32 ONNX file, once ``write_source`` has written it."""
        return self.work / SOURCE_NAME

    def write_source(self) -> None:
        """Export the trained model as the fp32 ONNX file that all variants are made from.

        Raises:
            ExportError: torch cannot export the network.
        """
        metadata = file_metadata(self.gate.spec, self.gate.decoding, versions()["edgetl"], self.config.input)
        self.progress("exporting to ONNX", 0, 1)
        to_onnx(self.run.load_model(), self.gate.spec, self.source, metadata)
        self.progress("exporting to ONNX", 1, 1)

    def evaluate(self, logits: Logits, *, exact: bool = False) -> GateResult:
        """Gate result of a loaded file; ``exact`` is true for fp32."""
        return evaluate_file(logits, self.gate, self.limits, exact=exact, progress=self.progress)

    def open_variant(self, format_: Format, files: Sequence[Path]) -> Logits:
        """A variant's files for float batches, also if the network takes pixels."""
        run = open_files(format_, files)
        return run if self.config.input == "float" else lambda batch: run(pixels_of(batch, self.gate.spec))  # type: ignore[arg-type]

    @cached_property
    def agreement_set(self) -> AgreementSet:
        """Images beside the gate's, and the trained model's outputs for them."""
        images = choose_images(self.gate.samples, self.train, self.unlabeled, self.gate.spec)
        return AgreementSet(images, np.concatenate([self.gate.trained[:0], *(self._trained_outputs(part) for part in images)]))

    @cached_property
    def refit(self) -> RefitData:
        """Training images, the trained model's outputs for them, and its head."""
        images = PixelSet(stratified(self.train, max(LEAST_REFIT_IMAGES, self.config.calibration_images)), self.gate.spec)
        head = self.run.load_model().get_submodule(self.run.record.backbone.head_name)
        assert isinstance(head, nn.Linear)
        found: torch.Tensor | None = head.bias
        bias = torch.zeros(head.out_features) if found is None else found.detach()
        return RefitData(images, self._trained_outputs(images), FloatHead(head.weight.detach().numpy(), bias.numpy()))

    def _trained_outputs(self, images: PixelSet) -> NDArray[np.float32]:
        """Outputs of the fp32 ONNX file, which the gate compared with torch's."""
        return outputs_of(open_files(SOURCE_FORMAT, [self.source]), images, stage="the trained model's outputs", progress=self.progress)

    def calibration_record(self) -> Calibration | None:
        """Digest of the calibration images; none if there is no int8 variant."""
        if "int8" not in self.config.precisions:
            return None
        samples = self.calibration.samples
        digest = hashlib.sha256("\n".join(sorted(sample.content for sample in samples)).encode()).hexdigest()
        return Calibration(n=len(samples), images_sha256=digest, preprocess_sha256=self.gate.spec.digest())

    def probe(self, count: int = PROBE_IMAGES) -> Probe:
        """The first of the gate's images, the classes in turn."""
        count = min(count, len(self.gate.images))
        images = np.concatenate([batch for _, batch in zip(range(0, count, 32), self.gate.images.batches(), strict=False)])[:count]
        known = truth_of(self.gate.samples)[:count] if self.gate.decoding.task == "classification" else np.empty(0, np.intp)
        return Probe(images, self.gate.trained[:count], known)


def prepare(run: Run, config: ExportConfig, work: Path, progress: Progress) -> ExportContext:
    """Find the images, and compute the trained model's outputs.

    Raises:
        DataError: the run's images are missing, or ``unlabeled`` holds none.
        ConfigError: the network does not take another input size.
        AccuracyGateError: a smaller input alone exceeds ``max_drop``, or there are too few images for the calibration of int8.
    """
    train, val, test = (run.samples(part, config.data) for part in ("train", "val", "test"))
    if "int8" in config.precisions and min(len(train), config.calibration_images) < LEAST_CALIBRATION:
        raise AccuracyGateError(
            f"int8 ranges would be measured on {min(len(train), config.calibration_images)} image(s), and other images go beyond them; at "
            f"least {LEAST_CALIBRATION} are needed. Nothing was written. Give more with --num-samples, or leave int8 out of --precision."
        )
    unlabeled = read_unlabeled(config.unlabeled, train) if config.unlabeled else []
    spec = resized(run.record.preprocess, config.input_size)
    gate = _gate_set(run, PixelSet(stratified(val, config.gate_images), spec), progress)
    limits, full_size = config, None
    if spec != run.record.preprocess:
        full_size, left = _allow_for_size(run, gate, config, progress)
        limits = config.model_copy(update={"max_drop": left})
    tested, calibration = (
        PixelSet(stratified(*chosen), spec) for chosen in ((test, config.gate_images), (train, config.calibration_images))
    )
    context = ExportContext(run, config, limits, gate, train, tested, calibration, work, progress, unlabeled, full_size)
    context.gate = replace(gate, more=lambda: context.agreement_set)
    return context


def resized(spec: PreprocessSpec, side: int | None) -> PreprocessSpec:
    """``spec`` with a square input of ``side`` pixels, or as it is."""
    return spec if side is None else spec.model_copy(update={"input_size": (side, side)})


def _gate_set(run: Run, images: PixelSet, progress: Progress) -> GateSet:
    try:
        return GateSet(images, trained_logits(run.load_model(), images, progress=progress), run.record.decoding)
    except (RuntimeError, AssertionError) as error:
        size = " x ".join(str(side) for side in images.spec.input_size)
        raise ConfigError(
            f"{run.record.backbone.architecture} does not take images of {size}: {first_line(error)} Export without --input-size, or train "
            f"at that size: edgetl train DATA --input-size {','.join(map(str, images.spec.input_size))} --backbone {run.path}."
        ) from error


def _allow_for_size(run: Run, gate: GateSet, config: ExportConfig, progress: Progress) -> tuple[Proportion, float]:
    """The trained model's figure at the run's own input size, and what the drop to that of ``gate`` leaves of ``max_drop``."""
    full = _gate_set(run, PixelSet(gate.samples, run.record.preprocess), progress)
    if reason := drop_reason(full, gate.trained, config):
        raise AccuracyGateError(
            f"at {gate.spec.input_size[0]} pixels, before any export: {reason}. Nothing was written. "
            f"Train at that size, or allow more with --max-drop."
        )
    drop = accuracy_drop(full.evaluation, gate.evaluation)
    return full.evaluation.score, min(config.max_drop, config.max_drop - drop)


def open_files(format_: Format, files: Sequence[Path], *, threads: int | None = None) -> Logits:
    """Load files as the device would: from bytes, in the device's engine."""
    return load_engine(format_, [path.read_bytes() for path in files], threads=threads or available_cores()).run
