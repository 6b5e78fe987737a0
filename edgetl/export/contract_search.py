"""Contract search: export variants and try thread counts and input sizes until one meets every limit of a deployment contract."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from edgetl.core.bundle import Bundle
from edgetl.core.contract import Clause, ClauseName, Contract, ContractRecord, Offer, Outcome
from edgetl.core.manifest import Format, Rejected
from edgetl.core.output.folders import reserved
from edgetl.core.progress import Progress, silent
from edgetl.core.system.host import available_cores, fingerprint
from edgetl.data.loading import stratified
from edgetl.errors import AccuracyGateError, ConfigError, ContractError
from edgetl.export.config import ExportConfig
from edgetl.export.gate.images import read_images
from edgetl.export.package import RETRIES, Selection, export_bundle, outcomes_of
from edgetl.measure.config import BenchConfig
from edgetl.measure.device_profile import on_device, read_profile
from edgetl.measure.latency import Percentiles
from edgetl.measure.report import LatencyReport, VariantReport
from edgetl.measure.stages import measure_bundle
from edgetl.train.artifacts.run import Run, open_run, run_inputs

_log = logging.getLogger(__name__)

# Input sizes to try when the run's size is too slow, as ratios to it. Multiples of 32 pixels match the strides of every backbone.
INPUT_RATIOS = (7 / 8, 3 / 4, 5 / 8, 1 / 2)
SIDE_STEP = 32
# A 90th percentile needs 64 calls. More calls reduce its variance.
TIMED_RUNS, TIMED_SECONDS = 200, 20.0
# Validation images are timed because they have the size of the user's images. Golden images are chosen for their small files.
TIMED_IMAGES = 16
# An input size is tried if its estimated latency exceeds the limit by at most this factor.
LATENCY_TOLERANCE = 1.15
# Typical ratio of the 90th percentile to the mean, for an estimate from the mean.
NETWORK_RESERVE = 1.1


@dataclass
class ContractSearch:
    """State of a search for variants that meet a contract.

    Attributes:
        contract: the limits.
        max_drop: largest accuracy drop, 0..1.
        images: files of the images for timing.
        device: profile of the device. None measures on this host.
        progress: called at each stage.
        offers: measurements of every timed variant.
        outcomes: a row for each attempted variant.
        notes: reasons why an input size has no variants, or was not tried.
        excluded: requested variants that the profile excludes.
    """

    contract: Contract
    max_drop: float
    images: list[Path]
    device: LatencyReport | None
    progress: Progress
    offers: list[Offer] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    excluded: tuple[Rejected, ...] = ()

    def error(self) -> ContractError:
        """Return the error of a search without a result, with a row for each attempt."""
        return ContractError(explain(self), rows=[row.model_dump(mode="json") for row in self.outcomes])

    def exclude(self, config: ExportConfig, side: int) -> tuple[Format, ...]:
        """Record the variants that the profile excludes, with a row at the input size ``side``. Return the formats to export.

        Raises:
            ConfigError: the profile has no measurement of any format.
        """
        formats = _formats(config, self.device)
        if self.device is not None:
            self.excluded = _excluded(config, formats, self.device)
        self.outcomes += outcomes_of((), self.excluded, side)
        return formats

    def select(self, bundle: Bundle) -> Selection:
        """Select the variants of a new bundle that meet the contract, the most accurate first, then the fastest.

        All selected variants use the same thread count, which the device also uses. Times of a busy host do not order variants. In that
        case the smaller of two equally accurate variants is first.

        Raises:
            ContractError: no variant meets the contract.
        """
        counts = (self.contract.threads,) if self.contract.threads else tuple(sorted({1, available_cores()}))
        if self.device is not None:
            counts = (self.device.threads,)
        found = [_offer(self, bundle, row, threads) for threads in counts for row in _timed(self, bundle, threads)]
        self.offers += found
        busy = any(offer.busy for offer in found)
        kept = sorted(
            (offer for offer in found if offer.kept), key=lambda offer: (-offer.accuracy, offer.size_mb if busy else offer.latency_ms)
        )
        self.outcomes += _outcomes(found, kept, bundle.manifest.rejected)
        if not kept:
            raise self.error()
        host = fingerprint() if self.device is None else self.device.host
        record = ContractRecord(
            contract=self.contract,
            chosen=kept[0],
            host=host.get("cpu", "an unknown machine"),
            source="measured" if self.device is None else "profile",
        )
        names = tuple(offer.variant for offer in kept if offer.threads == kept[0].threads)
        return Selection(names, record, tuple(self.outcomes), "accuracy" if busy else "time", self.excluded)


def export_under_contract(
    run: Path, config: ExportConfig, contract: Contract, out: Path, *, overwrite: bool = False, progress: Progress = silent
) -> Bundle:
    """Export a run as a bundle. All variants of the bundle meet ``contract``; the most accurate is first.

    Args:
        run: folder of the run.
        config: configuration of the export. ``input_size`` tries only this size. ``profile`` estimates latencies for its device.
        contract: limits on latency, size and memory.
        out: folder of the bundle.
        overwrite: replace an existing ``out``.
        progress: called at each stage.

    Raises:
        ContractError: no variant meets every limit. Nothing is written. ``rows`` has an ``Outcome`` for each attempted variant.
        ConfigError: the contract has no limit, or the profile does not match this host or the contract.
    """
    if not contract.limited:
        raise ConfigError("the deployment contract has no limit. Set --max-latency-ms, --max-size-mb or --memory-mb.")
    device = None if config.profile is None else read_profile(config.profile, contract)
    opened = open_run(run)
    images = [sample.path for sample in stratified(read_images(opened, config, progress=progress).reference, TIMED_IMAGES)]
    search = ContractSearch(contract, config.max_drop, images, device, progress, notes=_fixed_size(opened, config))
    config = config.model_copy(update={"allow_missing": True, "formats": search.exclude(config, opened.record.preprocess.input_size[0])})
    with reserved(out, inputs=run_inputs([opened], config.data), overwrite=overwrite):
        for side in _sides(opened, config):
            if side is not None and not _may_help(search, side):
                continue
            sized = config.model_copy(update={"input_size": side or config.input_size})
            try:
                return export_bundle(run, sized, out, overwrite=overwrite, select=search.select, progress=progress)
            except ContractError:
                continue
            except (AccuracyGateError, ConfigError) as error:
                if side is None:
                    raise
                search.outcomes += _rejected_size(error, side)
                search.notes.append(f"at {side} px: {str(error).split(' Nothing was written')[0].rstrip('.')}")
                break  # smaller inputs lose more accuracy, or the network supports one size only
    raise search.error()


def _rejected_size(error: AccuracyGateError | ConfigError, side: int) -> list[Outcome]:
    """Return the rows of an input size that the network does not support, or at which the gate rejected all variants."""
    if error.rows:
        return [Outcome.model_validate(row) for row in error.rows]
    kind: Literal["gate", "export"] = "gate" if isinstance(error, AccuracyGateError) else "export"
    return [Outcome(variant="every variant", side=side, result=kind, reason=str(error).split(" Nothing was written")[0])]


def _fixed_size(run: Run, config: ExportConfig) -> list[str]:
    """Return the reason why only one input size is tried; an empty list if smaller ones are tried too."""
    height, width = run.record.preprocess.input_size
    if config.input_size is None and height == width:
        return []
    cause = "the input is not square" if config.input_size is None else "--input-size sets the size"
    return [f"smaller inputs were not tried, because {cause}"]


def _sides(run: Run, config: ExportConfig) -> list[int | None]:
    """Return the input sizes to try, pixels: None for the run's size, then smaller ones."""
    if _fixed_size(run, config):
        return [None]
    height = run.record.preprocess.input_size[0]
    smaller = {max(SIDE_STEP, round(height * ratio / SIDE_STEP) * SIDE_STEP) for ratio in INPUT_RATIOS}
    return [None, *sorted((side for side in smaller if side < height), reverse=True)]


