"""Service: the current worker pool, and its replacement at a reload."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from edgetl.core.bundle import open_bundle
from edgetl.core.manifest import MANIFEST_NAME
from edgetl.errors import BundleError, EdgetlError
from edgetl.runtime.engine import choose_variant
from edgetl.runtime.trial import try_variant
from edgetl.serve.background import spawn
from edgetl.serve.config import ServeConfig
from edgetl.serve.protocol.models import Models
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
        self._fingerprints: list[tuple[int, ...] | None] = []
        self._background: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Load the bundles.

        Raises:
            EdgetlError: a bundle cannot be served.
        """
        self._fingerprints = self._current_fingerprints()
        self.pool = await self._start_pool()

    async def _start_pool(self) -> WorkerPool:
        """Run a trial of each bundle, then start workers for the current targets of the paths.

        Raises:
            EdgetlError: a bundle cannot be served, or failed its trial.
        """
        # Resolve links once. A replacement worker must load the same bundles, even if a link has changed since.
        try:
            bundles = tuple(path.resolve() for path in self._bundles)
        except (OSError, RuntimeError) as error:
            raise BundleError(f"a bundle path cannot be resolved: {error}.") from error
        await asyncio.to_thread(_run_trials, bundles, self._config.variant)
        config = self._config
        worker = WorkerConfig(bundles, config.variant, config.worker_threads, config.batch, config.max_body_bytes, self._statistics)
        return await WorkerPool.start(worker, count=self._config.processes, hang_s=self._config.hang_s, events=self)

    def worker_replaced(self) -> None:
        """Call ``on_replaced``."""
        self.on_replaced()

    def bundles_changed(self) -> None:
        """Reload the changed bundles."""
        self.request_reload()

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
                pool = await self._start_pool()
            except (EdgetlError, OSError, RuntimeError, ValueError) as error:
                logger.error("reload refused, the server keeps the current bundles: %s", error)
                self.on_reload("refused")
                return
            if downgrade := _find_downgrade(pool.models, self.pool.models):
                await pool.retire()
                logger.error("reload refused, the server keeps the current bundles: %s", downgrade)
                self.on_reload("refused")
                return
            old, self.pool = self.pool, pool
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

    def _current_fingerprints(self) -> list[tuple[int, ...] | None]:
        return [_fingerprint(path / MANIFEST_NAME) for path in self._bundles]

    async def close(self) -> None:
        """Stop all workers and background tasks."""
        for task in list(self._background):
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        self.pool.active_requests = 0
        await self.pool.retire()


def _run_trials(bundles: Sequence[Path], variant: str | None) -> None:
    """Load the variant of each bundle and run one image, in a separate process with limits."""
    for path in bundles:
        bundle = open_bundle(path)
        try_variant(bundle, choose_variant(bundle, variant))


def _fingerprint(path: Path) -> tuple[int, ...] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size


def _find_downgrade(new: Models, old: Models) -> BundleError | None:
    """Return an error if ``new`` lacks a served model or has an older release of it."""
    for name in old.names:
        if name not in new.names:
            return BundleError(f"model {name!r} is missing from the new bundles. To serve only {', '.join(new.names)}, restart the server.")
        was, now = old.find(name).version, new.find(name).version
        if int(now) < int(was):
            return BundleError(
                f"model {name!r} would change from release {was} back to {now}. To serve the older release, restart the server."
            )
    return None
