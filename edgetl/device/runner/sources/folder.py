"""Folder source: the images of a folder once, in a loop, or as they arrive."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from edgetl.core.files.names import printable
from edgetl.core.images.decode import EXTENSIONS
from edgetl.device.runner.sources.frame import Frame, Frames
from edgetl.device.runner.waiting import POLL_S, Backoff, Stop
from edgetl.errors import ConfigError, DataError

logger = logging.getLogger("edgetl.run")

# Number of claimed files that are remembered after they left the folder: a drive that returns is not predicted again.
_KEPT_CLAIMS = 10_000

Mode = Literal["once", "loop", "follow"]


class _State(NamedTuple):
    """State of a file. A writer that is not finished changes it."""

    inode: int
    size: int
    modified_ns: int


class FolderSource:
    """Images of a folder and its subfolders, sorted by path.

    Hidden files and files with another suffix than that of an image are ignored. A *followed* folder is listed again and again. A new file
    is claimed when its size and modification time have not changed for ``settle_s`` seconds. A file that changes later is claimed again.
    A folder that disappears is listed again with back-off.

    Args:
        folder: folder of the images.
        mode: ``once``, ``loop`` (all images again and again) or ``follow`` (wait for new files).
        settle_s: time without a change after which a file of a followed folder is complete, seconds.
        processed: ``keep``, ``delete``, or the path of a folder to which processed files are moved.
        stop: stop request.

    Raises:
        ConfigError: the folder of ``processed`` does not exist or is on another file system.
    """

    def __init__(self, folder: Path, *, mode: Mode, settle_s: float, processed: str, stop: Stop) -> None:
        self.name = str(folder)
        self.dropped = self.missing = 0
        self.problem = ""
        self._folder, self._mode, self._settle, self._stop = folder, mode, settle_s, stop
        self._delete = processed == "delete"
        self._target = None if processed in ("keep", "delete") else _target(Path(processed), folder)
        self._claimed: dict[Path, _State] = {}
        self._changing: dict[Path, tuple[_State, float]] = {}
        self._reported: set[str] = set()

    def frames(self) -> Frames:
        """Yield the images as paths, and none while the source waits."""
        backoff = Backoff()
        while not self._stop.requested:
            try:
                listed = self._list()
            except OSError as error:
                self.problem = f"{printable(self._folder)} cannot be listed: {error.strerror}"
                if self._mode == "once":
                    raise DataError(f"{self.problem}. Check the folder, or wait for it with --follow.") from error
                pause = backoff.next()
                logger.warning("%s. Next attempt in %.0f s.", self.problem, pause)
                yield from self._idle(pause)
                continue
            self.problem = ""
            backoff.reset()
            if not listed and self._mode == "once":
                raise DataError(f"{printable(self._folder)} contains no image. Check the folder, or wait for images with --follow.")
            for path in self._complete(listed) if self._mode == "follow" else listed:
                if os.path.exists(path):
                    yield Frame(printable(path), path, path if self._delete or self._target else None)
                else:
                    self.missing += 1
            if self._mode == "once":
                return
            if self._mode == "follow" or not listed:
                yield from self._idle(POLL_S)

    def finish(self, frame: Frame) -> None:
        """Delete or move the file, or keep it."""
        if frame.path is None:
            return
        try:
            if self._target is None:
                frame.path.unlink(missing_ok=True)
            else:
                frame.path.rename(_free_name(self._target, frame.path.name))
            self._claimed.pop(frame.path, None)
        except OSError as error:
            # The file stays claimed: it is not predicted again.
            self._report(
                str(frame.path), f"{printable(frame.path)} stays in the folder: {error.strerror}. Check the permissions of both folders."
            )

    def _list(self) -> dict[Path, _State]:
        """List the image files, sorted by path.

        Raises:
            OSError: the folder cannot be listed.
        """
        found, ignored = {}, 0
        for folder, subfolders, files in os.walk(self._folder, onerror=self._refuse):
            subfolders[:] = sorted(name for name in subfolders if not name.startswith(".") and Path(folder, name) != self._target)
            for name in sorted(files):
                path = Path(folder, name)
                if name.startswith(".") or path.suffix.lower() not in EXTENSIONS:
                    ignored += 1
                    continue
                try:
                    status = path.stat()
                except OSError:
                    continue  # removed since the listing
                found[path] = _State(status.st_ino, status.st_size, status.st_mtime_ns)
        if ignored:
            self._report(
                "", f"{printable(self._folder)}: hidden files and files without the suffix of an image are ignored ({ignored} at present)."
            )
        return found

    def _refuse(self, error: OSError) -> None:
        if Path(error.filename) == self._folder:
            raise error
        self._report(error.filename, f"{printable(error.filename)} is left out: {error.strerror}.")

    def _complete(self, listed: dict[Path, _State]) -> Iterator[Path]:
        """Claim the files that are complete, and yield them."""
        if len(self._claimed) > len(listed) + _KEPT_CLAIMS:
            self._claimed = {path: state for path, state in self._claimed.items() if path in listed}
        now = time.monotonic()
        before, self._changing = self._changing, {}
        for path, state in listed.items():
            if self._claimed.get(path) == state:
                continue
            seen, since = before.get(path, (None, now))
            since = since if seen == state else now
            if now - since >= self._settle and seen == state:
                self._claimed[path] = state
                yield path
            else:
                self._changing[path] = (state, since)

    def _idle(self, seconds: float) -> Iterator[None]:
        end = time.monotonic() + seconds
        while not self._stop.requested and (left := end - time.monotonic()) > 0:
            self._stop.wait(min(left, POLL_S))
            yield None

    def _report(self, key: str, message: str) -> None:
        """Log a message once for each ``key``."""
        if key not in self._reported and len(self._reported) < _KEPT_CLAIMS:
            self._reported.add(key)
            logger.warning("%s", message)


def _target(target: Path, source: Path) -> Path:
    try:
        other = target.stat().st_dev != source.stat().st_dev if source.exists() else False
    except OSError as error:
        raise ConfigError(f"--processed {printable(target)}: {error.strerror}. Create the folder, or set keep or delete.") from error
    if not target.is_dir():
        raise ConfigError(f"--processed {printable(target)} is not a folder. Set keep, delete or an existing folder.")
    if other:
        raise ConfigError(f"--processed {printable(target)} is on another file system than the images. Choose a folder beside them.")
    return target


def _free_name(folder: Path, name: str) -> Path:
    """Return a path in ``folder`` that does not exist: ``a.jpg``, ``a-1.jpg``, …"""
    path, number = folder / name, 0
    while path.exists():
        number += 1
        path = folder / f"{Path(name).stem}-{number}{Path(name).suffix}"
    return path
