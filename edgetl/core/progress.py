"""Progress callback of long operations. The command line shows it as a progress bar."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Progress callback. Long operations call it often, from the working thread."""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Report that ``done`` of ``total`` steps of ``stage`` are finished. ``total`` is 0 if the number of steps is unknown."""


def silent(stage: str, done: int, total: int) -> None:
    """Ignore the progress."""
