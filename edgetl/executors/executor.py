"""Interface of the executors, and the outcome of a task in another process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from edgetl.errors import EngineError

Item = TypeVar("Item")
Result = TypeVar("Result")

# Attempts after the first one, for a task whose process ends without a result.
RETRIES = 2


@dataclass(frozen=True)
class Failure:
    """Error of a task. ``kind`` is the class of an ``EdgetlError``; empty for another exception, whose traceback is the message."""

    kind: str
    message: str


class Executor(Protocol):
    """Executor of independent tasks. A failed task is tried again. An ``EdgetlError``, such as a wrong option, is final."""

    def map(
        self, function: Callable[[Item], Result], items: Sequence[Item], /, *, failed: Callable[[Item, EngineError], Result] | None = None
    ) -> Iterator[Result]:
        """Call ``function`` on each item in another process, and yield the results in the order of the items.

        Args:
            function: function at the top level of a module. The module, the items and the results can be pickled.
            items: arguments, one for each task.
            failed: called for a task whose process ends without a result in all attempts. Returns the result of this task, and the other
                tasks continue. None: the error ends all tasks.

        Raises:
            EdgetlError: a task raised this error. The other tasks are stopped.
            EngineError: a process ended without a result in all attempts, and ``failed`` is None.
        """
