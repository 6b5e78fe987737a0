"""Bundle export: write, verify and package the variants of a run. Only variants that pass the accuracy gate are in the bundle."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgetl.core.bundle import Bundle, describe_file, open_bundle, pack_prefixes
from edgetl.core.contract import ContractRecord, Outcome
from edgetl.core.files.byte_ranges import size_and_time
from edgetl.core.images.decode import read_image_file
from edgetl.core.lineage import Lineage
from edgetl.core.manifest import GOLDEN_TOLERANCE, MANIFEST_NAME, BundleFile, Format, Golden, Manifest, Precision, Rejected, Variant
from edgetl.core.metrics import evaluate
from edgetl.core.output.folders import new_folder
from edgetl.core.output_decoding import describe_truth, scores_of
from edgetl.core.preprocess import decode_image, preprocess, to_batch
from edgetl.core.progress import Progress, silent
from edgetl.core.results import images_that_may_change
from edgetl.core.system.host import fingerprint, versions
from edgetl.core.system.host_load import HostLoad, load_between, read_counters
from edgetl.core.tasks import OutputDecoding
from edgetl.data.folder import Sample
from edgetl.data.loading import stratified, truth_of
from edgetl.errors import AccuracyGateError, ExportError, StorageError
from edgetl.export.config import ExportConfig
from edgetl.export.context import ExportContext, prepare
from edgetl.export.convert.metadata import INPUT_NAME, OUTPUT_NAME
from edgetl.export.gate.agreement import STRICT_LIMIT, outputs_of
from edgetl.export.model_card import write_card
from edgetl.export.quantize.search import ExportedVariant
from edgetl.export.variants import export_variant, measure_settings
from edgetl.measure.latency import time_calls
from edgetl.runtime.engine import load_engine
from edgetl.train.artifacts.run import Run, open_run, run_inputs

GOLDEN_IMAGES = 8
MAX_GOLDEN_BYTES = 256_000
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8-weights", "int8")
# Disk space in multiples of the weights file: staged files, a copy while quantizing, intermediate files of the quantization search.
SPACE_FACTOR = 6
# Number of repetitions of a timing on a busy host.
RETRIES = 2


@dataclass(frozen=True)
class Selection:
    """Selection among the variants of a complete bundle.

    Attributes:
        names: names of the selected variants, the best first.
        record: record of the contract.
        outcomes: a row for each attempted variant.
        sorted_by: order of the variants, see ``Manifest``.
        excluded: requested variants that were not exported.
    """

    names: tuple[str, ...]
    record: ContractRecord
    outcomes: tuple[Outcome, ...]
    sorted_by: Literal["time", "accuracy"]
    excluded: tuple[Rejected, ...] = ()


@dataclass
class _Contents:
    """Contents of a bundle in progress; ``logits`` are each variant's outputs for the golden images."""

    folder: Path
    golden: list[Sample]
    variants: list[Variant] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    logits: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    selection: Selection | None = None
    sorted_by: Literal["time", "accuracy"] = "time"


# Selects among the variants of a complete bundle before the bundle is moved to its final folder.
Select = Callable[[Bundle], Selection]


def export_bundle(
    run_path: Path, config: ExportConfig, out: Path, *, overwrite: bool = False, select: Select | None = None, progress: Progress = silent
) -> Bundle:
    """Export a run as a bundle of verified variants.

    Each variant is loaded from its saved files in the engine that the device uses. The accuracy gate compares it with the trained model on
    validation images, or on target images of an adapted run. A variant that fails is not in the bundle. Results on test images are
    reported only.

    Args:
        run_path: folder of the run, written by ``edgetl train``.
        config: formats, precisions, and limits of the accuracy gate.
        out: folder of the bundle.
        overwrite: replace an existing ``out``.
        select: selects among the variants that passed. If it raises, nothing is written.
        progress: called at each stage.

    Raises:
        RunError: ``run_path`` is not a run, or the run is damaged.
        DataError: the run's images are missing.
        ConfigError: the network does not support ``config.input_size``.
        ExportError: the network cannot be converted.
        AccuracyGateError: a variant failed and ``allow_missing`` is false, or all variants failed. Nothing is written.
        StorageError: the bundle cannot be written.
    """
    run = open_run(run_path)
    with ExitStack() as stack:
        folder = stack.enter_context(new_folder(out, inputs=run_inputs([run], config.data), overwrite=overwrite))
        work = stack.enter_context(tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True))
        _check_space(run, out, config)
        context = prepare(run, config, Path(work), progress)
        contents = _Contents(folder, _choose_golden(context.gate.samples))
        _export_variants(context, contents)
        _write_manifest(context, contents)
        shutil.rmtree(work)
        if select is not None:
            _keep(contents, select(open_bundle(folder)))
            _write_manifest(context, contents)
    return open_bundle(out)


