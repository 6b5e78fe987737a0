"""What the steps of one export share: the run, the images, the trained model's answers, and the files as the device loads them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import nn

from edgetl.core.manifest import Calibration, Format
from edgetl.core.preprocess import PreprocessSpec
from edgetl.core.progress import Progress
from edgetl.core.results import Proportion
from edgetl.core.system.host import available_cores, versions
from edgetl.data.folder import Sample
from edgetl.data.loading import PixelSet, stratified, truth_of
from edgetl.errors import AccuracyGateError, ConfigError, first_line
from edgetl.export.config import ExportConfig
from edgetl.export.convert.metadata import model_info, own_info
from edgetl.export.convert.to_onnx import onnx_properties, to_onnx
from edgetl.export.gate.agreement import GateSet, Logits, accuracy_drop, answers, lost_too_much, trained_logits
from edgetl.export.quantize.attempts import FloatHead, Probe
from edgetl.export.quantize.qat import tune_for_int8
from edgetl.export.quantize.search import RefitData
from edgetl.export.unlabeled import AgreementSet, choose_images, read_unlabeled
from edgetl.runtime.engine import load_engine
from edgetl.train.artifacts.run import Run

# Single operations are measured on so many of the gate's images, NNCF's accuracy-aware search on so many.
PROBE_IMAGES = 64
WATCHED_IMAGES = 300
LEAST_REFIT_IMAGES = 2000
LEAST_CALIBRATION = 10
# The fp32 ONNX file that all others are made from.
PLAIN_NAME = "model.onnx"


@dataclass
class Workbench:
    """One export in progress.

    Attributes:
        run: the exported run.
        config: options.
        gate: validation images that decide, at the bundle's input size.
        train: samples to fit heads on again.
        test: images that are reported.
        calibration: images that int8 ranges are measured on.
        work: a folder for intermediate files.
        progress: called at each stage.
        whole: the trained model's figure at the run's own input size, where the bundle's is another.
        max_drop: accuracy drop left for a reduced file, after that of the smaller input.
        unlabeled: further, unlabeled images on which agreement is measured.
    """

    run: Run
    config: ExportConfig
    gate: GateSet
    train: list[Sample]
    test: PixelSet
    calibration: PixelSet
    work: Path
    progress: Progress
    whole: Proportion | None = None
    max_drop: float = 0.0
    unlabeled: list[Sample] = field(default_factory=list)
    _refit: dict[Path, RefitData] = field(default_factory=dict)
    _trained: tuple[Path, nn.Module] | None = None

    @property
    def limits(self) -> ExportConfig:
        """The gate's limits, after what the smaller input lost already."""
        return self.config.model_copy(update={"max_drop": self.max_drop})

    @cached_property
    def infos(self) -> tuple[dict[str, str], dict[str, str]]:
        """The metadata blocks of the exported files."""
        decoding = self.run.record.decoding
        form = self.config.input
        return model_info(self.gate.spec, decoding, form), own_info(self.gate.spec, decoding, versions()["edgetl"], form)

    @cached_property
    def agreement_set(self) -> AgreementSet:
        """Images beside the gate's with the trained model's outputs, by its fp32 export, which the gate compared with torch's."""
        images = choose_images(self.gate.samples, self.train, self.unlabeled, self.gate.spec)
        plain = open_files("onnx", [self.work / PLAIN_NAME])
        rows = [answers(plain, part, stage="the trained model's answers", progress=self.progress) for part in images]
        return AgreementSet(images, np.concatenate([self.gate.trained[:0], *rows]))

    def calibration_record(self) -> Calibration | None:
        """What int8 ranges were measured on, where there was a need."""
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

    def trained_for_int8(self) -> tuple[Path, nn.Module]:
        """The fp32 ONNX file of a network trained for quantization, and that network; once for both engines."""
        if self._trained is None:
            calibration = [batch for _, batch in zip(range(4), self.calibration.batches(), strict=False)]
            images = PixelSet(stratified(self.train, LEAST_REFIT_IMAGES), self.gate.spec)
            model = tune_for_int8(
                self.run.load_model(), images, calibration, self.gate.decoding.task, self.config.qat_steps,
                seed=self.config.seed, progress=self.progress,
            )  # fmt: skip
            source = self.work / "trained-for-int8.onnx"
            to_onnx(model, self.gate.spec, source, onnx_properties(*self.infos))
            self._trained = source, model
        return self._trained

    def refit(self, source: Path, model: nn.Module | None = None) -> RefitData:
        """Training images with the trained model's logits (by its fp32 export, which the gate compared with torch's) and the head of
        ``source``, which was exported from ``model`` or from the run's; once for both engines."""
        if source not in self._refit:
            images = PixelSet(stratified(self.train, max(LEAST_REFIT_IMAGES, self.config.calibration_images)), self.gate.spec)
            plain = open_files("onnx", [self.work / PLAIN_NAME])
            trained = answers(plain, images, stage="the trained model's answers", progress=self.progress)
            module = (model or self.run.load_model()).get_submodule(self.run.record.backbone.head_name)
            assert isinstance(module, nn.Linear)
            own: torch.Tensor | None = module.bias
            bias = torch.zeros(module.out_features) if own is None else own.detach()
            head = FloatHead(module.weight.detach().numpy(), bias.numpy())
            self._refit[source] = RefitData(images, trained, head)
        return self._refit[source]