def _may_help(search: ContractSearch, side: int) -> bool:
    """Return True if an input of ``side`` pixels may keep the limits; otherwise add the reason to ``search.notes``.

    The latency is estimated from the number of pixels. File size and memory hardly depend on the input size.
    """
    contract, guesses = search.contract, []
    for offer in search.offers:
        others = [clause.kept for clause in offer.clauses if clause.name != "latency"]
        fixed = 0.0 if contract.latency_of == "infer" else offer.stages_ms[0]
        if all(others):
            guesses.append(fixed + (offer.latency_ms - fixed) * (side / offer.side) ** 2)
    if contract.max_latency_ms is None or not guesses:
        reason = "smaller inputs were not tried, because they hardly change the size of the files and the memory"
        search.notes += [] if reason in search.notes else [reason]
        return False
    if min(guesses) > LATENCY_TOLERANCE * contract.max_latency_ms:
        search.notes.append(f"an input of {side} px was not tried, because its latency is estimated at {min(guesses):.2f} ms")
        return False
    return True


def _timed(search: ContractSearch, bundle: Bundle, threads: int) -> list[VariantReport]:
    """Measure each variant. On a busy host, repeat and return the measurement with the lowest load."""
    rows: dict[str, VariantReport] = {}
    names: list[str] = []
    for _ in range(1 + RETRIES):
        config = BenchConfig(variants=tuple(names), threads=threads, runs=TIMED_RUNS, max_seconds=TIMED_SECONDS)
        report = measure_bundle(bundle.path, config, images=search.images, progress=search.progress)
        for row in report.variants:
            known = rows.get(row.variant)
            if known is None or known.load is None or (row.load is not None and row.load.total < known.load.total):
                rows[row.variant] = row
        names = [name for name, row in rows.items() if row.busy]
        if not names or search.device is not None:
            break
    return list(rows.values())


