"""Service: the current worker pool, and its replacement at a reload."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgetl.core.manifest import MANIFEST_NAME
from edgetl.core.store import is_store
from edgetl.core.store.state import read_state
from edgetl.errors import BundleError, EdgetlError, StoreError
from edgetl.serve.background import spawn
from edgetl.serve.config import ServeConfig
from edgetl.serve.model_cards import cards
from edgetl.serve.protocol.models import Models
from edgetl.serve.workers.bundles import ServedBundle, end_starts, find_bundles
from edgetl.serve.workers.messages import WorkerConfig
from edgetl.serve.workers.pool import WorkerPool

logger = logging.getLogger("edgetl.serve")

WATCH_S = 1.0


class Service:
    """Current worker pool, with reload.

    Args:
        bundles: paths of the bundles.
        config: workers and limits.
        statistics: let the workers compute image statistics, for a monitor.

    Attributes:
        pool: worker pool for new requests.
        on_reload: callback after each reload, with ``done`` or ``refused``.
        on_replaced: callback after a worker crashed or hung.
    """

    def __init__(self, bundles: Sequence[Path], config: ServeConfig, *, statistics: bool = False) -> None:
        self._bundles, self._config, self._statistics = tuple(bundles), config, statistics
        self.pool: WorkerPool
        self.on_reload: Callable[[str], None] = lambda _result: None
        self.on_replaced: Callable[[], None] = lambda: None
        self._reloading = asyncio.Lock()
        self._requested = False
        self._fingerprints: list[object] = []
        self._served: list[ServedBundle] = []
        self._background: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Load the bundles.

        Raises:
            EdgetlError: a bundle cannot be served.
        """
        self._fingerprints = self._current_fingerprints()
        self.pool, self._served = await self._start_pool()
        self._spawn(self._observe(), "observe new releases", self.request_reload)

    async def _start_pool(self) -> tuple[WorkerPool, list[ServedBundle]]:
        """Run a trial of each bundle, then start workers for the current targets of the paths.

        If a release of a store fails and is rolled back, start workers for the earlier release.

        Raises:
            EdgetlError: a bundle cannot be served, or failed its trial.
        """
        while True:
            found = await asyncio.to_thread(find_bundles, self._bundles, self._config.variant)
            paths, variants = tuple(item.path for item in found), tuple(item.variant for item in found)
            config = self._config
            worker = WorkerConfig(paths, variants, config.worker_threads, config.batch, config.max_body_bytes, self._statistics)
            try:
                return await WorkerPool.start(worker, count=config.processes, hang_s=config.hang_s, events=self), found
            except EdgetlError as error:
                observed = [item.start for item in found if item.start is not None and item.start.observed]
                for start in observed:
                    start.failed(str(error))
                end_starts(found)
                if not observed:
                    raise

    def worker_replaced(self) -> None:
        """Call ``on_replaced``, and count the crash for new releases of stores."""
        for item in self._served:
            if item.start is not None:
                item.start.crashed("a worker process crashed or hung.")
                if item.start.rolled_back:
                    self.request_reload()
        self.on_replaced()

    async def _observe(self) -> None:
        """Confirm new releases of stores when they have been served for their healthy period."""
        while True:
            await asyncio.sleep(WATCH_S)
            for item in self._served:
                if item.start is not None:
                    item.start.succeeded(0)

    def bundles_changed(self) -> None:
        """Reload the changed bundles."""
        self.request_reload()

    def cards(self) -> list[dict[str, Any]]:
        """Return the model cards of the served bundles."""
        return cards(self.pool.models, self._served)

    @contextmanager
    def acquire(self) -> Iterator[WorkerPool]:
        """Return the current pool, and keep its workers running until the block ends, even after a reload."""
        pool = self.pool
        pool.active_requests += 1
        try:
            yield pool
        finally:
            pool.release()

    def request_reload(self) -> None:
        """Start a reload in the background, unless one is already waiting."""
        if not self._requested:
            self._requested = True
            self._spawn(self.reload(), "reload")

    async def reload(self) -> None:
        """Start a new pool for the current bundles, then replace the old pool. If a check fails, keep the old pool."""
        async with self._reloading:
            self._requested = False
            try:
                pool, served = await self._start_pool()
            except (EdgetlError, OSError, RuntimeError, ValueError) as error:
                logger.error("reload refused, the server keeps the current bundles: %s", error)
                self.on_reload("refused")
                return
            if downgrade := _find_downgrade(pool.models, self.pool.models, served):
                await pool.retire()
                end_starts(served)
                logger.error("reload refused, the server keeps the current bundles: %s", downgrade)
                self.on_reload("refused")
                return
            old, self.pool = self.pool, pool
            end_starts(self._served)
            self._served = served
            self._spawn(old.retire(), "retire the old workers")
            logger.info("reloaded: %s", ", ".join(f"{name} {' '.join(pool.models.versions(name))}" for name in pool.models.names))
            self.on_reload("done")

    def _spawn(self, work: Coroutine[object, object, None], name: str, on_failure: Callable[[], None] = lambda: None) -> None:
        task = spawn(work, name, on_failure)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def watch(self) -> None:
        """Watch the bundle paths, and reload when a manifest changes."""
        self._spawn(self._watch(), "watch", self.watch)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(WATCH_S)
            now = self._current_fingerprints()
            if now == self._fingerprints or None in now:
                # A missing manifest means that a bundle is being replaced.
                continue
            self._fingerprints = now
            await self.reload()

    def _current_fingerprints(self) -> list[object]:
        return [_active_id(path) if is_store(path) else _fingerprint(path / MANIFEST_NAME) for path in self._bundles]

    async def close(self) -> None:
        """Stop all workers and background tasks."""
        for task in list(self._background):
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        self.pool.active_requests = 0
        await self.pool.retire()
        end_starts(self._served)


def _active_id(store: Path) -> str | None:
    try:
        active = read_state(store).active
    except StoreError:
        return None
    return active.id if active else None


def _fingerprint(path: Path) -> tuple[int, ...] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size


def _find_downgrade(new: Models, old: Models, bundles: Sequence[ServedBundle]) -> BundleError | None:
    """Return an error if ``new`` lacks a served model or has an older release of it. A store may roll back its release."""
    may_roll_back = {bundle.name for bundle in bundles if bundle.start is not None}
    for name in old.names:
        if name not in new.names:
            return BundleError(f"model {name!r} is missing from the new bundles. To serve only {', '.join(new.names)}, restart the server.")
        was, now = old.find(name).version, new.find(name).version
        if int(now) < int(was) and name not in may_roll_back:
            return BundleError(
                f"model {name!r} would change from release {was} back to {now}. To serve the older release, restart the server."
            )
    return None
