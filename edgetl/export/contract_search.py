"""Contract search: export variants, and try threads and input sizes, until one keeps every limit of a deployment contract."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from edgetl.core.bundle import Bundle
from edgetl.core.config import read_json
from edgetl.core.contract import Clause, ClauseName, Contract, ContractRecord, Offer, Outcome
from edgetl.core.manifest import Format, Rejected, Variant
from edgetl.core.output.folders import reserved
from edgetl.core.progress import Progress, silent
from edgetl.core.system.host import available_cores, fingerprint
from edgetl.data.loading import stratified
from edgetl.errors import AccuracyGateError, ConfigError, ContractError
from edgetl.export.config import ExportConfig
from edgetl.export.package import RETRIES, Selection, export_bundle, outcomes_of
from edgetl.measure.latency import MIN_CALLS, Percentiles
from edgetl.measure.scenarios import BenchConfig, LatencyReport, VariantReport, measure_bundle
from edgetl.train.artifacts.run import Run, open_run, run_inputs

# Ratios to the run's input size that are tried when it is too slow; steps of 32 pixels suit every backbone's strides.
INPUT_RATIOS = (7 / 8, 3 / 4, 5 / 8, 1 / 2)
SIDE_STEP = 32
# A 90th percentile needs 64 calls; more of them make it steadier.
TIMED_RUNS, TIMED_SECONDS = 200, 20.0
# Validation images, whose size is that of the user's pictures; golden images are chosen small.
TIMED_IMAGES = 16


@dataclass
class ContractSearch:
    """Search for variants that keep a contract: its inputs, and the attempts so far.

    Attributes:
        contract: the limits.
        max_drop: largest accuracy drop.
        images: encoded images that variants are timed on.
        device: measurements of the device; none measures here.
        progress: called at each stage.
        offers: every variant that was timed.
        outcomes: a row for each attempted variant.
        notes: input sizes at which no variant was made.
    """

    contract: Contract
    max_drop: float
    images: list[Path]
    device: LatencyReport | None
    progress: Progress
    offers: list[Offer] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def error(self) -> ContractError:
        """The error of a search without a result, with a row for each attempt."""
        return ContractError(explain(self), rows=[row.model_dump(mode="json") for row in self.outcomes])

    def select(self, bundle: Bundle) -> Selection:
        """Variants of a new bundle that keep the contract, the most accurate and then the fastest first.

        All have one thread count, which the device then uses. Times of a busy host do not order variants: of two equally accurate
        variants the smaller is then first.

        Raises:
            ContractError: there is none.
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
        return Selection(names, record, tuple(self.outcomes), "accuracy" if busy else "time")


def export_under_contract(
    run: Path, config: ExportConfig, contract: Contract, out: Path, *, overwrite: bool = False, progress: Progress = silent
) -> Bundle:
    """Export ``run`` as a bundle whose variants all keep ``contract``, the most accurate first.

    The arguments are those of ``export_bundle``. With an ``input_size`` no other is tried; with a ``profile`` times are estimated for its
    device.

    Raises:
        ContractError: no variant keeps every limit; nothing is written. Its ``rows`` are the ``Outcome`` of each attempted variant.
        ConfigError: the contract has no limit, or the profile does not fit.
        EdgetlError: what ``export_bundle`` raises.
    """
    if not contract.limited:
        raise ConfigError("a contract needs a limit: --max-latency-ms, --max-size-mb or --memory-mb.")
    device = None if config.profile is None else _read_profile(config.profile, contract)
    config = config.model_copy(update={"allow_missing": True, "formats": _formats(config, device)})
    opened = open_run(run)
    images = [sample.path for sample in stratified(opened.samples("val", config.data), TIMED_IMAGES)]
    search = ContractSearch(contract, config.max_drop, images, device, progress)
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
                search.outcomes += _refused(error, side)
                search.notes.append(f"at {side} px: {str(error).split(' Nothing was written')[0].rstrip('.')}")
                break  # smaller inputs lose more, or the network takes one size only
    raise search.error()


def _refused(error: AccuracyGateError | ConfigError, side: int) -> list[Outcome]:
    """Rows of an input size at which the gate refused all variants, or that the network does not take."""
    if error.rows:
        return [Outcome.model_validate(row) for row in error.rows]
    kind: Literal["gate", "export"] = "gate" if isinstance(error, AccuracyGateError) else "export"
    return [Outcome(variant="every variant", side=side, result=kind, reason=str(error).split(" Nothing was written")[0])]


def _sides(run: Run, config: ExportConfig) -> list[int | None]:
    """None, for the run's own input, and then smaller ones."""
    height, width = run.record.preprocess.input_size
    if config.input_size is not None or height != width:
        return [None]
    smaller = {max(SIDE_STEP, round(height * ratio / SIDE_STEP) * SIDE_STEP) for ratio in INPUT_RATIOS}
    return [None, *sorted((side for side in smaller if side < height), reverse=True)]


def _may_help(search: ContractSearch, side: int) -> bool:
    """True if a smaller input could be fast enough, estimated by its number of pixels; size and memory hardly depend on it."""
    contract = search.contract
    if contract.max_latency_ms is None:
        return False
    for offer in search.offers:
        others = [clause.kept for clause in offer.clauses if clause.name != "latency"]
        fixed = 0.0 if contract.latency_of == "infer" else offer.stages_ms[0]
        guess = fixed + (offer.latency_ms - fixed) * (side / offer.side) ** 2
        if all(others) and guess <= 1.15 * contract.max_latency_ms:
            return True
    return False