def _outcomes(found: list[Offer], kept: list[Offer], rejected: tuple[Rejected, ...]) -> list[Outcome]:
    """Return a row for each timed variant and thread count, and for each variant that the gate rejected, at one input size."""
    rows = []
    for offer in found:
        if not offer.kept:
            result: Literal["kept", "contract", "threads"] = "contract"
            reason = ", ".join(clause.describe() for clause in offer.clauses if not clause.kept)
        elif offer.threads == kept[0].threads:
            result, reason = "kept", ""
        else:
            result, reason = "threads", f"the bundle uses {kept[0].threads} thread(s) for its variants"
        rows.append(Outcome(variant=offer.variant, side=offer.side, result=result, reason=reason, offer=offer))
    return [*rows, *(outcomes_of((), rejected, found[0].side) if found else ())]


def _offer(search: ContractSearch, bundle: Bundle, row: VariantReport, threads: int) -> Offer:
    contract, manifest = search.contract, bundle.manifest
    variant = bundle.variant(row.variant)
    if search.device is not None:
        row = on_device(row, variant, search.device)
    latency = _p90(row.whole if contract.latency_of == "whole" else row.infer)
    drop = manifest.drop_of(variant)
    if manifest.trained_at_run_size is not None and (manifest.target is None or manifest.target.labeled):
        drop += manifest.trained_at_run_size.value - manifest.trained.value  # without labels, only the gate limits the drop of the size
    size, memory = row.size_bytes / 1e6, row.cold.peak_rss_mb
    limits: tuple[tuple[ClauseName, float | None, float], ...] = (
        ("latency", contract.max_latency_ms, latency),
        ("size", contract.max_size_mb, size),
        ("memory", contract.memory_mb, memory),
        ("drop", search.max_drop, drop if variant.precision != "fp32" or manifest.trained_at_run_size else 0.0),
    )
    return Offer(
        variant=row.variant,
        threads=threads,
        side=manifest.preprocess.input_size[0],
        latency_ms=latency,
        stages_ms=(row.decode.mean_ms, row.preprocess.mean_ms, row.infer.mean_ms),
        size_mb=size,
        memory_mb=memory,
        accuracy=variant.validation.value,
        drop=drop,
        load=row.load,
        clauses=tuple(Clause(name=name, limit=limit, found=value) for name, limit, value in limits if limit is not None),
    )


def _p90(times: Percentiles) -> float:
    """Return the 90th percentile. A slow variant with fewer than 64 calls gets 1.1 times the mean instead."""
    return times.p90_ms if times.p90_ms is not None else NETWORK_RESERVE * times.mean_ms


