"""Strategy comparison (``--strategy compare``): train with each strategy, and keep the cheapest that is as accurate as the best."""

from __future__ import annotations

import logging
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NoReturn

from edgetl.core.bundle import is_run
from edgetl.core.output.folders import check_side_folder, new_folder, remove_side_folder
from edgetl.core.output.ownership import COMPARE_SUFFIX, holds_own
from edgetl.core.progress import Progress, silent
from edgetl.data.split import Splits
from edgetl.errors import ConfigError, EngineError
from edgetl.executors.tasks import Tasks
from edgetl.train.artifacts.loading.lineage import seen_by_ancestors
from edgetl.train.artifacts.record import Compared
from edgetl.train.artifacts.run import Run, open_run
from edgetl.train.artifacts.writer import write_record
from edgetl.train.config.options import Strategy, TrainConfig
from edgetl.train.config.paths import training_inputs
from edgetl.train.config.plan import FULL_UP_TO
from edgetl.train.config.resolve import conflicts
from edgetl.train.config.tasks import scan_splits
from edgetl.train.loop.processes import use_threads, world_size
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

    def train_all(folders: dict[Strategy, Path]) -> list[Run]:
        trained = partial(_train_one, overwrite=overwrite, resume=resume, progress=progress)
        return [trained(splits, config.with_options(strategy=strategy), folder) for strategy, folder in folders.items()]

    return _compare(splits, config, out, train_all, overwrite=overwrite, resume=resume)


@dataclass(frozen=True)
class StrategyTask:
    """Task that trains with one strategy of a comparison.

    Attributes:
        config: options of the comparison.
        strategy: strategy of the task.
        data: folder of the images, which the task scans again.
        out: run folder to write.
        threads: threads of the training.
        overwrite: replace ``out``.
    """

    config: TrainConfig
    strategy: Strategy
    data: Path
    out: Path
    threads: int
    overwrite: bool


def train_strategy(task: StrategyTask) -> None:
    """Train with one strategy in a process of its own. A repeated task continues from the saved state of the first one."""
    use_threads(task.threads)
    splits = scan_splits(task.data, task.config)
    # The comparison has checked the folder: the saved states in it are those of this task.
    _train_one(splits, task.config.with_options(strategy=task.strategy), task.out, overwrite=task.overwrite, resume=True, progress=silent)


def compare_in_tasks(splits: Splits, config: TrainConfig, out: Path, tasks: Tasks, *, overwrite: bool = False, resume: bool = False) -> Run:
    """Compare strategies as ``compare`` does, with one task for each strategy. With the same number of threads, the result is the same.

    Raises:
        EngineError: the process of a task ended in all attempts. The finished runs are kept for ``resume``.
        EdgetlError: as for ``compare``.
    """

    def train_all(folders: dict[Strategy, Path]) -> list[Run]:
        items = [
            StrategyTask(config, strategy, splits.folder.root, folder.absolute(), tasks.threads, overwrite)
            for strategy, folder in folders.items()
        ]
        tasks.run("comparing strategies", train_strategy, items, failed=_name_strategy)
        return [open_shared_run(item.out, f"the strategy {item.strategy}") for item in items]

    return _compare(splits, config, out, train_all, overwrite=overwrite, resume=resume)


def open_shared_run(run: Path, name: str) -> Run:
    """Open a run that a task has written.

    Args:
        run: run folder.
        name: description of the task, for the message.

    Raises:
        ConfigError: the task wrote the run into a folder of another host.
    """
    if not is_run(run):
        raise ConfigError(
            f"{run}: the run of {name} was written on another host, and is not here. The hosts of the cluster need a common file system "
            f"for --out."
        )
    return open_run(run)


def _name_strategy(task: StrategyTask, error: EngineError) -> NoReturn:
    raise EngineError(f"strategy {task.strategy}: {error}") from error


def _compare(
    splits: Splits, config: TrainConfig, out: Path, train_all: Callable[[dict[Strategy, Path]], list[Run]], *, overwrite: bool, resume: bool
) -> Run:
    """Compare strategies. ``train_all`` trains each strategy into its folder, and returns the runs in the same order."""
    if world_size() > 1:
        raise ConfigError("--strategy compare runs in one process. Remove --devices and torchrun, or give one strategy.")
    started, work = time.monotonic(), out.with_name(f"{out.name}{COMPARE_SUFFIX}")
    with new_folder(out, inputs=training_inputs(splits.folder.root, config), overwrite=overwrite) as folder:
        _check_work_folder(work, out, overwrite=overwrite, resume=resume)
        strategies = compared_strategies(splits, scratch=_scratch_is_comparable(splits, config))
        runs = train_all({strategy: work / strategy for strategy in strategies})
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
