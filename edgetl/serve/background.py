"""Background tasks: no task ends unnoticed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine

logger = logging.getLogger("edgetl.serve")


def spawn(work: Coroutine[object, object, None], name: str, failed: Callable[[], None] = lambda: None) -> asyncio.Task[None]:
    """Run ``work`` as a task; an exception is logged with the task's name, and ``failed`` is called."""
    task = asyncio.create_task(work, name=name)

    def ended(done: asyncio.Task[None]) -> None:
        if not done.cancelled() and (error := done.exception()) is not None:
            logger.error("the background task '%s' failed", name, exc_info=error)
            failed()

    task.add_done_callback(ended)
    return task
