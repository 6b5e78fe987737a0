"""All of ``edgetl train`` in one call: scan, split, and one strategy, or several compared."""

from __future__ import annotations

import logging
import math
import shutil
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from edgetl.core.bundle import RUN_RECORD_NAME, is_run
from edgetl.core.files.atomic import write_text
from edgetl.core.options import flat
from edgetl.core.output.folders import check_side_folder, new_folder, remove_side_folder, reserved
from edgetl.core.output.recognition import COMPARE_SUFFIX, PILOT_SUFFIX, holds_own
from edgetl.core.progress import Progress, silent
from edgetl.data.split import Splits, split
from edgetl.errors import ConfigError
from edgetl.train.artifacts.run import Compared, Run, open_run
from edgetl.train.config.options import Strategy, TrainConfig
from edgetl.train.config.paths import check_training_paths, training_inputs
from edgetl.train.config.tasks import scan_images
from edgetl.train.loop.ranks import rank, world
from edgetl.train.loop.resume import Job, differences, resume_command
from edgetl.train.workflows.finetune import fine_tune
from edgetl.train.workflows.pilot import LEAST_GAIN, gain_of_pretraining, run_pilot, wants_pilot

_log = logging.getLogger(__name__)

# The cheapest first: each trains more of the network than the one before.
COMPARED = ("probe", "partial", "full")


def train(data: Path, config: TrainConfig, out: Path, *, overwrite: bool = False, resume: bool = False, progress: Progress = silent) -> Run:
    """Scan and split ``data``, then ``fine_tune``, or ``compare`` by ``config.strategy``; their docstrings list the errors.

    ``out`` is checked and locked before the first image is read.
    """
    check_training_paths(data, config)
    with reserved(out, inputs=training_inputs(data, config), overwrite=overwrite) if rank() == 0 else nullcontext():
        folder = scan_images(data, config, progress=progress)
        splits = split(folder, seed=config.run.seed, val=config.data.val, test=config.data.test)
        teach = compare if config.optim.strategy == "compare" else fine_tune
        if wants_pilot(splits, config) and world() == 1:
            teach = piloted
        return teach(splits, config, out, overwrite=overwrite, resume=resume, progress=progress)


def piloted(
    splits: Splits, config: TrainConfig, out: Path, *, overwrite: bool = False, resume: bool = False, progress: Progress = silent
) -> Run:
    """``fine_tune`` on very many images: with ``full``, or with ``scratch`` where the pictures are far from those of the pretraining and
    a pilot is at least as good from random weights. The pilot's runs stay in ``<out>.pilot`` until all is done.

    Raises:
        ConfigError: a pilot that was stopped is in the way.
        EdgetlError: what ``fine_tune`` raises.
    """
    work = out.with_name(f"{out.name}{PILOT_SUFFIX}")
    _clear(work, out, overwrite=overwrite, resume=resume)
    gain = gain_of_pretraining(splits, config, progress=progress)
    told = f"pretrained features are {100 * gain:+.0f} points better than random ones"
    table: tuple[Compared, ...] = ()
    strategy: Strategy = "full"
    if gain < LEAST_GAIN:
        trained = partial(_trained, overwrite=overwrite, resume=resume, progress=progress)
        table, figures = run_pilot(splits, config, work, trained, _compared)
        told = f"{told}; {figures}"
        strategy = "scratch" if table[1].validation.value >= table[0].validation.value else "full"
    _log.info("%s: %s", strategy, told)
    chosen = config.with_options(strategy=strategy)
    run = fine_tune(splits, chosen, out, overwrite=overwrite, resume=resume, progress=progress)
    plan = run.record.plan.model_copy(update={"reason": told})
    write_text(out / RUN_RECORD_NAME, run.record.model_copy(update={"plan": plan, "compared": table}).model_dump_json(indent=1))
    remove_side_folder(work)
    return open_run(out)


def compare(
    splits: Splits, config: TrainConfig, out: Path, *, overwrite: bool = False, resume: bool = False, progress: Progress = silent
) -> Run:
    """Train ``probe``, ``partial`` and ``full`` for the same number of steps and keep, by validation accuracy, the cheapest that lies
    within one standard error of the best (Breiman et al. 1984, the rule of one standard error).

    Each is a run in ``<out>.compare``, so that ``resume`` does not repeat finished ones. They stay there unless ``config.keep`` is
    ``best``. ``seconds`` of the result are those of the whole call.

    Raises:
        ConfigError: ``out`` exists, or a comparison that was stopped is in the way.
        EdgetlError: what ``fine_tune`` raises.
    """
    if world() > 1:
        raise ConfigError("--strategy compare runs in one process; leave --devices and torchrun out, or name one strategy.")
    started, work = time.monotonic(), out.with_name(f"{out.name}{COMPARE_SUFFIX}")
    with new_folder(out, inputs=training_inputs(splits.folder.root, config), overwrite=overwrite) as folder:
        _clear(work, out, overwrite=overwrite, resume=resume)
        trained = partial(_trained, overwrite=overwrite, resume=resume, progress=progress)
        runs = [trained(splits, config.with_options(strategy=strategy), work / strategy) for strategy in COMPARED]
        table = tuple(_compared(run) for run in runs)
        best, reason = choose(table)
        _log.info("%s", reason)
        shutil.copytree(runs[best].path, folder, dirs_exist_ok=True)
        plan = runs[best].record.plan.model_copy(update={"reason": reason})
        changes = {
            "name": out.name,
            "config": config,
            "given": tuple(config.given()),
            "plan": plan,
            "compared": table,
            "seconds": round(time.monotonic() - started, 1),
        }
        record = runs[best].record.model_copy(update=changes)
        (folder / RUN_RECORD_NAME).write_text(record.model_dump_json(indent=1), "utf-8", newline="\n")
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
        Job(data="", options=flat(item), resolved={"images": images[:12]})
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