def _keep(contents: _Contents, selection: Selection) -> None:
    """Reduce the bundle to the selected variants, in their order. The others are recorded as rejected."""
    names = selection.names
    contents.selection, contents.sorted_by = selection, selection.sorted_by
    contents.rejected += selection.excluded
    for variant in contents.variants:
        if variant.name not in names:
            shutil.rmtree(contents.folder / variant.name)
            del contents.logits[variant.name]
            contents.rejected.append(_rejected_by_contract(variant, selection))
    contents.variants = sorted((item for item in contents.variants if item.name in names), key=lambda item: names.index(item.name))


def _rejected_by_contract(variant: Variant, selection: Selection) -> Rejected:
    side = selection.record.chosen.side
    reasons = [
        f"{row.reason} on {row.offer.threads} thread(s)" if row.result == "contract" else row.reason
        for row in selection.outcomes
        if row.variant == variant.name and row.side == side and row.offer is not None
    ]
    return Rejected(
        name=variant.name,
        reason=f"it does not meet the deployment contract: {'; '.join(reasons)}",
        by="contract",
        attempts=variant.attempts,
        sensitivities=variant.sensitivities,
    )


def outcomes_of(passed: Sequence[Variant], rejected: Sequence[Rejected], side: int) -> list[Outcome]:
    """Return a row for each variant at one input size, where no bundle is written: those that passed the gate, and the rejected ones."""
    rows = [Outcome(variant=item.name, side=side, result="passed", reason="", attempts=item.attempts) for item in passed]
    return rows + [Outcome(variant=item.name, side=side, result=item.by, reason=item.reason, attempts=item.attempts) for item in rejected]


def _export_variants(context: ExportContext, contents: _Contents) -> None:
    """Export the fp32 ONNX file, and then all variants from it.

    Raises:
        AccuracyGateError: see ``export_bundle``.
    """
    context.write_source()
    config = context.config
    for format_ in config.formats:
        wanted = sorted(config.precisions, key=PRECISIONS.index)
        while wanted:
            precision = wanted.pop(0)
            passed = _export_variant(context, contents, format_, precision)
            if not passed and precision == "int8" and config.allow_missing and "fp16" not in config.precisions:
                wanted.append("fp16")  # replaces int8: half the size of fp32 at the same accuracy
    if any(variant.load is not None for variant in contents.variants):
        contents.sorted_by = "accuracy"
    contents.variants.sort(
        key=lambda variant: (-variant.validation.value, variant.size_bytes) if contents.sorted_by == "accuracy" else (variant.median_ms, 0)
    )
    if not contents.rejected or (config.allow_missing and contents.variants):
        return
    shown = " ".join(f"{item.name}: {item.reason.rstrip('.')}." for item in contents.rejected)
    names = ", ".join(variant.name for variant in contents.variants) or "none"
    side = context.gate.spec.input_size[0]
    raise AccuracyGateError(
        f"{len(contents.rejected)} variant(s) rejected. {shown} Passed: {names}. Nothing was written. {_remedies(context, contents)}",
        rows=[row.model_dump(mode="json") for row in outcomes_of(contents.variants, contents.rejected, side)],
    )


