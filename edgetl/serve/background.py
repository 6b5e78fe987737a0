"""Background tasks that log their exceptions."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine

logger = logging.getLogger("edgetl.serve")


def spawn(work: Coroutine[object, object, None], name: str, on_failure: Callable[[], None] = lambda: None) -> asyncio.Task[None]:
    """Run ``work`` as an asyncio task. If it raises, log the exception with the task's name and call ``on_failure``."""
    task = asyncio.create_task(work, name=name)

    def log_failure(done: asyncio.Task[None]) -> None:
        if not done.cancelled() and (error := done.exception()) is not None:
            logger.error("the background task '%s' failed", name, exc_info=error)
            on_failure()

    task.add_done_callback(log_failure)
    return task
