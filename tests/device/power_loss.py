"""Power loss: stop a process at its n-th change of the file system, and reconstruct what a disk keeps.

``Recorder`` replaces the functions of ``os`` and ``open`` that change files below a folder. Calls that only read are not counted: a stop at
one of them leaves the same files as a stop at the next change.

After a power failure, a disk may lack everything that was not flushed. ``durable`` reconstructs two such disks from the recorded changes:

- ``zeros``: names are as they were, and data that was not flushed is zeros. ext4 without delayed allocation, XFS and FAT do this.
- ``names``: in addition, changes of a folder are lost unless the folder was flushed afterwards.
"""

from __future__ import annotations

import builtins
import io
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn
from unittest.mock import patch

from edgetl.core.output import locks
from edgetl.core.store import probation

Kind = Literal["mkdir", "create", "write", "flush", "rename", "remove"]
_FOLDER = -1


class PowerLossError(BaseException):
    """The process has stopped. No handler of ``Exception`` sees it."""


def _stop_in_process() -> NoReturn:
    raise PowerLossError


@dataclass(frozen=True)
class Change:
    """Change of the file system.

    Attributes:
        kind: kind of the change. ``flush`` is a call of fsync.
        path: absolute path.
        target: new path of a rename.
        file: number of the file; -1 for a folder.
        data: written bytes.
    """

    kind: Kind
    path: str
    target: str = ""
    file: int = _FOLDER
    data: bytes = b""


@dataclass
class Recorder:
    """Changes of the files below ``root``. The process stops before change number ``stop_at``, or in the middle of it if it is a write.

    ``stop`` ends the process. By default, the block of ``recording`` ends instead, and no more change is possible in it.
    """

    root: Path
    stop_at: int | None = None
    stop: Callable[[], NoReturn] = _stop_in_process
    changes: list[Change] = field(default_factory=list)
    stopped: bool = False
    _files: dict[str, int] = field(default_factory=dict)
    _descriptors: set[int] = field(default_factory=set)
    _count: int = 0

    def begin(self, change: Change) -> bool:
        """Record a change. Return true if a write must be cut.

        Raises:
            PowerLossError: the process has stopped.
        """
        if self.stopped:
            raise PowerLossError
        self.stopped = self.stop_at == len(self.changes)
        if self.stopped and change.kind != "write":
            self.stop()
        self.changes.append(change)
        return self.stopped

    def created(self, path: str) -> int:
        """Return the number of a new file."""
        self._count += 1
        self._files[path] = self._count
        return self._count

    def renamed(self, path: str, target: str) -> None:
        """Change the paths of the files below ``path``."""
        for old in [name for name in self._files if name == path or name.startswith(f"{path}/")]:
            self._files[target + old[len(path) :]] = self._files.pop(old)

    def number(self, path: str) -> int:
        """Return the number of a file that was created during the recording; -1 for a folder, 0 for an older file."""
        return _FOLDER if Path(path).is_dir() else self._files.get(path, 0)

    def inside(self, path: str) -> bool:
        """Return true if ``path`` is below the root."""
        return path.startswith(f"{self.root}")


