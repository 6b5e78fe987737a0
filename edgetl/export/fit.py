"""The whole road under a contract: rank backbones, leave out what could never keep it, train, export, and stop at the first that does."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from edgetl.core.bundle import Bundle, open_bundle
from edgetl.core.config import StrictModel
from edgetl.core.contract import Clause, Contract, Outcome
from edgetl.core.files.atomic import write_text
from edgetl.core.images.decode import load_image
from edgetl.core.manifest import Format, Precision
from edgetl.core.output.folders import new_folder
from edgetl.core.output.recognition import FIT_RECORD_NAME
from edgetl.core.preprocess import normalise, to_pixels
from edgetl.core.progress import Progress, silent
from edgetl.core.system.load import load_between, read_counters
from edgetl.data.folder import Sample, scan
from edgetl.data.loading import stratified
from edgetl.data.notes import ScanNote
from edgetl.data.selection import Selection
from edgetl.errors import AccuracyGateError, ConfigError, ContractError, EdgetlError, ExportError
from edgetl.export.config import ExportConfig
from edgetl.export.context import open_files
from edgetl.export.convert.to_onnx import to_half, to_onnx
from edgetl.export.convert.to_openvino import read_onnx, save
from edgetl.export.convert.weights_only import pack_onnx, pack_openvino
from edgetl.export.package import model_name
from edgetl.export.quantize.attempts import Step
from edgetl.export.quantize.nncf_quantizer import OpenVinoQuantizer
from edgetl.export.quantize.ort_quantizer import OnnxQuantizer
from edgetl.export.under_contract import export_under_contract
from edgetl.measure.latency import time_calls
from edgetl.train.artifacts.sources.load import load_backbone
from edgetl.train.config.options import TrainConfig
from edgetl.train.config.paths import training_inputs
from edgetl.train.config.ranking import RankConfig, Ranked
from edgetl.train.networks.backbone import Backbone
from edgetl.train.workflows.rank import RANDOM, rank
from edgetl.train.workflows.train import train

# A backbone is left out before training when it misses a limit by this factor even at this share of its input, the smallest that is
# likely to keep its accuracy.
MARGIN = 1.1
SMALLEST_SHARE = 0.75
FEW_IMAGES = 8


class FitConfig(StrictModel):
    """What ``fit`` may do.

    Attributes:
        rank: which backbones are compared, and how.
        train: how each is trained; its backbone is replaced.
        export: formats, precisions and the accuracy gate.
        contract: the limits.
        tries: so many backbones are trained at most.
    """

    rank: RankConfig = RankConfig()
    train: TrainConfig = TrainConfig()
    export: ExportConfig = ExportConfig()
    contract: Contract
    tries: int = Field(default=3, ge=1, le=20)


class Tried(StrictModel):
    """Attempted backbone: left out before training, rejected after it, or chosen; ``outcomes`` are its attempted variants."""

    backbone: str
    outcome: Literal["left out", "refused", "chosen"]
    reason: str
    clauses: tuple[Clause, ...] = ()
    outcomes: tuple[Outcome, ...] = ()


class FitRecord(StrictModel):
    """``fit.json``: the attempted backbones, in order; ``notes`` are those of the scan."""

    schema_version: Literal[1] = 1
    contract: Contract
    tried: tuple[Tried, ...]
    notes: tuple[ScanNote, ...] = ()


@dataclass(frozen=True)
class Fitted:
    """The run and the bundle that keeps the contract, and what was tried before."""

    bundle: Bundle
    run: Path
    record: FitRecord


@dataclass
class _Road:
    """One ``fit`` in progress."""

    data: Path
    config: FitConfig
    samples: list[Sample]
    labels: int
    folder: Path
    progress: Progress
    tried: list[Tried] = field(default_factory=list)


def fit(data: Path, config: FitConfig, out: Path, *, overwrite: bool = False, progress: Progress = silent) -> Fitted:
    """Find a backbone for the images below ``data``, train and export it so that ``config.contract`` is kept.

    Writes ``out/run``, ``out/bundle`` and ``out/fit.json``.

    Raises:
        ContractError: no backbone keeps the contract; the text names the clause, and nothing is written.
        ConfigError: the contract has no limit, or ``out`` exists.
        EdgetlError: what ``rank``, ``train`` and ``export_under_contract`` raise.
    """
    if not config.contract.limited:
        raise ConfigError("a contract needs a limit: --max-latency-ms, --max-size-mb or --memory-mb.")
    with new_folder(out, inputs=training_inputs(data, config.train), overwrite=overwrite) as folder:
        images = scan(data, selection=Selection(config.train.data.include, config.train.data.exclude), progress=progress)
        ranking = rank(data, config.rank, progress=progress)
        named = config.export.model_copy(update={"name": config.export.name or model_name(data.resolve().name)})
        config = config.model_copy(update={"export": named})
        road = _Road(data, config, stratified(images.samples, FEW_IMAGES), len(images.labels), folder, progress)
        trained = 0
        for item in ranking.ranked:
            if item.name.startswith(RANDOM) or trained == config.tries or not _could_keep(road, item):
                continue
            trained += 1
            if _try(road, item):
                break
        else:
            names = [item.name for item in ranking.ranked if not item.name.startswith(RANDOM)]
            rows = [row.model_copy(update={"backbone": item.backbone}) for item in road.tried for row in item.outcomes]
            raise ContractError(_explain(road, names), rows=[row.model_dump(mode="json") for row in rows])
        record = FitRecord(contract=config.contract, tried=tuple(road.tried), notes=images.notes)
        write_text(folder / FIT_RECORD_NAME, record.model_dump_json(indent=1) + "\n")
    return Fitted(open_bundle(out / "bundle"), out / "run", record)


def _could_keep(road: _Road, item: Ranked) -> bool:
    """Whether the untrained network, whose size and time are those of the trained one, is near enough to the limits."""
    road.progress(f"measuring {item.name}", 0, 1)
    wanted = road.config.train.with_options(backbone=item.name)
    before = read_counters()
    try:
        clauses = costs(load_backbone(wanted.backbone, road.labels), road.config, road.samples)
    except EdgetlError as error:
        road.tried.append(Tried(backbone=item.name, outcome="left out", reason=str(error)))
        return False
    over = [clause for clause in clauses if clause.found > MARGIN * clause.limit]
    if over:
        shown = ", ".join(clause.describe() for clause in over)
        load = load_between(before, read_counters())
        if load is not None and load.busy and any(clause.name == "latency" for clause in over):
            shown += f"; timed on a busy host ({load.describe()})"
        road.tried.append(Tried(backbone=item.name, outcome="left out", reason=f"before training: {shown}", clauses=clauses))
    return not over


def costs(backbone: Backbone, config: FitConfig, samples: list[Sample]) -> tuple[Clause, ...]:
    """The least size and time that the backbone can have in the formats and precisions that are asked for, at a smaller input: of networks
    and images, without a gate.

    Raises:
        ExportError: it cannot be exported.
    """
    height, width = backbone.spec.input_size
    spec = backbone.spec
    calibration = [np.random.default_rng(0).normal(size=(1, 3, height, width)).astype(np.float32) for _ in range(2)]
    sizes, times = [], []
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        source = work / "model.onnx"
        to_onnx(backbone.model.eval(), spec, source, {})
        for format_ in config.export.formats:
            for files in _cheapest(config, format_, source, calibration, work):
                sizes.append(sum(path.stat().st_size for path in files) / 1e6)
                run = open_files(format_, files, threads=config.contract.threads)
                times.append(float(np.median(time_calls(lambda: run(calibration[0]), runs=30, max_seconds=3.0))))  # noqa: B023
    whole = min(times) * SMALLEST_SHARE**2
    if config.contract.latency_of == "whole":
        whole += _image_ms(backbone, samples)
    found: list[Clause] = []
    if config.contract.max_latency_ms is not None:
        found.append(Clause(name="latency", limit=config.contract.max_latency_ms, found=whole))
    if config.contract.max_size_mb is not None:
        found.append(Clause(name="size", limit=config.contract.max_size_mb, found=min(sizes)))
    return tuple(found)


def _cheapest(config: FitConfig, format_: Format, source: Path, calibration: list[np.ndarray], work: Path) -> list[list[Path]]:
    """The fp32 files, and the int8 ones where they are asked for and can be made."""
    folder = work / format_
    (folder / "int8").mkdir(parents=True)
    plain = [source]
    if format_ == "openvino":
        plain = [folder / "model.xml", folder / "model.bin"]
        save(read_onnx(source, {}, {}), plain[0])
    made = [plain] if "fp32" in config.export.precisions else []
    made += [_packed(precision, format_, source, plain, folder) for precision in config.export.precisions if precision in _PACKED]
    if "int8" in config.export.precisions:
        (folder / "work").mkdir()
        quantizer: OnnxQuantizer | OpenVinoQuantizer = (
            OpenVinoQuantizer(plain[0], calibration, ({}, {}))
            if format_ == "openvino"
            else (OnnxQuantizer(source, calibration, folder / "work"))
        )
        try:
            made.append(quantizer.quantize(Step(), folder / "int8"))
        except ExportError:
            made = made or [plain]
    return made


_PACKED = ("fp16", "int8-weights")


def _packed(precision: Precision, format_: Format, source: Path, plain: list[Path], folder: Path) -> list[Path]:
    """The files with smaller weights."""
    (folder / precision).mkdir()
    files = [folder / precision / "model.onnx"] if format_ == "onnx" else [folder / precision / name for name in ("model.xml", "model.bin")]
    if format_ == "onnx":
        to_half(source, files[0]) if precision == "fp16" else pack_onnx(source, files[0])
    elif precision == "fp16":
        save(read_onnx(source, {}, {}), files[0], half=True)
    else:
        pack_openvino(plain[0], files[0], ({}, {}))
    return files


def _image_ms(backbone: Backbone, samples: list[Sample]) -> float:
    """Median time of decoding and preparing one of the images."""
    out = np.empty((3, *backbone.spec.input_size), np.float32)
    pending = iter(samples * 3)

    def one() -> None:
        normalise(to_pixels(load_image(next(pending).path, intensity=backbone.spec.intensity), backbone.spec), backbone.spec, out)

    return float(np.median(time_calls(one, runs=len(samples) * 3 - 5)))


def _try(road: _Road, item: Ranked) -> bool:
    """Train and export one backbone; whether it keeps the contract."""
    wanted = road.config.train.with_options(backbone=item.name)
    train(road.data, wanted, road.folder / "run", overwrite=True, progress=road.progress)
    try:
        bundle = export_under_contract(
            road.folder / "run", road.config.export, road.config.contract, road.folder / "bundle", progress=road.progress
        )
    except (ContractError, AccuracyGateError, ExportError) as error:
        reason = str(error).split(" Nothing was written")[0]
        outcomes = tuple(Outcome.model_validate(row) for row in error.rows)
        road.tried.append(Tried(backbone=item.name, outcome="refused", reason=reason, outcomes=outcomes))
        return False
    record = bundle.manifest.contract
    assert record is not None
    shown = ", ".join(clause.describe() for clause in record.chosen.clauses)
    reason = f"{record.chosen.variant} at {record.chosen.side} px: {shown}"
    road.tried.append(
        Tried(backbone=item.name, outcome="chosen", reason=reason, clauses=record.chosen.clauses, outcomes=bundle.manifest.outcomes)
    )
    return True


def _explain(road: _Road, names: list[str]) -> str:
    tried = "; ".join(f"{item.backbone}: {item.reason.rstrip('.')}" for item in road.tried)
    skipped = len(names) - len(road.tried)
    more = f" {skipped} more were not tried (--tries {road.config.tries})." if skipped > 0 else ""
    failing = {clause.name: clause for item in road.tried for clause in item.clauses if not clause.kept}
    nearest = [
        min((clause for item in road.tried for clause in item.clauses if clause.name == name), key=lambda clause: clause.found)
        for name in failing
    ]
    fits = f" The least that was found: {', '.join(clause.describe() for clause in nearest)}." if nearest else ""
    return f"no backbone keeps the contract. {tried}.{more}{fits} Nothing was written. Raise that limit, or name others with --candidates."
