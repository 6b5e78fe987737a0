"""From a run to a bundle: export, quantize, pass every file through the gate, pack what passed."""

from __future__ import annotations

import hashlib
import logging
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from edgetl.core.answers import describe_truth, evaluate, scores_of
from edgetl.core.atomic import new_folder
from edgetl.core.bundle import Bundle, describe_file, open_bundle, pack_hashes
from edgetl.core.host import available_cores, fingerprint, versions
from edgetl.core.manifest import MANIFEST_NAME, Calibration, Format, Golden, Lineage, Manifest, Precision, Rejected, Rung, Variant
from edgetl.core.preprocess import preprocess
from edgetl.core.progress import Progress, silent
from edgetl.data.folder import Sample
from edgetl.data.loading import batches, stratified, truth_of
from edgetl.errors import AccuracyGateError, StorageError
from edgetl.export.agreement import GateSet, Logits, Verdict, answers, judge, trained_logits
from edgetl.export.card import write_card
from edgetl.export.climb import RefitData, climb
from edgetl.export.config import ExportConfig
from edgetl.export.metadata import INPUT_NAME, OUTPUT_NAME, model_info, own_info
from edgetl.export.quantize_onnx import OnnxQuantizer
from edgetl.export.quantize_openvino import OpenVinoQuantizer
from edgetl.export.steps import FloatHead, ladder
from edgetl.export.to_onnx import onnx_properties, to_half, to_onnx
from edgetl.export.to_openvino import read_onnx, save
from edgetl.measure.latency import time_calls
from edgetl.runtime.engine import load_engine
from edgetl.train.run import Run, open_run

_log = logging.getLogger(__name__)

GOLDEN_IMAGES = 8
MAX_GOLDEN_BYTES = 256_000
# Of a score. fp32 differs between CPUs by rounding; int8 kernels may also round ranges differently, but a wrong kernel or a
# saturating one is off by more.
GOLDEN_TOLERANCE: dict[Precision, float] = {"fp32": 1e-3, "fp16": 1e-2, "int8": 5e-2}
# The staged files, one more copy while quantizing, and room for the ladder's intermediate files.
SPACE_FACTOR = 6


@dataclass
class _Bench:
    """Everything that the steps of one export share."""

    run: Run
    config: ExportConfig
    gate: GateSet
    train: list[Sample]
    test: list[Sample]
    calibration: list[Sample]
    work: Path
    progress: Progress
    refit: RefitData | None = None
    variants: list[Variant] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    golden_logits: dict[str, NDArray[np.float32]] = field(default_factory=dict)

    @property
    def infos(self) -> tuple[dict[str, str], dict[str, str]]:
        """The metadata blocks of the exported files."""
        record = self.run.record
        return model_info(record.preprocess, record.reading), own_info(record.preprocess, record.reading, versions()["edgetl"])


def export_bundle(
    run_path: Path, config: ExportConfig, out: Path, *, data: Path | None = None, overwrite: bool = False, progress: Progress = silent
) -> Bundle:
    """Export the run at ``run_path`` as a bundle at ``out``.

    Every variant is loaded from its saved file in the engine that the device uses and compared with the trained model on validation
    images; one that fails is not in the bundle. Test images are reported and decide nothing.

    Args:
        run_path: a folder that ``edgetl train`` wrote.
        config: what to export, and the limits.
        out: the bundle's folder.
        data: where the run's images are now, if not where they were.
        overwrite: replace an existing ``out``.
        progress: told of each stage.

    Raises:
        RunError: not a run, or a damaged one.
        DataError: the run's images are not there.
        ExportError: a network cannot be converted.
        AccuracyGateError: a variant failed and ``allow_missing`` is false, or all failed; nothing is written.
        StorageError: the bundle cannot be written.
    """
    run = open_run(run_path)
    name = config.name or _model_name(run.record.name)
    with new_folder(out, overwrite=overwrite) as folder, tempfile.TemporaryDirectory(dir=folder) as work:
        _check_space(run, folder, config)
        bench = _prepare(run, config, Path(work), data, progress)
        golden = _choose_golden(bench.gate.samples)
        _export_variants(bench, folder, golden)
        _report_rejected(bench)
        _write_manifest(bench, folder, golden, name)
        shutil.rmtree(work)
    return open_bundle(out)


def _prepare(run: Run, config: ExportConfig, work: Path, data: Path | None, progress: Progress) -> _Bench:
    train, val, test = run.samples("train", data), run.samples("val", data), run.samples("test", data)
    chosen = stratified(val, config.gate_images)
    spec = run.record.preprocess
    trained = trained_logits(run.load_model(), chosen, spec, progress=progress)
    calibration = stratified(train, config.calibration_images)
    gate = GateSet(chosen, spec, trained, run.record.reading)
    return _Bench(run, config, gate, train, stratified(test, config.gate_images), calibration, work, progress)


