"""From a run to a bundle: export, quantize, pass every file through the gate, pack what passed."""

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
from edgetl.core.decoding import describe_truth, scores_of
from edgetl.core.images.decode import load_image
from edgetl.core.manifest import GOLDEN_TOLERANCE, MANIFEST_NAME, Format, Golden, Lineage, Manifest, Precision, Rejected, Variant
from edgetl.core.metrics import evaluate
from edgetl.core.output.folders import new_folder
from edgetl.core.preprocess import preprocess, to_batch
from edgetl.core.progress import Progress, silent
from edgetl.core.results import images_that_may_change
from edgetl.core.system.host import fingerprint, versions
from edgetl.core.system.load import HostLoad, load_between, read_counters
from edgetl.core.tasks import OutputDecoding
from edgetl.data.folder import Sample
from edgetl.data.loading import stratified, truth_of
from edgetl.errors import AccuracyGateError, ExportError, StorageError
from edgetl.export.config import ExportConfig
from edgetl.export.context import PLAIN_NAME, Workbench, prepare
from edgetl.export.convert.metadata import INPUT_NAME, OUTPUT_NAME
from edgetl.export.convert.pixel_input import open_variant, take_pixels
from edgetl.export.convert.to_onnx import onnx_properties, to_onnx
from edgetl.export.gate.agreement import answers
from edgetl.export.model_card import write_card
from edgetl.export.variants import Made, make
from edgetl.measure.latency import time_calls
from edgetl.runtime.engine import load_engine
from edgetl.train.artifacts.run import Run, open_run, run_inputs

GOLDEN_IMAGES = 8
MAX_GOLDEN_BYTES = 256_000
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8-weights", "int8")
# The staged files, one more copy while quantizing, and room for the ladder's intermediate files.
SPACE_FACTOR = 6
# Number of repetitions of a timing that a busy host disturbed.
RETRIES = 2


@dataclass
class _Packed:
    """What the bundle will hold."""

    variants: list[Variant] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    golden_logits: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    contract: ContractRecord | None = None
    outcomes: tuple[Outcome, ...] = ()
    sorted_by: Literal["time", "accuracy"] = "time"


@dataclass(frozen=True)
class Selection:
    """The variants of a whole bundle that stay, the best first, the contract's record, a row for each attempted variant, and ``order`` as
    in ``Manifest``."""

    names: tuple[str, ...]
    record: ContractRecord
    outcomes: tuple[Outcome, ...]
    sorted_by: Literal["time", "accuracy"]


# Examines the whole bundle before it is moved to its place.
Select = Callable[[Bundle], Selection]


def export_bundle(
    run_path: Path, config: ExportConfig, out: Path, *,
    data: Path | None = None, overwrite: bool = False, select: Select | None = None, progress: Progress = silent,
) -> Bundle:  # fmt: skip
    """Export the run at ``run_path`` as a bundle at ``out``.

    Every variant is loaded from its saved file in the engine that the device uses and compared with the trained model on validation
    images; one that fails is not in the bundle. Test images are reported and decide nothing.

    Args:
        run_path: a folder that ``edgetl train`` wrote.
        config: what to export, and the limits.
        out: the bundle's folder.
        data: where the run's images are now, if not where they were.
        overwrite: replace an existing ``out``.
        select: chooses among the variants that passed; what it raises ends the export, and nothing is written.
        progress: told of each stage.

    Raises:
        RunError: not a run, or a damaged one.
        DataError: the run's images are not there.
        ExportError: a network cannot be converted.
        AccuracyGateError: a variant failed and ``allow_missing`` is false, or all failed; nothing is written.
        StorageError: the bundle cannot be written.
    """
    run = open_run(run_path)
    name = config.name or model_name(run.record.name)
    with ExitStack() as stack:
        folder = stack.enter_context(new_folder(out, inputs=run_inputs([run], data), overwrite=overwrite))
        work = stack.enter_context(tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True))
        _check_space(run, out, config)
        bench = prepare(run, config, Path(work), data, progress)
        golden = _choose_golden(bench.gate.samples)
        packed = _export_variants(bench, folder, golden)
        _report_rejected(config, packed, bench.gate.spec.input_size[0])
        _write_manifest(bench, packed, folder, golden, name)
        shutil.rmtree(work)
        if select is not None:
            _keep(packed, folder, select(open_bundle(folder)))
            _write_manifest(bench, packed, folder, golden, name)
    return open_bundle(out)


def _keep(packed: _Packed, folder: Path, selection: Selection) -> None:
    """Reduce the bundle to the selected variants, in their order; the records of the others stay."""
    names = selection.names
    packed.contract, packed.outcomes, packed.sorted_by = selection.record, selection.outcomes, selection.sorted_by
    for variant in packed.variants:
        if variant.name not in names:
            shutil.rmtree(folder / variant.name)
            del packed.golden_logits[variant.name]
            packed.rejected.append(_broke_contract(variant, selection))
    packed.variants = sorted((item for item in packed.variants if item.name in names), key=lambda item: names.index(item.name))