def _remedies(context: ExportContext, contents: _Contents) -> str:
    """Return a sentence with the options that can prevent the rejections."""
    used = sum(sample.synthetic is None for sample in context.calibration.samples)
    failed = [item for item in contents.rejected if item.by == "gate"]
    int8 = any(item.name.endswith("-int8") for item in contents.rejected)
    remedies = ["export the variants that passed with --allow-missing"] if contents.variants else []
    if not contents.variants and int8 and not context.config.allow_missing and "fp16" not in context.config.precisions:
        remedies.append("replace int8 by fp16 with --allow-missing")
    if any(STRICT_LIMIT in item.reason for item in failed):
        remedies.append(f"add {'training images' if context.gate.folds else context.gate.name}, or omit --strict")
    if any(STRICT_LIMIT not in item.reason for item in failed):
        remedies.append("accept a larger accuracy drop with --max-drop")
        images = context.images
        if int8 and used < len(images.fitting):
            counted = f"{used} of {len(images.fitting)} {images.source} images"
            remedies.append(f"calibrate int8 on more images with --num-samples (now {counted})")
    text = "; ".join(remedies) or "Request other precisions with --precision"
    return f"{text[0].upper()}{text[1:]}."


def _export_variant(context: ExportContext, contents: _Contents, format_: Format, precision: Precision) -> bool:
    """Export one variant. Return False if it is rejected."""
    name = f"{format_}-{precision}"
    if precision != "fp32" and context.strict_problem:
        contents.rejected.append(Rejected(name=name, reason=context.strict_problem))
        return False
    target = contents.folder / name / "1"
    target.mkdir(parents=True)
    try:
        exported = export_variant(context, format_, precision, target)
    except ExportError as error:
        if not context.config.allow_missing or precision == "fp32":
            raise
        contents.rejected.append(Rejected(name=name, reason=str(error), by="export"))
        shutil.rmtree(target.parent)
        return False
    if reason := exported.result.reason:
        contents.rejected.append(Rejected(name=name, reason=reason, attempts=exported.attempts, sensitivities=exported.sensitivities))
        shutil.rmtree(target.parent)
        return False
    logits, golden = context.open_variant(format_, exported.files), [sample.path for sample in contents.golden]
    outputs = np.concatenate([logits(preprocess(path, context.gate.spec)[None]) for path in golden])
    scores = scores_of(context.gate.decoding.uncalibrated, outputs)
    settings = measure_settings(context, format_, exported.files, golden, scores=scores)
    contents.variants.append(_describe(context, contents, format_, precision, exported).model_copy(update={"settings": settings}))
    contents.logits[name] = outputs
    return True


def _describe(context: ExportContext, contents: _Contents, format_: Format, precision: Precision, exported: ExportedVariant) -> Variant:
    """Return the manifest entry of a variant that passed, with its latency and its score on the test images."""
    median_ms, load = _time_alone(context, format_, exported, contents.golden[0])
    tested = (
        outputs_of(context.open_variant(format_, exported.files), context.test, progress=context.progress) if len(context.test) else None
    )
    result = exported.result
    return Variant(
        name=f"{format_}-{precision}",
        format=format_,
        precision=precision,
        files=tuple(describe_file(contents.folder, path) for path in exported.files),
        input=INPUT_NAME,
        input_form=context.config.input,
        output=OUTPUT_NAME,
        agreement=result.agreement,
        validation=result.validation,
        accuracy_drop=result.accuracy_drop,
        unlabeled=result.unlabeled,
        test=None if tested is None else evaluate(context.gate.decoding, truth_of(context.test.samples), tested).score,
        median_ms=median_ms,
        load=load if load is not None and load.busy else None,
        golden_tolerance=GOLDEN_TOLERANCE[precision],
        attempts=exported.attempts,
        sensitivities=exported.sensitivities,
    )


def _time_alone(context: ExportContext, format_: Format, exported: ExportedVariant, sample: Sample) -> tuple[float, HostLoad | None]:
    """Return the median latency of one image on one thread, ms, and the host's load. On a busy host, use the run with the lowest load."""
    alone = load_engine(format_, [path.read_bytes() for path in exported.files], threads=1).run
    image = to_batch([decode_image(sample.path, context.gate.spec)], context.gate.spec, context.config.input)
    found: list[tuple[float, HostLoad | None]] = []
    for _ in range(1 + RETRIES):
        before = read_counters()
        times = time_calls(lambda: alone(image), runs=50, max_seconds=3.0)
        load = load_between(before, read_counters())
        found.append((round(float(np.median(times)), 3), load))
        if load is None or not load.busy:
            return found[-1]
    return min(found, key=lambda item: item[1].total if item[1] else 0.0)