def _export_variants(bench: _Bench, folder: Path, golden: list[Sample]) -> None:
    """fp32 ONNX first, since every other file is made from it."""
    bench.progress("exporting to ONNX", 0, 1)
    source = bench.work / "model.onnx"
    to_onnx(bench.run.load_model(), bench.gate.spec, source, onnx_properties(*bench.infos))
    bench.progress("exporting to ONNX", 1, 1)
    for format_ in bench.config.formats:
        for precision in sorted(bench.config.precisions, key=("fp32", "fp16", "int8").index):
            target = folder / f"{format_}-{precision}" / "1"
            target.mkdir(parents=True)
            files, verdict, rungs = _make(bench, format_, precision, source, target)
            if verdict.reason:
                bench.rejected.append(Rejected(name=f"{format_}-{precision}", reason=verdict.reason, ladder=rungs))
                shutil.rmtree(target.parent)
            else:
                _accept(bench, folder, (format_, precision), files, verdict, rungs, golden)
    bench.variants.sort(key=lambda variant: variant.median_ms)


def _make(bench: _Bench, format_: Format, precision: Precision, source: Path, target: Path) -> tuple[list[Path], Verdict, tuple[Rung, ...]]:
    """Write one variant's files into ``target`` and judge them."""
    if precision == "int8":
        return _quantize(bench, format_, source, target)
    if format_ == "onnx":
        files = [target / "model.onnx"]
        to_half(source, files[0]) if precision == "fp16" else shutil.copyfile(source, files[0])
    else:
        files = [target / "model.xml", target / "model.bin"]
        save(read_onnx(source, *bench.infos), files[0], half=precision == "fp16")
    verdict = judge(_open(format_, files), bench.gate, bench.config, exact=precision == "fp32", progress=bench.progress)
    return files, verdict, ()


def _quantize(bench: _Bench, format_: Format, source: Path, target: Path) -> tuple[list[Path], Verdict, tuple[Rung, ...]]:
    calibration = [row[None] for batch in batches(bench.calibration, bench.gate.spec) for row in batch]
    work = Path(tempfile.mkdtemp(dir=bench.work))
    # Similarities in 8 bits choose other neighbours: on the digits that costs 1 to 6 points of accuracy.
    float_end = bench.run.record.head.kind == "knn"
    quantizer: OnnxQuantizer | OpenVinoQuantizer
    if format_ == "onnx":
        quantizer = OnnxQuantizer(source, calibration, work, float_end=float_end)
    else:
        save(read_onnx(source, *bench.infos), work / "model.xml")
        quantizer = OpenVinoQuantizer(work / "model.xml", calibration, bench.infos, float_end=float_end)
    climbed = climb(
        quantizer,
        ladder(bench.config.cpu),
        lambda: _refit_data(bench, source),
        target,
        open_files=lambda files: _open(format_, files),
        judge=lambda logits: judge(logits, bench.gate, bench.config, exact=False),
        progress=bench.progress,
    )
    shutil.rmtree(work)
    return climbed.files, climbed.verdict, climbed.rungs


def _refit_data(bench: _Bench, source: Path) -> RefitData:
    """Training images with the fp32 export's logits, which the gate compared with torch's; computed once for both engines."""
    if bench.refit is None:
        samples = stratified(bench.train, max(2000, bench.config.calibration_images))
        trained = answers(_open("onnx", [source]), samples, bench.gate.spec, stage="the trained model's answers", progress=bench.progress)
        module = bench.run.load_model().get_submodule(bench.run.record.backbone.head_name)
        assert isinstance(module, nn.Linear)
        head = FloatHead(module.weight.detach().numpy(), module.bias.detach().numpy())
        bench.refit = RefitData(samples, bench.gate.spec, trained, head)
    return bench.refit


def _accept(
    bench: _Bench,
    folder: Path,
    kind: tuple[Format, Precision],
    files: list[Path],
    verdict: Verdict,
    rungs: tuple[Rung, ...],
    golden: list[Sample],
) -> None:
    format_, precision = kind
    logits = _open(format_, files)
    spec = bench.gate.spec
    name = f"{format_}-{precision}"
    bench.golden_logits[name] = np.concatenate([logits(preprocess(sample.path, spec)[None]) for sample in golden])
    alone = _open(format_, files, threads=1)
    image = preprocess(golden[0].path, spec)[None]
    times = time_calls(lambda: alone(image), runs=50, max_seconds=3.0)
    tested = answers(logits, bench.test, spec, progress=bench.progress) if bench.test else None
    bench.variants.append(
        Variant(
            name=name,
            format=format_,
            precision=precision,
            files=tuple(describe_file(folder, path) for path in files),
            input=INPUT_NAME,
            output=OUTPUT_NAME,
            agreement=verdict.agreement,
            validation=verdict.validation,
            fall=verdict.fall,
            test=None if tested is None else evaluate(bench.gate.reading, truth_of(bench.test), tested).score,
            median_ms=round(float(np.median(times)), 3),
            golden_tolerance=GOLDEN_TOLERANCE[precision],
            ladder=rungs,
        )
    )