def _broke_contract(variant: Variant, selection: Selection) -> Rejected:
    side = selection.record.chosen.side
    reasons = [
        f"{row.reason} on {row.offer.threads} thread(s)" if row.result == "contract" else row.reason
        for row in selection.outcomes
        if row.variant == variant.name and row.side == side and row.offer is not None
    ]
    return Rejected(
        name=variant.name,
        reason=f"by the contract: {'; '.join(reasons)}",
        by="contract",
        attempts=variant.attempts,
        sensitivities=variant.sensitivities,
    )


def outcomes_of(passed: Sequence[Variant], rejected: Sequence[Rejected], side: int) -> list[Outcome]:
    """A row for each variant that was made or attempted at one input size."""
    rows = [Outcome(variant=item.name, side=side, result="kept", reason="") for item in passed]
    return rows + [Outcome(variant=item.name, side=side, result=item.by, reason=item.reason) for item in rejected]


def _export_variants(bench: Workbench, folder: Path, golden: list[Sample]) -> _Packed:
    """fp32 ONNX first, since every other file is made from it."""
    bench.progress("exporting to ONNX", 0, 1)
    source = bench.work / PLAIN_NAME
    to_onnx(bench.run.load_model(), bench.gate.spec, source, onnx_properties(*bench.infos))
    bench.progress("exporting to ONNX", 1, 1)
    packed = _Packed()
    for format_ in bench.config.formats:
        wanted = sorted(bench.config.precisions, key=PRECISIONS.index)
        while wanted:
            precision = wanted.pop(0)
            passed = _export_variant(bench, packed, folder, golden, (format_, precision), source)
            if not passed and precision == "int8" and bench.config.allow_missing and "fp16" not in bench.config.precisions:
                wanted.append("fp16")  # the ladder's last step: half the size of fp32, and its accuracy
    if any(variant.load is not None for variant in packed.variants):
        packed.sorted_by = "accuracy"
    packed.variants.sort(
        key=lambda variant: (-variant.validation.value, variant.size_bytes) if packed.sorted_by == "accuracy" else (variant.median_ms, 0)
    )
    return packed


def _export_variant(
    bench: Workbench, packed: _Packed, folder: Path, golden: list[Sample], kind: tuple[Format, Precision], source: Path
) -> bool:
    """Make and judge one variant; whether it passed."""
    name = "-".join(kind)
    target = folder / name / "1"
    target.mkdir(parents=True)
    try:
        made = take_pixels(bench, *kind, make(bench, *kind, source, target))
    except ExportError as error:
        if not bench.config.allow_missing or kind[1] == "fp32":
            raise
        packed.rejected.append(Rejected(name=name, reason=str(error), by="export"))
        shutil.rmtree(target.parent)
        return False
    if made.verdict.reason:
        packed.rejected.append(Rejected(name=name, reason=made.verdict.reason, attempts=made.attempts, sensitivities=made.sensitivities))
        shutil.rmtree(target.parent)
        return False
    packed.variants.append(_accept(bench, folder, kind, made, golden))
    logits = open_variant(bench, kind[0], made.files)
    packed.golden_logits[name] = np.concatenate([logits(preprocess(sample.path, bench.gate.spec)[None]) for sample in golden])
    return True


def _accept(bench: Workbench, folder: Path, kind: tuple[Format, Precision], made: Made, golden: list[Sample]) -> Variant:
    """The manifest's entry of a variant that passed: timed, and tested on the test images."""
    format_, precision = kind
    median_ms, load = _time_alone(bench, format_, made, golden)
    tested = answers(open_variant(bench, format_, made.files), bench.test, progress=bench.progress) if len(bench.test) else None
    return Variant(
        name="-".join(kind),
        format=format_,
        precision=precision,
        files=tuple(describe_file(folder, path) for path in made.files),
        input=INPUT_NAME,
        input_form=bench.config.input,
        output=OUTPUT_NAME,
        agreement=made.verdict.agreement,
        validation=made.verdict.validation,
        accuracy_drop=made.verdict.accuracy_drop,
        unlabeled=made.verdict.unlabeled,
        test=None if tested is None else evaluate(bench.gate.decoding, truth_of(bench.test.samples), tested).score,
        median_ms=median_ms,
        load=load if load is not None and load.busy else None,
        golden_tolerance=GOLDEN_TOLERANCE[precision],
        attempts=made.attempts,
        sensitivities=made.sensitivities,
    )