def _formats(config: ExportConfig, device: LatencyReport | None) -> tuple[Format, ...]:
    """Return the requested formats. With a profile, only those that the device has an engine for."""
    if device is None:
        return config.formats
    there = tuple(item for item in config.formats if any(row.variant.startswith(item) for row in device.variants))
    if not there:
        raise ConfigError(
            f"the profile has no measurement of the format(s) {', '.join(config.formats)}. Choose another --format, or install the engine "
            f"on the device and repeat `edgetl bench`."
        )
    return there


def _excluded(config: ExportConfig, formats: tuple[Format, ...], device: LatencyReport) -> tuple[Rejected, ...]:
    """Return the requested variants of the formats that the profile has no measurement of, and log them."""
    found = []
    for format_ in config.formats:
        if format_ in formats:
            continue
        if any(name.startswith(format_) for name in device.skipped):
            reason = f"the device of --profile has no engine for {format_}. Install it on the device, and repeat `edgetl bench` there"
        else:
            reason = f"--profile has no measurement of a variant in the format {format_}. Repeat `edgetl bench` with one on the device"
        names = [f"{format_}-{precision}" for precision in config.precisions]
        _log.warning("not exported: %s. Reason: %s.", ", ".join(names), reason)
        found += [Rejected(name=name, reason=reason, by="export") for name in names]
    return tuple(found)


def explain(search: ContractSearch) -> str:
    """Return the message of a search without a result: the closest variant, its failing limits, and the limits that it would meet."""
    if not search.offers:
        return f"no variant was exported. {' '.join(search.notes)}"
    near = min(search.offers, key=lambda offer: (sum(not clause.kept for clause in offer.clauses), offer.excess))
    failing = [clause for clause in near.clauses if not clause.kept]
    text = (
        f"no variant meets the deployment contract. The closest is {near.variant} at {near.side} px with {near.threads} thread(s): "
        f"{', '.join(clause.describe() for clause in near.clauses)}. "
    )
    if any(clause.name == "latency" for clause in failing):
        text += _describe_latency(search.contract, near)
        if near.load is not None and near.busy:
            place = "host" if search.device is None else "device of the profile"
            text += f"The {place} was busy during the timing ({near.load.describe()}). Repeat on an idle {place}. "
    text += "".join(f"{note[0].upper()}{note[1:]}. " for note in search.notes)
    remedies = " ".join(clause.remedy() for clause in failing)
    advice = f"To accept this variant, set {remedies}.{_advise_backbone(search.contract, near)}"
    return f"{text}Nothing was written. {advice}"


def _images_alone_exceed(contract: Contract, offer: Offer) -> bool:
    """Return True if decoding and resizing alone exceed the latency limit. A faster network cannot meet the limit then."""
    limited = contract.max_latency_ms is not None and contract.latency_of == "whole"
    return limited and sum(offer.stages_ms[:2]) > (contract.max_latency_ms or 0.0)


def _advise_backbone(contract: Contract, offer: Offer) -> str:
    """Return a sentence about a smaller backbone if one could keep the limits, or an empty text."""
    failing = {clause.name for clause in offer.clauses if not clause.kept}
    if not failing - {"drop"} or ("latency" in failing and _images_alone_exceed(contract, offer)):
        return ""
    return " To find a smaller backbone, run `edgetl fit DATA` with the same limits."


def _describe_latency(contract: Contract, offer: Offer) -> str:
    decode, prepare, infer = offer.stages_ms
    if contract.latency_of == "infer" or contract.max_latency_ms is None:
        return ""
    text = f"Mean time: decoding {decode:.2f} ms, resizing {prepare:.2f} ms, network {infer:.2f} ms. "
    if not _images_alone_exceed(contract, offer):
        return text
    text += "Decoding and resizing alone exceed the limit, so a smaller backbone cannot keep it. Use smaller image files"
    if NETWORK_RESERVE * infer <= contract.max_latency_ms:
        return f"{text}, or limit only the network with --latency-of infer. "
    return f"{text}. The network alone also exceeds the limit. "