def _open(format_: Format, files: list[Path], *, threads: int | None = None) -> Logits:
    """Load files as the device would: from bytes, in the device's engine."""
    from_disk = [path.read_bytes() for path in files]
    return load_engine(format_, from_disk, threads=threads or available_cores()).run


def _report_rejected(bench: _Bench) -> None:
    if not bench.rejected or (bench.config.allow_missing and bench.variants):
        return
    shown = "; ".join(f"{item.name}: {item.reason}" for item in bench.rejected)
    passed = ", ".join(variant.name for variant in bench.variants) or "none"
    raise AccuracyGateError(
        f"{len(bench.rejected)} variant(s) do not answer like the trained model. {shown}. Passed: {passed}. Nothing was written. "
        f"Keep those that passed with --allow-missing, or accept a larger loss with --max-drop."
    )


def _choose_golden(samples: Sequence[Sample]) -> list[Sample]:
    """A few validation images, the classes in turn; small files where there are enough, since they travel with every bundle."""
    small = [sample for sample in samples if sample.path.stat().st_size <= MAX_GOLDEN_BYTES]
    return stratified(small or samples, GOLDEN_IMAGES)


def _write_golden(bench: _Bench, folder: Path, golden: list[Sample]) -> tuple[Golden, ...]:
    (folder / "golden").mkdir()
    reading = bench.gate.reading
    scores = {name: scores_of(reading, logits) for name, logits in bench.golden_logits.items()}
    entries = []
    for index, sample in enumerate(golden):
        copy = folder / "golden" / f"{index:02d}{sample.path.suffix.lower()}"
        shutil.copyfile(sample.path, copy)
        rows = {name: tuple(float(value) for value in rows[index]) for name, rows in scores.items()}
        known = describe_truth(reading, sample.label, sample.targets)
        entries.append(Golden(image=describe_file(folder, copy), label=known, scores=rows))
    return tuple(entries)


def _write_manifest(bench: _Bench, folder: Path, golden: list[Sample], name: str) -> None:
    record = bench.run.record
    entries = bench.run.splits().entries
    seen = folder / "seen-images.bin"
    seen.write_bytes(pack_hashes([entry.content for entry in entries if entry.part != "test"]))
    quantized = "int8" in bench.config.precisions
    digest = hashlib.sha256("\n".join(sorted(sample.content for sample in bench.calibration)).encode()).hexdigest()
    calibration = (
        Calibration(n=len(bench.calibration), images_sha256=digest, preprocess_sha256=record.preprocess.digest()) if quantized else None
    )
    card = folder / "card.md"
    card.write_text(write_card(name, record, bench.variants, bench.rejected, bench.gate.evaluation.score, calibration), "utf-8")
    manifest = Manifest(
        name=name,
        release=bench.config.release,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        task=record.task,
        decision=record.decision,
        labels=record.labels,
        preprocess=record.preprocess,
        variants=tuple(bench.variants),
        rejected=tuple(bench.rejected),
        max_drop=bench.config.max_drop,
        trained=bench.gate.evaluation.score,
        golden=_write_golden(bench, folder, golden),
        calibration=calibration,
        lineage=_lineage(bench.run),
        seen_images=describe_file(folder, seen),
        card=describe_file(folder, card),
        versions=versions(),
        host=fingerprint(),
    )
    (folder / MANIFEST_NAME).write_text(manifest.model_dump_json(indent=1) + "\n", "utf-8")


def _lineage(run: Run) -> Lineage:
    record = run.record
    return Lineage(
        backbone=record.backbone.name.rsplit("/", 1)[-1],
        architecture=record.backbone.architecture,
        weights_sha256=record.backbone.weights_sha256,
        licence=record.backbone.licence,
        parents=record.backbone.parents,
        strategy=record.plan.strategy,
        run_sha256=run.digest(),
        data_fingerprint=record.data_fingerprint,
        train_images=record.images["train"],
    )


def _model_name(run_name: str) -> str:
    """The run's name without what a server's URL or a folder could not hold."""
    return re.sub(r"[^\w.-]+", "-", run_name).strip("-.") or "model"


def _check_space(run: Run, folder: Path, config: ExportConfig) -> None:
    """Refuse before minutes of work when the disk cannot hold the result."""
    weights = (run.path / "weights.safetensors").stat().st_size
    needed = weights * (len(config.formats) * len(config.precisions) + SPACE_FACTOR)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise StorageError(
            f"{folder.parent} has {free / 1e6:.0f} MB free; this export needs about {needed / 1e6:.0f} MB while it works. "
            f"Nothing was written; free some space or choose another --out."
        )
