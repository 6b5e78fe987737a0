"""Backbone search (``edgetl fit``): rank, train and export backbones in turn until a bundle meets a deployment contract."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgetl.core.bundle import Bundle, is_run, open_bundle
from edgetl.core.config import StrictModel
from edgetl.core.contract import Clause, ClauseName, Contract, Outcome
from edgetl.core.files.atomic import write_text
from edgetl.core.images.decode import load_image
from edgetl.core.manifest import Format, Precision
from edgetl.core.output.folders import new_folder
from edgetl.core.output.ownership import FIT_RECORD_NAME
from edgetl.core.preprocess import normalize, to_pixels
from edgetl.core.progress import Progress, silent
from edgetl.core.system.host_load import load_between, read_counters
from edgetl.data.folder import Sample, scan
from edgetl.data.loading import stratified
from edgetl.data.scan_notes import ScanNote
from edgetl.data.selection import Selection
from edgetl.errors import AccuracyGateError, ConfigError, ContractError, EdgetlError, ExportError, TrainingError
from edgetl.executors.tasks import Tasks
from edgetl.export.config import FitConfig
from edgetl.export.context import SOURCE_NAME, open_files
from edgetl.export.contract_search import export_under_contract
from edgetl.export.convert.to_onnx import to_onnx
from edgetl.export.formats import FORMATS
from edgetl.export.package import model_name
from edgetl.export.quantize.attempts import Int8Settings, QuantizerInput
from edgetl.measure.latency import time_calls
from edgetl.train.artifacts.loading.load import load_backbone
from edgetl.train.config.options import TrainConfig
from edgetl.train.config.paths import training_inputs
from edgetl.train.config.ranking import Ranking
from edgetl.train.loop.processes import use_threads
from edgetl.train.networks.backbone import Backbone
from edgetl.train.workflows.candidates import RANDOM
from edgetl.train.workflows.compare import open_shared_run
from edgetl.train.workflows.rank import rank
from edgetl.train.workflows.train import train

# A backbone is skipped before training if it exceeds a limit by MARGIN even at SMALLEST_RATIO of its input size. An even smaller input is
# unlikely to keep the accuracy.
MARGIN = 1.1
SMALLEST_RATIO = 0.75
FEW_IMAGES = 8
# Folder of the runs of tasks in the output folder. It is removed at the end.
_WORK = "candidates"


class AttemptedBackbone(StrictModel):
    """Attempted backbone of a backbone search.

    Attributes:
        backbone: name of the backbone.
        outcome: ``left out``: skipped before training. ``refused``: trained, and then rejected. ``chosen``: in the bundle.
        reason: reason of the outcome.
        clauses: measured limits of the contract.
        outcomes: attempted variants.
    """

    backbone: str
    outcome: Literal["left out", "refused", "chosen"]
    reason: str
    clauses: tuple[Clause, ...] = ()
    outcomes: tuple[Outcome, ...] = ()


class FitRecord(StrictModel):
    """Content of ``fit.json``.

    Attributes:
        contract: limits of the deployment contract.
        tried: attempted backbones, in order.
        notes: notes of the image scan.
    """

    schema_version: Literal[1] = 1
    contract: Contract
    tried: tuple[AttemptedBackbone, ...]
    notes: tuple[ScanNote, ...] = ()


@dataclass(frozen=True)
class FitResult:
    """Result of ``fit``.

    Attributes:
        bundle: bundle that meets the contract.
        run: folder of the run.
        record: attempted backbones, as in ``fit.json``.
    """

    bundle: Bundle
    run: Path
    record: FitRecord


@dataclass(frozen=True)
class BackboneTask:
    """Task that trains a backbone: the images, the options, the run folder to write, and the number of threads."""

    data: Path
    config: TrainConfig
    out: Path
    threads: int


@dataclass
class _Search:
    """State of a backbone search: inputs, output folder, attempted backbones, and the task and the error of backbones trained in tasks."""

    data: Path
    config: FitConfig
    samples: list[Sample]
    labels: int
    folder: Path
    progress: Progress
    tried: list[AttemptedBackbone] = field(default_factory=list)
    trained: dict[str, tuple[BackboneTask, str]] = field(default_factory=dict)


def fit(
    data: Path, config: FitConfig, out: Path, *, overwrite: bool = False, tasks: Tasks | None = None, progress: Progress = silent
) -> FitResult:
    """Rank, train and export backbones in turn until one meets a deployment contract.

    A backbone that cannot meet the contract is skipped before training, measured with untrained weights. With ``tasks``, the first
    ``config.tries`` other backbones are trained at the same time. All timings are on this host, while no task runs.

    Args:
        data: folder of labeled images.
        config: ranking, training, export, and the limits of the contract.
        out: output folder. ``run``, ``bundle`` and ``fit.json`` are written into it.
        overwrite: replace an existing ``out``.
        tasks: execution of the ranking and of the trainings as tasks, on hosts that share ``out``; none for this process.
        progress: called at each stage.

    Raises:
        ContractError: no backbone meets the contract. The message names the limits, and nothing is written.
        ConfigError: the contract has no limit, or ``out`` exists.
        EdgetlError: see ``rank``, ``train`` and ``export_under_contract``.
    """
    if not config.contract.limited:
        raise ConfigError("the deployment contract has no limit. Set --max-latency-ms, --max-size-mb or --memory-mb.")
    with new_folder(out, inputs=training_inputs(data, config.train), overwrite=overwrite) as folder:
        images = scan(data, selection=Selection(config.train.data.include, config.train.data.exclude), progress=progress)
        names = _ranked(rank(data, config.rank, tasks=tasks, progress=progress))
        config = _with_name(config, data)
        search = _Search(data, config, stratified(images.samples, FEW_IMAGES), len(images.labels), folder, progress)
        selected = _select(search, names) if tasks is None else _train_all(search, names, tasks)
        for name, left_out in selected:
            if left_out is not None:
                search.tried.append(left_out)
            elif _try(search, name):
                break
        else:
            raise _failure(search, names)
        shutil.rmtree(folder / _WORK, ignore_errors=True)
        record = FitRecord(contract=config.contract, tried=tuple(search.tried), notes=images.notes)
        write_text(folder / FIT_RECORD_NAME, record.model_dump_json(indent=1) + "\n")
    return FitResult(open_bundle(out / "bundle"), out / "run", record)


def _with_name(config: FitConfig, data: Path) -> FitConfig:
    """Name the bundle after the folder of the images, unless it has a name."""
    export = config.export.model_copy(update={"name": config.export.name or model_name(data.resolve().name)})
    return config.model_copy(update={"export": export})


def _ranked(ranking: Ranking) -> list[str]:
    return [item.name for item in ranking.ranked if not item.name.startswith(RANDOM)]


def _select(search: _Search, names: Sequence[str]) -> Iterator[tuple[str, AttemptedBackbone | None]]:
    """Yield each backbone with the reason to skip it, None for a backbone to train, until ``tries`` backbones are to be trained."""
    kept = 0
    for name in names:
        if kept == search.config.tries:
            return
        left_out = _measure_untrained(search, name)
        kept += left_out is None
        yield name, left_out


def _measure_untrained(search: _Search, name: str) -> AttemptedBackbone | None:
    """Return None if the untrained network is close enough to the limits. Training changes neither its size nor its latency."""
    search.progress(f"measuring {name}", 0, 1)
    wanted = _options(search, name)
    before = read_counters()
    try:
        clauses = costs(load_backbone(wanted.backbone, search.labels), search.config, search.samples)
    except EdgetlError as error:
        return AttemptedBackbone(backbone=name, outcome="left out", reason=str(error))
    over = [clause for clause in clauses if clause.found > MARGIN * clause.limit]
    if not over:
        return None
    shown = ", ".join(clause.describe() for clause in over)
    load = load_between(before, read_counters())
    if load is not None and load.busy and any(clause.name == "latency" for clause in over):
        shown += f"; the host was busy during the timing ({load.describe()})"
    return AttemptedBackbone(backbone=name, outcome="left out", reason=f"before training: {shown}", clauses=clauses)


def costs(backbone: Backbone, config: FitConfig, samples: list[Sample]) -> tuple[Clause, ...]:
    """Measure the smallest size and latency of the untrained backbone over the formats and precisions of ``config``.

    The latency is scaled to the smallest input size that is tried.

    Raises:
        ExportError: the backbone cannot be exported.
    """
    contract = config.contract
    image = np.random.default_rng(0).normal(size=(1, 3, *backbone.spec.input_size)).astype(np.float32)
    sizes, times = [], []
    with tempfile.TemporaryDirectory() as name:
        source = Path(name) / SOURCE_NAME
        to_onnx(backbone.model.eval(), backbone.spec, source, {})
        for format_ in config.export.formats:
            for files in _untrained_files(format_, config.export.precisions, source, image):
                sizes.append(sum(path.stat().st_size for path in files) / 1e6)
                calls = partial(open_files(format_, files, threads=contract.threads), image)
                times.append(float(np.median(time_calls(calls, runs=30, max_seconds=3.0))))
    latency = min(times) * SMALLEST_RATIO**2
    if contract.latency_of == "whole":
        latency += _image_ms(backbone, samples)
    limits: tuple[tuple[ClauseName, float | None, float], ...] = (
        ("latency", contract.max_latency_ms, latency),
        ("size", contract.max_size_mb, min(sizes)),
    )
    return tuple(Clause(name=name, limit=limit, found=found) for name, limit, found in limits if limit is not None)


def _untrained_files(format_: Format, precisions: Sequence[Precision], source: Path, image: NDArray[np.float32]) -> list[list[Path]]:
    """Write the files of each precision in one format, next to ``source``. If only int8 is requested and fails, write fp32."""
    backend, written = FORMATS[format_], []
    work = source.parent / format_
    work.mkdir()
    for precision in precisions:
        folder = source.parent / f"{format_}-{precision}"
        folder.mkdir()
        try:
            if precision == "int8":
                written.append(backend.quantizer(QuantizerInput(source, [image, -image], work)).quantize(Int8Settings(), folder))
            else:
                written.append(backend.write(precision, source, folder))
        except ExportError:
            if precision != "int8":
                raise
    return written or [backend.write("fp32", source, work)]


def _image_ms(backbone: Backbone, samples: list[Sample]) -> float:
    """Return the median time of decoding and preprocessing one image, ms."""
    out = np.empty((3, *backbone.spec.input_size), np.float32)
    pending = iter(samples * 3)

    def one() -> None:
        normalize(to_pixels(load_image(next(pending).path, intensity=backbone.spec.intensity), backbone.spec), backbone.spec, out)

    return float(np.median(time_calls(one, runs=len(samples) * 3 - 5)))


def train_backbone(task: BackboneTask) -> str:
    """Train a backbone in a process of its own, and return the error of a failed training. A repeated task continues the first one."""
    use_threads(task.threads)
    try:
        if not is_run(task.out):
            train(task.data, task.config, task.out, resume=True)
    except TrainingError as error:
        return str(error)
    return ""


def _train_all(search: _Search, names: Sequence[str], tasks: Tasks) -> Iterator[tuple[str, AttemptedBackbone | None]]:
    """Select backbones as ``_select`` does, train them in tasks, and return them."""
    selected = list(_select(search, names))
    items = {
        # The run has the name of its folder.
        name: BackboneTask(search.data, _options(search, name), search.folder / _WORK / str(index) / "run", tasks.threads)
        for index, (name, left_out) in enumerate(selected)
        if left_out is None
    }
    errors = tasks.run("training", train_backbone, list(items.values()), failed=lambda _, error: str(error))
    search.trained = {name: (task, error) for (name, task), error in zip(items.items(), errors, strict=True)}
    return iter(selected)


def _train(search: _Search, name: str) -> None:
    """Train a backbone into the folder ``run``, or move the run of its task there.

    Raises:
        TrainingError: the training failed.
    """
    run = search.folder / "run"
    if name not in search.trained:
        train(search.data, _options(search, name), run, overwrite=True, progress=search.progress)
        return
    task, error = search.trained[name]
    if error:
        raise TrainingError(error)
    made = open_shared_run(task.out, name)
    shutil.rmtree(run, ignore_errors=True)
    made.path.rename(run)


def _options(search: _Search, name: str) -> TrainConfig:
    return search.config.train.with_options(backbone=name)


def _try(search: _Search, name: str) -> bool:
    """Train and export one backbone. Return True if it meets the contract."""
    try:
        _train(search, name)
        bundle = export_under_contract(
            search.folder / "run", search.config.export, search.config.contract, search.folder / "bundle", progress=search.progress
        )
    except (ContractError, AccuracyGateError, ExportError, TrainingError) as error:
        reason = str(error).split(" Nothing was written")[0]
        outcomes = tuple(Outcome.model_validate(row) for row in error.rows)
        search.tried.append(AttemptedBackbone(backbone=name, outcome="refused", reason=reason, outcomes=outcomes))
        return False
    record = bundle.manifest.contract
    assert record is not None
    shown = ", ".join(clause.describe() for clause in record.chosen.clauses)
    reason = f"{record.chosen.variant} at {record.chosen.side} px: {shown}"
    search.tried.append(
        AttemptedBackbone(backbone=name, outcome="chosen", reason=reason, clauses=record.chosen.clauses, outcomes=bundle.manifest.outcomes)
    )
    return True


def _failure(search: _Search, names: list[str]) -> ContractError:
    rows = [row.model_copy(update={"backbone": item.backbone}) for item in search.tried for row in item.outcomes]
    return ContractError(_explain(search, names), rows=[row.model_dump(mode="json") for row in rows])


def _explain(search: _Search, names: list[str]) -> str:
    tried = ". ".join(f"{item.backbone}: {item.reason.rstrip('.')}" for item in search.tried)
    skipped = len(names) - len(search.tried)
    more = f" {skipped} more were not tried (--tries {search.config.tries})." if skipped > 0 else ""
    failing = {clause.name: clause for item in search.tried for clause in item.clauses if not clause.kept}
    nearest = [
        min((clause for item in search.tried for clause in item.clauses if clause.name == name), key=lambda clause: clause.found)
        for name in failing
    ]
    fits = f" Smallest values found: {', '.join(clause.describe() for clause in nearest)}." if nearest else ""
    advice = "Raise the limit, or choose other backbones with --candidates."
    return f"no backbone meets the deployment contract. {tried}.{more}{fits} Nothing was written. {advice}"
