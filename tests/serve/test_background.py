"""Background tasks of the server: none ends unnoticed, and a worker's place is never given up."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import signal
from pathlib import Path

import httpx
import pytest

from edgetl.core.bundle import Bundle
from edgetl.serve.background import spawn
from tests.serve.serving import released, serving, until


def test_a_task_that_fails_is_logged_and_reported(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[str] = []

    async def broken() -> None:
        raise KeyError("models")

    async def main() -> None:
        task = spawn(broken(), "watch", lambda: seen.append("failed"))
        await asyncio.wait([task])
        await asyncio.sleep(0)

    with caplog.at_level(logging.ERROR, "edgetl.serve"):
        asyncio.run(main())
    assert seen == ["failed"] and "the background task 'watch' failed" in caplog.text and "KeyError" in caplog.text


def test_a_task_that_is_cancelled_is_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[str] = []

    async def main() -> None:
        task = spawn(asyncio.sleep(60), "watch", lambda: seen.append("failed"))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        await asyncio.sleep(0)

    asyncio.run(main())
    assert not seen and not caplog.records


def test_bundles_that_become_invalid_together_do_not_end_the_supervision(bundle: Bundle, photo: bytes, tmp_path: Path) -> None:
    """A manifest is overwritten, so that two bundles have one name and release; then the worker dies."""
    first, second = tmp_path / "first", released(bundle, tmp_path / "second", 2)
    shutil.copytree(bundle.path, first)
    manifest = second / "manifest.json"
    with serving(first, second) as served:
        good = manifest.read_bytes()
        manifest.write_text(json.dumps({**json.loads(good), "release": 1}) + "\n")
        for worker in served.workers():
            os.kill(worker, signal.SIGKILL)
        until(lambda: "a served bundle was changed on disk" in served.said())
        manifest.write_bytes(good)
        until(served.ready, seconds=20)
        assert httpx.post(f"{served.url}/predict", content=photo).status_code == 200
        assert "Traceback" not in served.said()