def _time_alone(bench: Workbench, format_: Format, made: Made, golden: list[Sample]) -> tuple[float, HostLoad | None]:
    """Median milliseconds of one image on one thread, and the host's load; on a busy host, the measurement with the least load."""
    alone = load_engine(format_, [path.read_bytes() for path in made.files], threads=1).run
    image = to_batch([load_image(golden[0].path, intensity=bench.gate.spec.intensity)], bench.gate.spec, bench.config.input)
    found: list[tuple[float, HostLoad | None]] = []
    for _ in range(1 + RETRIES):
        before = read_counters()
        times = time_calls(lambda: alone(image), runs=50, max_seconds=3.0)
        load = load_between(before, read_counters())
        found.append((round(float(np.median(times)), 3), load))
        if load is None or not load.busy:
            return found[-1]
    return min(found, key=lambda item: item[1].total if item[1] else 0.0)


def _report_rejected(config: ExportConfig, packed: _Packed, side: int) -> None:
    if not packed.rejected or (config.allow_missing and packed.variants):
        return
    shown = "; ".join(f"{item.name}: {item.reason}" for item in packed.rejected)
    passed = ", ".join(variant.name for variant in packed.variants) or "none"
    raise AccuracyGateError(
        f"{len(packed.rejected)} variant(s) do not answer like the trained model. {shown}. Passed: {passed}. Nothing was written. "
        f"Keep those that passed with --allow-missing, or accept a larger loss with --max-drop.",
        rows=[row.model_dump(mode="json") for row in outcomes_of(packed.variants, packed.rejected, side)],
    )


def _choose_golden(samples: Sequence[Sample]) -> list[Sample]:
    """A few validation images, the classes in turn; small files where there are enough, since they travel with every bundle."""
    small = [sample for sample in samples if sample.path.stat().st_size <= MAX_GOLDEN_BYTES]
    return stratified(small or samples, GOLDEN_IMAGES)


def _write_golden(packed: _Packed, decoding: OutputDecoding, folder: Path, golden: list[Sample]) -> tuple[Golden, ...]:
    (folder / "golden").mkdir(exist_ok=True)
    scores = {name: scores_of(decoding, logits) for name, logits in packed.golden_logits.items()}
    entries = []
    for index, sample in enumerate(golden):
        copy = folder / "golden" / f"{index:02d}{sample.path.suffix.lower()}"
        shutil.copyfile(sample.path, copy)
        rows = {name: tuple(float(value) for value in rows[index]) for name, rows in scores.items()}
        known = describe_truth(decoding, sample.label, sample.targets)
        entries.append(Golden(image=describe_file(folder, copy), label=known, scores=rows))
    return tuple(entries)


def _write_manifest(bench: Workbench, packed: _Packed, folder: Path, golden: list[Sample], name: str) -> None:
    record = bench.run.record
    seen = folder / "seen-images.bin"
    seen.write_bytes(pack_prefixes(bench.run.seen_images().all))
    calibration = bench.calibration_record()
    trained = bench.gate.evaluation.score
    reduced = any(precision != "fp32" for precision in bench.config.precisions)
    card = folder / "card.md"
    card.write_text(
        write_card(name, record, bench.gate.spec, packed.variants, packed.rejected, trained, calibration, packed.outcomes),
        "utf-8",
        newline="\n",
    )
    manifest = Manifest(
        name=name,
        release=bench.config.release,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        task=record.task,
        decision_rule=record.decision_rule,
        labels=record.labels,
        preprocess=bench.gate.spec,
        variants=tuple(packed.variants),
        rejected=tuple(packed.rejected),
        max_drop=bench.config.max_drop,
        max_changed=images_that_may_change(trained.n, bench.max_drop) if reduced and record.task == "classification" else None,
        trained=trained,
        trained_at_run_size=bench.whole,
        golden=_write_golden(packed, record.decoding, folder, golden),
        calibration=calibration,
        contract=packed.contract,
        outcomes=packed.outcomes,
        sorted_by=packed.sorted_by,
        lineage=_lineage(bench.run),
        seen_images=describe_file(folder, seen),
        card=describe_file(folder, card),
        versions=versions(),
        host=fingerprint(),
    )
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
    )


def model_name(run_name: str) -> str:
    """The run's name without what a server's URL or a folder could not hold."""
    return re.sub(r"[^\w.-]+", "-", run_name).strip("-.") or "model"


def _check_space(run: Run, out: Path, config: ExportConfig) -> None:
    """Refuse before minutes of work when the disk cannot hold the result."""
    weights = (run.path / "weights.safetensors").stat().st_size
    needed = weights * (len(config.formats) * len(config.precisions) + SPACE_FACTOR)
    free = shutil.disk_usage(out.parent).free
    if free < needed:
        raise StorageError(
            f"{out.parent} has {free / 1e6:.0f} MB free; this export needs about {needed / 1e6:.0f} MB while it works. "
            f"Nothing was written; free some space or choose another --out."
        )
