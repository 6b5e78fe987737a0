"""Comparison of strategies (``--strategy compare``): train each, and keep the cheapest that is as good as the best."""

from __future__ import annotations

import logging
import math
import shutil
import time
from functools import partial
from pathlib import Path

from edgetl.core.bundle import is_run
from edgetl.core.output.folders import check_side_folder, new_folder, remove_side_folder
from edgetl.core.output.ownership import COMPARE_SUFFIX, holds_own
from edgetl.core.progress import Progress, silent
from edgetl.data.split import Splits
from edgetl.errors import ConfigError
from edgetl.train.artifacts.loading.lineage import seen_by_ancestors
from edgetl.train.artifacts.record import Compared
from edgetl.train.artifacts.run import Run, open_run
from edgetl.train.artifacts.writer import write_record
from edgetl.train.config.options import Strategy, TrainConfig
from edgetl.train.config.paths import training_inputs
from edgetl.train.config.plan import FULL_UP_TO
from edgetl.train.config.resolve import conflicts
from edgetl.train.loop.processes import world_size
from edgetl.train.loop.resume import Job, differences, resume_command
from edgetl.train.workflows.finetune import fine_tune

_log = logging.getLogger(__name__)

# The cheapest first: each trains more of the network than the one before.
COMPARED: tuple[Strategy, ...] = ("probe", "partial", "full")


def compared_strategies(splits: Splits, *, scratch: bool) -> tuple[Strategy, ...]:
    """Strategies to compare; random weights too where the images are so many that pretrained ones may not help.

    On images unlike those of the pretraining they often do not (Raghu et al. 2019, arXiv:1902.07208, on medical images).
    """
    many = len({sample.content for sample in splits.train}) > FULL_UP_TO
    return (*COMPARED, "scratch") if many and splits.folder.task == "classification" and scratch else COMPARED


def compare(
    splits: Splits, config: TrainConfig, out: Path, *, overwrite: bool = False, resume: bool = False, progress: Progress = silent
) -> Run:
    """Train ``probe``, ``partial`` and ``full`` (above 100,000 images ``scratch`` too), and keep, by validation accuracy, the cheapest
    that lies within one standard error of the best (Breiman et al. 1984, the rule of one standard error).

    Each is a run in ``<out>.compare``, so that ``resume`` does not repeat finished ones. They stay there unless ``config.run.keep``
    is ``best``. ``seconds`` of the result are those of the whole call.

    Raises:
        ConfigError: ``out`` exists, or a comparison that was stopped is in the way.
        EdgetlError: what ``fine_tune`` raises.
    """
    if world_size() > 1:
        raise ConfigError("--strategy compare runs in one process; leave --devices and torchrun out, or name one strategy.")
    started, work = time.monotonic(), out.with_name(f"{out.name}{COMPARE_SUFFIX}")
    with new_folder(out, inputs=training_inputs(splits.folder.root, config), overwrite=overwrite) as folder:
        _clear(work, out, overwrite=overwrite, resume=resume)
        trained = partial(_trained, overwrite=overwrite, resume=resume, progress=progress)
        # Random weights have no previous task, and an ancestor's images would be left out of the other trainings alone.
        scratch = config.backbone.pretrained and not seen_by_ancestors(config.backbone, config.distillation.teacher, scratch=False).all
        scratch = scratch and not list(conflicts(config.with_options(strategy="scratch"), {}, splits.folder.task, "scratch"))
        strategies = compared_strategies(splits, scratch=scratch)
        runs = [trained(splits, config.with_options(strategy=strategy), work / strategy) for strategy in strategies]
        table = tuple(_compared(run) for run in runs)
        best, reason = choose(table)
        _log.info("%s", reason)
        shutil.copytree(runs[best].path, folder, dirs_exist_ok=True)
        record, seconds = runs[best].record, round(time.monotonic() - started, 1)
        plan = record.plan.model_copy(update={"reason": reason})
        call = {"name": out.name, "config": config, "given": tuple(config.given()), "seconds": seconds}
        write_record(folder, record.model_copy(update={**call, "plan": plan, "compared": table}))
    if config.run.keep == "best":
        remove_side_folder(work)
    return open_run(out)


def _clear(work: Path, out: Path, *, overwrite: bool, resume: bool) -> None:
    """Make room for a comparison's runs, unless those of another one are there to go on with."""
    check_side_folder(work)
    if overwrite and not resume:
        remove_side_folder(work)
    elif not resume and holds_own(work):
        raise ConfigError(
            f"{work} holds the runs of a comparison for {out}. Go on with {resume_command(out)}, or begin again with --overwrite."
        )


def _trained(splits: Splits, config: TrainConfig, out: Path, *, overwrite: bool, resume: bool, progress: Progress) -> Run:
    """The run of one strategy, new or found finished."""
    _log.info("comparing: strategy %s", config.optim.strategy)
    if not is_run(out):
        return fine_tune(splits, config, out, overwrite=overwrite, resume=resume, progress=progress)
    run = open_run(out)
    now = splits.folder.fingerprint()
    jobs = [
        Job(data="", options=item.given(), resolved={"images": images[:12]})
        for item, images in ((run.record.config, run.record.data_fingerprint), (config, now))
    ]
    if apart := differences(*jobs):
        raise ConfigError(
            f"{out.parent} holds another comparison: {'; '.join(apart)}. Go on with its own options, which need not be repeated: "
            f"{resume_command(out)}. Or begin again with --overwrite."
        )
    return run


def _compared(run: Run) -> Compared:
    record = run.record
    return Compared(strategy=record.plan.strategy, steps=record.plan.steps, validation=record.validation.accuracy, seconds=record.seconds)


def choose(table: tuple[Compared, ...]) -> tuple[int, str]:
    """Index of the strategy to keep, of those listed from the cheapest to the dearest, and why."""
    top = max(table, key=lambda item: item.validation.value).validation
    error = math.sqrt(top.value * (1 - top.value) / max(1, top.n))
    best = next(index for index, item in enumerate(table) if item.validation.value >= top.value - error)
    figures = ", ".join(f"{item.strategy} {item.validation.value:.4f}" for item in table)
    reason = (
        f"compared on {top.n} validation images: {figures}; {table[best].strategy} is the cheapest within one standard error "
        f"({100 * error:.1f} points) of the best"
    )
    better = [item for item in table if item.validation.value > table[best].validation.value]
    given_up = ", ".join(f"{item.strategy} {100 * (item.validation.value - table[best].validation.value):+.1f} points" for item in better)
    return best, f"{reason}; given up: {given_up}" if better else reason
