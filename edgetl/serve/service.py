"""Service: the worker pool that serves now, and its replacement by another after a reload."""

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
    """Current worker pool.

    Attributes:
        pool: of new requests.
        on_reload: called after each reload with ``done`` or ``refused``.
        on_replaced: called when a worker died or hung.
    """

    def __init__(self, bundles: Sequence[Path], config: ServeConfig) -> None:
        self._bundles, self._config = tuple(bundles), config
        self.pool: WorkerPool
        self.on_reload: Callable[[str], None] = lambda _result: None
        self.on_replaced: Callable[[], None] = lambda: None
        self._reloading = asyncio.Lock()
        self._requested = False
        self._seen: list[tuple[int, ...] | None] = []
        self._background: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Load the bundles.

        Raises:
            EdgetlError: one cannot be served.
        """
        self._seen = self._marks()
        self.pool = await self._assemble()

    async def _assemble(self) -> WorkerPool:
        """Start workers for the bundles that the paths lead to now, after a trial of each within limits.

        Raises:
            EdgetlError: a bundle cannot be served, or failed its trial.
        """
        # Links are followed now: a worker that is replaced later must load what this pool serves, not what a link points to by then.
        try:
            bundles = tuple(path.resolve() for path in self._bundles)
        except (OSError, RuntimeError) as error:
            raise BundleError(f"a bundle's path leads nowhere: {error}.") from error
        await asyncio.to_thread(_try_all, bundles, self._config.variant)
        worker = WorkerConfig(bundles, self._config.variant, self._config.worker_threads, self._config.batch, self._config.max_body_bytes)
        return await WorkerPool.start(worker, count=self._config.processes, hang_s=self._config.hang_s, events=self)

    def replaced(self) -> None:
        """As ``Events`` says."""
        self.on_replaced()

    def changed(self) -> None:
        """As ``Events`` says."""
        self.request_reload()

    @contextmanager
    def acquire(self) -> Iterator[WorkerPool]:
        """The current pool, which is kept until the block ends, whatever is loaded meanwhile."""
        pool = self.pool
        pool.users += 1
        try:
            yield pool
        finally:
            pool.leave()

    def request_reload(self) -> None:
        """Reload, in the background; whoever asks while another waits for its turn gets what that one loads."""
        if not self._requested:
            self._requested = True
            self._spawn(self.reload(), "reload")

    async def reload(self) -> None:
        """Load what the paths lead to now, beside what is served; swap when it has proven itself, else leave everything as it is."""
        async with self._reloading:
            self._requested = False
            try:
                pool = await self._assemble()
            except (EdgetlError, OSError, RuntimeError, ValueError) as error:
                logger.error("not reloaded, the old one goes on: %s", error)
                self.on_reload("refused")
                return
            if older := _step_back(pool.models, self.pool.models):
                await pool.retire()
                logger.error("not reloaded, the old one goes on: %s", older)
                self.on_reload("refused")
                return
            old, self.pool = self.pool, pool
            self._spawn(old.retire(), "end of the old workers")
            logger.info("reloaded: %s", ", ".join(f"{name} {' '.join(pool.models.versions(name))}" for name in pool.models.names))
            self.on_reload("done")

    def _spawn(self, work: Coroutine[object, object, None], name: str, failed: Callable[[], None] = lambda: None) -> None:
        task = spawn(work, name, failed)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def watch(self) -> None:
        """From now on reload whenever a bundle's path leads to another manifest."""
        self._spawn(self._watch(), "watch", self.watch)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(WATCH_S)
            now = self._marks()
            if now == self._seen or None in now:
                # Also while a bundle is being swapped: there is none for a moment.
                continue
            self._seen = now
            await self.reload()

    def _marks(self) -> list[tuple[int, ...] | None]:
        return [_mark(path / MANIFEST_NAME) for path in self._bundles]

    async def close(self) -> None:
        """End every worker."""
        for task in list(self._background):
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        self.pool.users = 0
        await self.pool.retire()


def _try_all(bundles: Sequence[Path], variant: str | None) -> None:
    """Load each bundle's variant and run one image in a limited process, before a worker does."""
    for path in bundles:
        bundle = open_bundle(path)
        try_variant(bundle, choose_variant(bundle, variant))


def _mark(path: Path) -> tuple[int, ...] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


def _step_back(new: Models, old: Models) -> BundleError | None:
    """Why ``new`` is a step back: a model's newest release is older than the one that is served, or a model is gone."""
    for name in old.names:
        if name not in new.names:
            return BundleError(
                f"{name} would be gone, and its clients get 404. Restart the server to serve {', '.join(new.names)} on purpose."
            )
        was, now = old.find(name).version, new.find(name).version
        if int(now) < int(was):
            return BundleError(f"{name} would go from release {was} back to {now}. Restart the server to go back on purpose.")
    return None
