"""Background tasks of the server: logging and failure callbacks."""

from __future__ import annotations

import asyncio
import logging

import pytest

from edgetl.serve.background import spawn


def test_failed_task_is_logged_and_reported(caplog: pytest.LogCaptureFixture) -> None:
    calls: list[str] = []

    async def broken() -> None:
        raise KeyError("models")

    async def main() -> None:
        task = spawn(broken(), "watch", lambda: calls.append("failed"))
        await asyncio.wait([task])
        await asyncio.sleep(0)

    with caplog.at_level(logging.ERROR, "edgetl.serve"):
        asyncio.run(main())
    assert calls == ["failed"] and "the background task 'watch' failed" in caplog.text and "KeyError" in caplog.text


def test_cancelled_task_is_not_a_failure(caplog: pytest.LogCaptureFixture) -> None:
    calls: list[str] = []

    async def main() -> None:
        task = spawn(asyncio.sleep(60), "watch", lambda: calls.append("failed"))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        await asyncio.sleep(0)

    asyncio.run(main())
    assert not calls and not caplog.records