def _choose_golden(samples: Sequence[Sample]) -> list[Sample]:
    """Choose a few images of the gate with alternating classes. Small files are preferred, because every bundle contains them."""
    samples = [sample for sample in samples if not sample.synthetic]
    small = [sample for sample in samples if size_and_time(sample.path)[0] <= MAX_GOLDEN_BYTES]
    return stratified(small or samples, GOLDEN_IMAGES)


def _write_golden(contents: _Contents, decoding: OutputDecoding) -> tuple[Golden, ...]:
    (contents.folder / "golden").mkdir(exist_ok=True)
    scores = {name: scores_of(decoding.uncalibrated, logits) for name, logits in contents.logits.items()}
    entries = []
    for index, sample in enumerate(contents.golden):
        copy = contents.folder / "golden" / f"{index:02d}{sample.path.suffix.lower()}"
        copy.write_bytes(read_image_file(sample.path))
        rows = {name: tuple(float(value) for value in rows[index]) for name, rows in scores.items()}
        known = describe_truth(decoding, sample.label, sample.targets)
        entries.append(Golden(image=describe_file(contents.folder, copy), label=known, scores=rows))
    return tuple(entries)


def _write_manifest(context: ExportContext, contents: _Contents) -> None:
    record, config, folder, selection = context.run.record, context.config, contents.folder, contents.selection
    seen, card = folder / "seen-images.bin", folder / "card.md"
    seen.write_bytes(pack_prefixes(context.run.seen_images().all))
    trained = context.gate.evaluation.score
    reduced = any(precision != "fp32" for precision in config.precisions)
    counted = reduced and record.task == "classification" and context.gate.labeled
    manifest = Manifest(
        name=config.name or model_name(record.update.model if record.update else record.name),
        release=config.release or (record.update.release if record.update else 1),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        task=record.task,
        decision_rule=record.decision_rule,
        labels=record.labels,
        knn=context.knn,
        preprocess=context.gate.spec,
        variants=tuple(contents.variants),
        rejected=tuple(contents.rejected),
        max_drop=config.max_drop,
        max_changed=images_that_may_change(trained.n, context.limits.max_drop) if counted else None,
        trained=trained,
        folds=context.gate.folds,
        trained_at_run_size=context.full_size,
        target=context.images.target,
        golden=_write_golden(contents, record.decoding),
        reference=context.reference,
        calibration=context.calibration_record(),
        contract=selection.record if selection else None,
        outcomes=selection.outcomes if selection else (),
        sorted_by=contents.sorted_by,
        lineage=_lineage(context.run),
        seen_images=describe_file(folder, seen),
        card=BundleFile(path=card.name, size_bytes=0, sha256="0" * 64),  # replaced below: the card shows the rest of the manifest
        versions=versions(),
        host=fingerprint(),
    )
    card.write_text(write_card(manifest, record, signed_by=config.signed_by), "utf-8", newline="\n")
    manifest = manifest.model_copy(update={"card": describe_file(folder, card)})
    (folder / MANIFEST_NAME).write_text(manifest.model_dump_json(indent=1) + "\n", "utf-8", newline="\n")


def _lineage(run: Run) -> Lineage:
    record = run.record
    return Lineage(
        backbone=record.backbone.name.rsplit("/", 1)[-1],
        architecture=record.backbone.architecture,
        weights_sha256=record.backbone.weights_sha256,
        license=record.backbone.license,
        parents=record.backbone.parents,
        strategy=record.plan.strategy,
        run_sha256=run.digest(),
        data_fingerprint=record.data_fingerprint,
        train_images=record.images["train"],
        leaked_test_images=record.leaked_test_images,
    )


def model_name(run_name: str) -> str:
    """Return the run's name, with characters that are not valid in a URL or a folder name replaced by ``-``."""
    return re.sub(r"[^\w.-]+", "-", run_name).strip("-.") or "model"


def _check_space(run: Run, out: Path, config: ExportConfig) -> None:
    """Check the free disk space before the export starts.

    Raises:
        StorageError: there is too little space.
    """
    weights = (run.path / "weights.safetensors").stat().st_size
    needed = weights * (len(config.formats) * len(config.precisions) + SPACE_FACTOR)
    free = shutil.disk_usage(out.parent).free
    if free < needed:
        raise StorageError(
            f"{out.parent} has {free / 1e6:.0f} MB of free space, and this export needs about {needed / 1e6:.0f} MB. "
            f"Nothing was written. Free some space, or choose another --out."
        )
