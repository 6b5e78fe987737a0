"""Tasks of candidates: the options ``--on``, ``--processes`` and ``--cpus-per-task``, and tasks with progress."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edgetl.core.config import StrictModel
from edgetl.core.options import option_field
from edgetl.core.progress import Progress, silent
from edgetl.core.system.host import available_cores
from edgetl.errors import ConfigError, EngineError
from edgetl.executors.choice import LOCAL, executor_on
from edgetl.executors.executor import Executor, Item, Result

_PANEL = "Several processes and hosts"


class TaskConfig(StrictModel):
    """Options of a command whose candidates can be tasks."""

    on: str = option_field(
        LOCAL,
        "Executor of the candidates, one task each. ray: on this host. ray:HOST:PORT: on a Ray cluster whose hosts have the same file "
        "system; needs the extra `ray`. local: in this process, or with --processes.",
        panel=_PANEL,
        metavar="local|ray[:ADDRESS]",
    )
    processes: int | None = option_field(
        None,
        "Candidates at the same time on this host, each in its own process, at most one for each core. Default: all in this process.",
        panel=_PANEL,
        ge=1,
    )
    cpus_per_task: int | None = option_field(
        None,
        "CPUs and threads of each candidate, at most the cores of a host. Default: 1 on a Ray cluster; with --processes, an equal part of "
        "the cores.",
        panel=_PANEL,
        ge=1,
    )


@dataclass(frozen=True)
class Tasks:
    """Execution of the candidates of a comparison as tasks.

    Attributes:
        executor: executor of the tasks.
        threads: threads of each task. The tasks set this number.
        progress: called with the number of finished tasks.
    """

    executor: Executor
    threads: int = 1
    progress: Progress = silent

    def run(
        self,
        stage: str,
        function: Callable[[Item], Result],
        items: Sequence[Item],
        *,
        failed: Callable[[Item, EngineError], Result] | None = None,
    ) -> list[Result]:
        """Run a task for each item, and return the results in the order of the items. Arguments and errors as in ``Executor.map``."""
        results: list[Result] = []
        self.progress(stage, 0, len(items))
        for result in self.executor.map(function, items, failed=failed):
            results.append(result)
            self.progress(stage, len(results), len(items))
        return results


def tasks_of(config: TaskConfig, progress: Progress = silent) -> Tasks | None:
    """Return the execution of the candidates; none if they run in this process.

    Raises:
        ConfigError: the options contradict each other, or ``--on`` is unknown.
        MissingExtraError: ray is not installed.
    """
    if config.on == LOCAL and config.processes is None:
        if config.cpus_per_task is not None:
            raise ConfigError("--cpus-per-task needs --processes N or --on ray. Add one of them.")
        return None
    cpus = config.cpus_per_task or (max(1, available_cores() // config.processes) if config.processes else 1)
    return Tasks(executor_on(config.on, config.processes, cpus=cpus), cpus, progress)
