"""Strategy comparison (``--strategy compare``): train with each strategy, and keep the cheapest that is as accurate as the best."""

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

# In the order of cost: each strategy trains more of the network than the previous one.
COMPARED: tuple[Strategy, ...] = ("probe", "partial", "full")


def compared_strategies(splits: Splits, *, scratch: bool) -> tuple[Strategy, ...]:
    """Return the strategies to compare. With many images this includes ``scratch``, because pretrained weights may not help then.

    Pretrained weights often do not help for images unlike those of the pretraining, such as medical images (Raghu et al. 2019,
    arXiv:1902.07208).

    Args:
        splits: images of the training.
        scratch: False if a training from random weights is not comparable.
    """
    many = len({sample.content for sample in splits.train}) > FULL_UP_TO
    return (*COMPARED, "scratch") if many and splits.folder.task == "classification" and scratch else COMPARED


def compare(
    splits: Splits, config: TrainConfig, out: Path, *, overwrite: bool = False, resume: bool = False, progress: Progress = silent
) -> Run:
    """Train with several strategies, and keep the cheapest within one standard error of the best validation accuracy.

    The strategies are ``probe``, ``partial`` and ``full``, and ``scratch`` above 100,000 images. The selection is the one-standard-error
    rule (Breiman et al. 1984). Each training is a run in ``<out>.compare``. With ``resume``, finished runs there are not repeated. They
    are kept unless ``config.run.keep`` is ``best``. The arguments are those of ``fine_tune``.

    Returns:
        The selected run. Its ``seconds`` cover the whole call.

    Raises:
        ConfigError: ``out`` exists, or the runs of another or stopped comparison exist.
        EdgetlError: an error of ``fine_tune``.
    """
    if world_size() > 1:
        raise ConfigError("--strategy compare runs in one process. Remove --devices and torchrun, or give one strategy.")
    started, work = time.monotonic(), out.with_name(f"{out.name}{COMPARE_SUFFIX}")
    with new_folder(out, inputs=training_inputs(splits.folder.root, config), overwrite=overwrite) as folder:
        _check_work_folder(work, out, overwrite=overwrite, resume=resume)
        trained = partial(_train_one, overwrite=overwrite, resume=resume, progress=progress)
        strategies = compared_strategies(splits, scratch=_scratch_is_comparable(splits, config))
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


def _scratch_is_comparable(splits: Splits, config: TrainConfig) -> bool:
    """Return True if training from random weights uses the same images and options as the other strategies."""
    # Random weights have no previous task. An ancestor's images would be excluded from the other trainings only.
    if not config.backbone.pretrained or seen_by_ancestors(config.backbone, config.distillation.teacher, scratch=False).all:
        return False
    return not list(conflicts(config.with_options(strategy="scratch"), {}, splits.folder.task, "scratch"))


def _check_work_folder(work: Path, out: Path, *, overwrite: bool, resume: bool) -> None:
    """Remove the runs of an earlier comparison if ``overwrite`` is on, or refuse them if they could be resumed."""
    check_side_folder(work)
    if overwrite and not resume:
        remove_side_folder(work)
    elif not resume and holds_own(work):
        raise ConfigError(
            f"{work} contains the runs of a stopped comparison for {out}. Continue with {resume_command(out)}, or start again with "
            f"--overwrite."
        )


def _train_one(splits: Splits, config: TrainConfig, out: Path, *, overwrite: bool, resume: bool, progress: Progress) -> Run:
    """Train with one strategy, or return its finished run."""
    _log.info("comparing: strategy %s", config.optim.strategy)
    if not is_run(out):
        return fine_tune(splits, config, out, overwrite=overwrite, resume=resume, progress=progress)
    run = open_run(out)
    now = splits.folder.fingerprint()
    jobs = [
        Job(data="", options=item.given(), resolved={"images": images[:12]})
        for item, images in ((run.record.config, run.record.data_fingerprint), (config, now))
    ]
    if changed := differences(*jobs):
        raise ConfigError(
            f"{out.parent} contains a comparison with other options or images: {'; '.join(changed)}. Continue it with its saved options: "
            f"{resume_command(out)}. Or start again with --overwrite."
        )
    return run


def _compared(run: Run) -> Compared:
    record = run.record
    return Compared(strategy=record.plan.strategy, steps=record.plan.steps, validation=record.validation.accuracy, seconds=record.seconds)


def choose(table: tuple[Compared, ...]) -> tuple[int, str]:
    """Select a strategy by the one-standard-error rule.

    Args:
        table: results from the cheapest to the most expensive strategy.

    Returns:
        Index of the selected strategy, and the reason as a sentence.
    """
    top = max(table, key=lambda item: item.validation.value).validation
    error = math.sqrt(top.value * (1 - top.value) / max(1, top.n))
    best = next(index for index, item in enumerate(table) if item.validation.value >= top.value - error)
    figures = ", ".join(f"{item.strategy} {item.validation.value:.4f}" for item in table)
    reason = (
        f"compared on {top.n} validation images: {figures}; {table[best].strategy} is the cheapest within one standard error "
        f"({100 * error:.1f} points) of the best"
    )
    better = [item for item in table if item.validation.value > table[best].validation.value]
    gains = ", ".join(f"{item.strategy} {100 * (item.validation.value - table[best].validation.value):+.1f} points" for item in better)
    return best, f"{reason}; not selected: {gains}" if better else reason
