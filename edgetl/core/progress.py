"""Progress of long work: the library calls a ``Progress``, and the command line draws it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called often by long work, from the thread that does the work."""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """``done`` of ``total`` steps of ``stage`` are finished; ``total`` 0 means that the length is not known."""


def silent(stage: str, done: int, total: int) -> None:
    """A ``Progress`` without output."""