def _timed(search: ContractSearch, bundle: Bundle, threads: int) -> list[VariantReport]:
    """Figures of each variant; on a busy host, those of the measurement with the least load."""
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
    """A row for each variant of one input size: those that were timed, at each thread count, and those that the gate rejected."""
    rows = []
    for offer in found:
        if not offer.kept:
            result: Literal["kept", "contract", "threads"] = "contract"
            reason = ", ".join(clause.describe() for clause in offer.clauses if not clause.kept)
        elif offer.threads == kept[0].threads:
            result, reason = "kept", ""
        else:
            result, reason = "threads", f"the bundle runs its variants on {kept[0].threads} thread(s)"
        rows.append(Outcome(variant=offer.variant, side=offer.side, result=result, reason=reason, offer=offer))
    return [*rows, *(outcomes_of((), rejected, found[0].side) if found else ())]


def _offer(search: ContractSearch, bundle: Bundle, row: VariantReport, threads: int) -> Offer:
    contract, manifest = search.contract, bundle.manifest
    variant = bundle.variant(row.variant)
    if search.device is not None:
        row = on_device(row, variant, search.device)
    latency = _p90(row.whole if contract.latency_of == "whole" else row.infer)
    drop = (manifest.trained_at_run_size or manifest.trained).value - variant.validation.value
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
    """The 90th percentile; of fewer than 64 calls, which only a variant of many milliseconds gets, the mean and a tenth."""
    return times.p90_ms if times.p90_ms is not None else 1.1 * times.mean_ms


def _formats(config: ExportConfig, device: LatencyReport | None) -> tuple[Format, ...]:
    """The requested formats; with a profile, those that the device has an engine for."""
    if device is None:
        return config.formats
    there = tuple(item for item in config.formats if any(row.variant.startswith(item) for row in device.variants))
    if not there:
        raise ConfigError(f"the device of the profile runs none of {', '.join(config.formats)}; ask for another --format.")
    return there


def _read_profile(path: Path, contract: Contract) -> LatencyReport:
    report = read_json(path, LatencyReport, ConfigError)
    here = fingerprint()["cpu"]
    if not report.variants or any(row.reference_ms is None for row in report.variants):
        raise ConfigError(
            f"{path} does not say how fast its variants are on the bench; take it with this version: edgetl bench BUNDLE --json."
        )
    if report.reference_cpu != here:
        raise ConfigError(
            f"{path} compares the device with {report.reference_cpu or 'an unknown machine'}, and this is {here}. "
            f"Export a bundle here, run `edgetl bench` with it on the device, and give that profile."
        )
    if contract.threads is not None and contract.threads != report.threads:
        raise ConfigError(f"{path} was taken with {report.threads} thread(s), and --threads is {contract.threads}. Take it with those.")
    return report


def on_device(row: VariantReport, variant: Variant, device: LatencyReport) -> VariantReport:
    """A variant's figures on the device, estimated: decoding and preparing as they were there; inference by how much slower the device ran
    the same kind of variant, else the first of the same format, than this machine did.
    """
    same = [item for item in device.variants if item.variant == row.variant] or [
        item for item in device.variants if item.variant.startswith(variant.format)
    ]
    known = same[0]
    assert known.reference_ms is not None
    infer = _scaled(known.infer, variant.median_ms / known.reference_ms)
    added = [known.decode, known.preprocess, infer]
    whole = _scaled(infer, sum(part.mean_ms for part in added) / infer.mean_ms)
    return row.model_copy(
        update={
            "cold": known.cold,
            "decode": known.decode,
            "preprocess": known.preprocess,
            "infer": infer,
            "whole": whole,
            "load": known.load,
        }
    )


def _scaled(times: Percentiles, factor: float) -> Percentiles:
    values = {name: None if value is None else value * factor for name, value in times.model_dump(exclude={"n"}).items()}
    return Percentiles(n=max(times.n, MIN_CALLS[90]) if times.p90_ms is not None else times.n, **values)  # type: ignore[arg-type]


def explain(search: ContractSearch) -> str:
    """The failing clauses, by how much they fail, and the limits that would fit."""
    if not search.offers:
        return f"no variant could be made. {' '.join(search.notes)}"
    near = min(search.offers, key=lambda offer: (sum(not clause.kept for clause in offer.clauses), offer.excess))
    failing = [clause for clause in near.clauses if not clause.kept]
    text = (
        f"no variant keeps the contract. The nearest is {near.variant} at {near.side} px on {near.threads} thread(s): "
        f"{', '.join(clause.describe() for clause in near.clauses)}. "
    )
    if any(clause.name == "latency" for clause in failing):
        text += _where_time_goes(search.contract, near)
        if near.load is not None and near.busy:
            text += f"The host was busy ({near.load.describe()}): repeat on an idle one. "
    text += "".join(f"{note[0].upper()}{note[1:]}. " for note in search.notes)
    remedies = " ".join(clause.remedy() for clause in failing)
    advice = f"What would fit: {remedies}, or a smaller backbone (`edgetl fit DATA` looks for one)."
    return f"{text}Nothing was written. {advice}"


def _where_time_goes(contract: Contract, offer: Offer) -> str:
    decode, prepare, infer = offer.stages_ms
    if contract.latency_of == "infer" or contract.max_latency_ms is None:
        return ""
    text = f"Of the time, decoding takes {decode:.2f} ms, resizing {prepare:.2f} ms, the network {infer:.2f} ms. "
    if decode + prepare > contract.max_latency_ms:
        text += "The images alone take longer than the limit: give smaller ones, or limit the network alone with --latency-of infer. "
    return text
