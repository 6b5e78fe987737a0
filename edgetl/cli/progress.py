"""Progress of long operations on the error stream: a bar with rate and time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from edgetl.core import progress as core

PLAIN_INTERVAL_S = 10.0


@contextmanager
def shown_progress(console: Console, *, quiet: bool) -> Iterator[core.Progress]:
    """Yield a ``Progress`` that prints on ``console``, or one that prints nothing if ``quiet``."""
    if quiet:
        yield core.silent
    elif console.is_terminal:
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _RateColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console, transient=True) as bars:
            yield _Bars(bars)
    else:
        yield _Lines(console)


class _Bars:
    """Progress bar of the current stage."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._stage: str | None = None
        self._task = bars.add_task("starting", total=None)

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage != self._stage:
            self._stage = stage
            self._bars.remove_task(self._task)
            self._task = self._bars.add_task(stage, total=total or None)
        self._bars.update(self._task, completed=done, total=total or None)


class _Lines:
    """Plain lines: one at the start of a stage, then one every ten seconds with the rate and the time left."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._stage: str | None = None
        self._started = self._last = 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if stage != self._stage:
            self._stage, self._started, self._last = stage, now, now
            self._console.print(stage, highlight=False)
        elif now - self._last >= PLAIN_INTERVAL_S and 0 < done < total:
            self._last = now
            left = (now - self._started) * (total - done) / done
            rate = _rate(done / (now - self._started))
            self._console.print(f"{stage}: {done} of {total}, {rate}, about {left:.0f} s left", highlight=False)


class _RateColumn(ProgressColumn):
    """Column with the steps per second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(_rate(speed) if speed else "")


def _rate(steps_per_s: float) -> str:
    return f"{steps_per_s:,.0f}/s" if steps_per_s >= 10 else f"{steps_per_s:.2g}/s"
