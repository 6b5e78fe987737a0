"""Service: the current worker pool, and its replacement at a reload."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from edgetl.core.manifest import MANIFEST_NAME
from edgetl.core.store import is_store
from edgetl.core.store.releases import release_of
from edgetl.core.store.state import read_state
from edgetl.core.system.host import available_cores
from edgetl.errors import AccuracyGateError, BundleError, EdgetlError, EngineError, RequestError, StoreError
from edgetl.runtime.gallery.file import gallery_path
from edgetl.serve.background import spawn
from edgetl.serve.config import ServeConfig
from edgetl.serve.model_cards import cards
from edgetl.serve.protocol.models import Model, Models
from edgetl.serve.workers.bundles import ServedBundle, end_starts, find_bundles
from edgetl.serve.workers.messages import Result, WorkerConfig
from edgetl.serve.workers.pool import WorkerPool

logger = logging.getLogger("edgetl.serve")

WATCH_S = 1.0
# Time between two attempts to load a release of a store that is not ready, seconds. A changed store is loaded at once.
RETRY_S = 60.0


class Service:
    """Current worker pool, with reload.

    A store without a healthy release is served, too: the server is not ready until a release is installed.

    Args:
        bundles: paths of the bundles.
        config: workers and limits.
        statistics: let the workers compute image statistics, for a monitor.

    Attributes:
        pool: worker pool for new requests. It has no models if the server is not ready.
        problem: reason why no release of a store can be served; empty if the server is ready.
        on_reload: callback after each reload, with ``done`` or ``refused``.
        on_replaced: callback after a worker crashed or hung.
    """

    def __init__(self, bundles: Sequence[Path], config: ServeConfig, *, statistics: bool = False) -> None:
        self._bundles, self._config, self._statistics = tuple(bundles), config, statistics
        self.pool = WorkerPool.empty(self)
        self.problem = ""
        self.on_reload: Callable[[str], None] = lambda _result: None
        self.on_replaced: Callable[[], None] = lambda: None
        self._reloading = asyncio.Lock()
        self._requested = False
        self._fingerprints: list[object] = []
        self._served: list[ServedBundle] = []
        self._retiring: set[WorkerPool] = set()
        self._tried_at = time.monotonic()
        self._background: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Load the bundles, and watch their paths.

        Raises:
            EdgetlError: a bundle cannot be served. A store without a healthy release is no error.
        """
        self._fingerprints = self._current_fingerprints()
        try:
            self.pool, self._served = await self._start_pool()
        except StoreError as error:
            self._set_problem(error)
        self._spawn(self._observe(), "observe new releases", self.request_reload)
        self._spawn(self._watch(), "watch", self.request_reload)

    async def _start_pool(self) -> tuple[WorkerPool, list[ServedBundle]]:
        """Run a trial of each bundle, then start workers for the current targets of the paths.

        If the workers cannot load a release of a store, start workers for an earlier release.

        Raises:
            StoreError: a store has no release that can be served.
            EdgetlError: a bundle cannot be served, or failed its trial.
        """
        failed: set[str] = set()
        while True:
            found = await asyncio.to_thread(find_bundles, self._bundles, self._config.variant, skip=failed)
            try:
                return await WorkerPool.start(
                    self._worker_config(found), count=self._config.processes, hang_s=self._config.hang_s, events=self
                ), found
            except (AccuracyGateError, BundleError, EngineError) as error:
                starts = [item.start for item in found if item.start is not None]
                for start in starts:
                    start.failed(str(error))
                    failed.add(start.release.id)
                end_starts(found)
                if not starts:
                    raise

    def _worker_config(self, found: Sequence[ServedBundle]) -> WorkerConfig:
        """Return the configuration of a worker. Threads of all requests together do not exceed the cores."""
        config = self._config
        threads = config.worker_threads(max(item.choice.threads for item in found))
        limit = max(1, available_cores() // (config.processes * threads))
        choices = tuple(item.choice.model_copy(update={"threads": min(item.choice.threads, limit)}) for item in found)
        for item, choice in zip(found, choices, strict=True):
            if item.start is not None:
                logger.info("release %d of %s: %s", item.start.release.record.release, item.name, choice.describe())
        paths = tuple(item.path for item in found)
        galleries = tuple(item.gallery for item in found)
        return WorkerConfig(paths, choices, galleries, threads, config.batch, config.max_body_bytes, self._statistics)

    def _set_problem(self, error: StoreError) -> None:
        if str(error) != self.problem:
            logger.error("not ready: %s", error)
        self.problem = str(error)

    @property
    def models(self) -> Models:
        """Served models.

        Raises:
            RequestError: 503, the server is not ready.
        """
        if self.problem:
            raise RequestError(503, self.problem)
        return self.pool.models

    @property
    def max_requests(self) -> int:
        """Largest number of admitted requests: computed and waiting."""
        return self._config.max_requests(self.pool.threads)

    def record(self, pool: WorkerPool, model: Model, result: Result) -> None:
        """Report the result of a request to the probation of its release."""
        start = self._served[pool.models.index(model)].start if pool is self.pool else None
        if start is None or not start.observed:
            return
        if result.engine_failed:
            start.failed("the inference engine failed on a request.")
        elif result.logits is not None and not np.isfinite(result.logits).all():
            start.failed("it returned a score that is not a number.")
        elif result.logits is not None:
            start.succeeded(len(result.logits), len(result.logits) * result.image_s)
        if start.rolled_back:
            self.request_reload()

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
        """Return the model cards of the served bundles.

        Raises:
            RequestError: 503, the server is not ready.
        """
        return cards(self.models, self._served)

    @contextmanager
    def acquire(self) -> Iterator[WorkerPool]:
        """Return the current pool, and keep its workers running until the block ends, even after a reload.

        Raises:
            RequestError: 503, the server is not ready.
        """
        if self.problem:
            raise RequestError(503, self.problem)
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
        """Start a new pool for the current bundles, then replace the old pool. If a check fails, keep the old pool.

        If the served release was rolled back and the store has no other, the server becomes not ready.
        """
        async with self._reloading:
            self._requested, self._tried_at = False, time.monotonic()
            try:
                pool, served = await self._start_pool()
            except (EdgetlError, OSError, RuntimeError, ValueError) as error:
                if isinstance(error, StoreError) and (self.problem or self._is_rolled_back):
                    self._set_problem(error)
                    self._replace_pool(WorkerPool.empty(self), [])
                    return
                logger.error("reload refused, the server keeps the current bundles: %s", error)
                self.on_reload("refused")
                return
            if downgrade := _find_downgrade(pool.models, self.pool.models, served):
                await pool.retire()
                end_starts(served)
                logger.error("reload refused, the server keeps the current bundles: %s", downgrade)
                self.on_reload("refused")
                return
            self.problem = ""
            self._replace_pool(pool, served)
            logger.info("reloaded: %s", ", ".join(f"{name} {' '.join(pool.models.versions(name))}" for name in pool.models.names))
            self.on_reload("done")

    def _replace_pool(self, pool: WorkerPool, served: list[ServedBundle]) -> None:
        old, self.pool = self.pool, pool
        end_starts(self._served)
        self._served = served
        self._retiring.add(old)
        self._spawn(self._retire(old), "retire the old workers")

    async def _retire(self, pool: WorkerPool) -> None:
        await pool.retire()
        self._retiring.discard(pool)

    @property
    def _is_rolled_back(self) -> bool:
        return any(item.start is not None and item.start.rolled_back for item in self._served)

    def _spawn(self, work: Coroutine[object, object, None], name: str, on_failure: Callable[[], None] = lambda: None) -> None:
        task = spawn(work, name, on_failure)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _watch(self) -> None:
        """Reload when a manifest, a gallery, an active release or its tuning changes: with ``watch``, or while the server is not ready."""
        while True:
            await asyncio.sleep(WATCH_S)
            if not (self._config.watch or self.problem):
                continue
            now = self._current_fingerprints()
            # A missing manifest means that a bundle is being replaced.
            if now != self._fingerprints and None not in now:
                self._fingerprints = now
                await self.reload()
            elif self.problem and time.monotonic() - self._tried_at >= RETRY_S:
                await self.reload()

    def _current_fingerprints(self) -> list[object]:
        return [_active_identity(path) if is_store(path) else _bundle_identity(path) for path in self._bundles]

    async def close(self) -> None:
        """Stop all workers and background tasks."""
        for task in list(self._background):
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        for pool in (self.pool, *self._retiring):
            pool.active_requests = 0
            await pool.retire()
        end_starts(self._served)


def _active_identity(store: Path) -> tuple[object, ...] | None:
    try:
        active = read_state(store).active
    except StoreError:
        return None
    return release_of(store, active).identity if active else None


def _bundle_identity(path: Path) -> tuple[object, ...] | None:
    """Return the identity of the manifest of a bundle folder and of its gallery; None without a manifest."""
    manifest = _fingerprint(path / MANIFEST_NAME)
    return (manifest, _fingerprint(gallery_path(path))) if manifest else None


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