def prepare(run: Run, config: ExportConfig, work: Path, data: Path | None, progress: Progress) -> Workbench:
    """Find the images, and compute the trained model's outputs.

    Raises:
        DataError: the run's images are not there, or ``unlabeled`` holds none.
        ConfigError: the network does not take another input size.
        AccuracyGateError: a smaller input alone loses more than ``max_drop``, or int8 would be calibrated on next to nothing.
    """
    train, val, test = run.samples("train", data), run.samples("val", data), run.samples("test", data)
    if "int8" in config.precisions and min(len(train), config.calibration_images) < LEAST_CALIBRATION:
        raise AccuracyGateError(
            f"int8 ranges would be measured on {min(len(train), config.calibration_images)} image(s), and other images go beyond them; at "
            f"least {LEAST_CALIBRATION} are needed. Nothing was written. Give more with --num-samples, or leave int8 out of --precision."
        )
    unlabeled = read_unlabeled(config.unlabeled, train) if config.unlabeled else []
    spec = resized(run.record.preprocess, config.input_size)
    chosen = stratified(val, config.gate_images)
    gate = GateSet(PixelSet(chosen, spec), _ask(run, PixelSet(chosen, spec), progress), run.record.decoding)
    bench = Workbench(
        run, config, gate, train,
        PixelSet(stratified(test, config.gate_images), spec),
        PixelSet(stratified(train, config.calibration_images), spec),
        work, progress, max_drop=config.max_drop, unlabeled=unlabeled,
    )  # fmt: skip
    bench.gate = replace(gate, more=lambda: bench.agreement_set)
    if spec != run.record.preprocess:
        _allow_for_size(bench)
    return bench


def resized(spec: PreprocessSpec, side: int | None) -> PreprocessSpec:
    """``spec`` with a square input of ``side`` pixels, or as it is."""
    return spec if side is None else spec.model_copy(update={"input_size": (side, side)})


def _ask(run: Run, images: PixelSet, progress: Progress) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    try:
        return trained_logits(run.load_model(), images, progress=progress)
    except (RuntimeError, AssertionError) as error:
        size = " x ".join(str(side) for side in images.spec.input_size)
        raise ConfigError(
            f"{run.record.backbone.architecture} does not take images of {size}: {first_line(error)} Export without --input-size, or train "
            f"at that size: edgetl train DATA --input-size {','.join(map(str, images.spec.input_size))} --backbone {run.path}."
        ) from error


def _allow_for_size(bench: Workbench) -> None:
    """What another input size costs comes off ``max_drop``."""
    record = bench.run.record
    images = PixelSet(bench.gate.samples, record.preprocess)
    whole = GateSet(images, _ask(bench.run, images, bench.progress), record.decoding)
    if reason := lost_too_much(whole, bench.gate.trained, bench.config):
        raise AccuracyGateError(
            f"at {bench.gate.spec.input_size[0]} pixels, before any export: {reason}. Nothing was written. "
            f"Train at that size, or allow more with --max-drop."
        )
    lost = accuracy_drop(whole.evaluation, bench.gate.evaluation)
    bench.whole, bench.max_drop = whole.evaluation.score, min(bench.config.max_drop, bench.config.max_drop - lost)


def open_files(format_: Format, files: list[Path], *, threads: int | None = None) -> Logits:
    """Load files as the device would: from bytes, in the device's engine."""
    return load_engine(format_, [path.read_bytes() for path in files], threads=threads or available_cores()).run