class _File:
    """File that records the written bytes."""

    def __init__(self, file: Any, path: str, recorder: Recorder) -> None:
        self._file, self._path, self._recorder = file, path, recorder

    def write(self, data: Any) -> int:
        raw = data.encode() if isinstance(data, str) else bytes(data)
        cut = self._recorder.begin(Change("write", self._path, file=self._recorder.number(self._path), data=raw))
        self._file.write(data[: len(data) // 2] if cut else data)
        if cut:
            self._file.close()
            self._recorder.stop()
        return len(data)

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@contextmanager
def recording(recorder: Recorder) -> Iterator[Recorder]:
    """Record the changes of the block. A stop ends the block as if the process had ended: its locks and descriptors are released."""
    originals = {name: getattr(os, name) for name in ("mkdir", "rename", "replace", "unlink", "remove", "rmdir", "fsync", "open")}
    opener = _opener(recorder)
    with ExitStack() as stack:
        for name, function in _replacements(recorder, originals).items():
            stack.enter_context(patch.object(os, name, function))
        for module in (builtins, io):
            stack.enter_context(patch.object(module, "open", opener))
        with suppress(PowerLossError):
            yield recorder
    if recorder.stopped:
        locks._held.clear()
        probation._own_files.clear()
        for descriptor in recorder._descriptors:
            try:
                os.close(descriptor)
            except OSError:
                continue


def _place(path: Any, dir_fd: int | None = None) -> str:
    """Return the absolute path of a file by its path or descriptor. Links are not resolved."""
    if isinstance(path, int):
        return str(Path(f"/proc/self/fd/{path}").readlink())
    parent = Path() if dir_fd is None else Path(f"/proc/self/fd/{dir_fd}").readlink()
    return str((parent / os.fspath(path)).absolute())


def _replacements(recorder: Recorder, originals: dict[str, Callable[..., Any]]) -> dict[str, Callable[..., Any]]:
    def mkdir(path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        if recorder.inside(place := _place(path, dir_fd)) and not os.path.lexists(place):
            recorder.begin(Change("mkdir", place))
        originals["mkdir"](path, mode, dir_fd=dir_fd)

    def rename(source: Any, target: Any) -> None:
        first, second = _place(source), _place(target)
        if recorder.inside(first):
            recorder.begin(Change("rename", first, second))
            recorder.renamed(first, second)
        originals["replace"](source, target)

    def remove(name: str) -> Callable[..., None]:
        def run(path: Any, *, dir_fd: int | None = None) -> None:
            if recorder.inside(place := _place(path, dir_fd)) and os.path.lexists(place):
                recorder.begin(Change("remove", place))
            originals[name](path, dir_fd=dir_fd)

        return run

    def fsync(descriptor: int) -> None:
        if recorder.inside(place := _place(descriptor)):
            recorder.begin(Change("flush", place, file=recorder.number(place)))
        originals["fsync"](descriptor)

    def open_(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        place = _place(path, dir_fd)
        if recorder.inside(place) and flags & os.O_CREAT and not os.path.lexists(place):
            recorder.begin(Change("create", place, file=recorder._count + 1))
            recorder.created(place)
        elif recorder.stopped:
            raise PowerLossError
        descriptor = int(originals["open"](path, flags, mode, dir_fd=dir_fd))
        if recorder.inside(place):
            recorder._descriptors.add(descriptor)
        return descriptor

    removals = {name: remove(name) for name in ("unlink", "remove", "rmdir")}
    return {"mkdir": mkdir, "rename": rename, "replace": rename, "fsync": fsync, "open": open_, **removals}


def _opener(recorder: Recorder) -> Callable[..., Any]:
    original = open

    def open_(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if isinstance(file, int):
            place = _place(file) if set(mode) & set("wxa") else ""
        else:
            place = _place(file)
        if not (set(mode) & set("wxa+") and recorder.inside(place)):
            return original(file, mode, *arguments, **options)
        if not isinstance(file, int):
            recorder.begin(Change("create", place, file=recorder._count + 1))
            recorder.created(place)
        return _File(original(file, mode, *arguments, **options), place, recorder)

    return open_


def durable(changes: list[Change], before: Path, place: Path, after: Path, *, lose: Literal["zeros", "names"]) -> None:
    """Write the folder that a disk keeps after ``changes`` of ``place``.

    Args:
        changes: recorded changes.
        before: copy of the folder before the changes.
        place: folder of the changes.
        after: folder to write.
        lose: kind of the loss.
    """
    names: dict[str, int | bytes] = {}
    for path in sorted(before.rglob("*")):
        names[str(place / path.relative_to(before))] = _FOLDER if path.is_dir() else path.read_bytes()
    for index, change in enumerate(changes):
        if lose == "zeros" or _is_flushed(change, changes[index + 1 :]):
            _apply(change, names, place)
    contents = _contents(changes)
    after.mkdir()
    for name, value in sorted(names.items()):
        target = after / Path(name).relative_to(place)
        if value == _FOLDER:
            target.mkdir()
        else:
            target.write_bytes(contents[value] if isinstance(value, int) else value)


def _is_flushed(change: Change, later: list[Change]) -> bool:
    """Return true if the folder of a change was flushed afterwards. All renames of a store stay in one folder."""
    parent = str(Path(change.path).parent)
    return any(item.kind == "flush" and item.file == _FOLDER and item.path == parent for item in later)


def _apply(change: Change, names: dict[str, int | bytes], place: Path) -> None:
    parent = str(Path(change.path).parent)
    if parent != str(place) and parent not in names:
        return
    if change.kind == "mkdir":
        names[change.path] = _FOLDER
    elif change.kind == "create":
        names[change.path] = change.file
    elif change.kind == "remove":
        for name in [name for name in names if name == change.path or name.startswith(f"{change.path}/")]:
            del names[name]
    elif change.kind == "rename":
        moved = [name for name in names if name == change.path or name.startswith(f"{change.path}/")]
        for name in moved:
            names[change.target + name[len(change.path) :]] = names.pop(name)


def _contents(changes: list[Change]) -> dict[int, bytes]:
    """Return the content of each new file: the flushed bytes, and zeros for the others."""
    written: dict[int, bytes] = {}
    flushed: dict[int, int] = {}
    for change in changes:
        if change.kind == "create":
            written[change.file] = b""
        elif change.kind == "write" and change.file > 0:
            written[change.file] = written.get(change.file, b"") + change.data
        elif change.kind == "flush" and change.file > 0:
            flushed[change.file] = len(written.get(change.file, b""))
    return {number: data[: flushed.get(number, 0)] + bytes(len(data) - flushed.get(number, 0)) for number, data in written.items()}
