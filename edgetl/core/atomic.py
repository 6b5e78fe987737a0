"""Files and folders that appear whole or not at all.

A sibling with a temporary name is written, flushed to the disk, and renamed over the target; then the parent folder is flushed,
because a rename alone does not survive a power cut (POSIX promises atomicity, not durability).
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from edgetl.errors import ConfigError, StorageError

STAGING_MARK = ".edgetl-partial-"
REPLACED_MARK = ".edgetl-replaced-"


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` whole or not at all.

    Raises:
        StorageError: the disk is full, or the folder cannot be written.
    """
    staging = path.with_name(f"{STAGING_MARK}{secrets.token_hex(4)}-{path.name}")
    try:
        with open(staging, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(staging, path)
        _flush_folder(path.parent)
    except OSError as error:
        raise storage_error(path, error) from error
    finally:
        with suppress(OSError):
            staging.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8 to ``path`` whole or not at all."""
    write_bytes(path, text.encode("utf-8"))


@contextmanager
def new_folder(target: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty staging folder beside ``target``; it becomes ``target`` when the block ends without an error.

    A process that is killed inside the block leaves only a folder whose name starts with ``.edgetl-partial-``, which no command
    accepts; the next call for the same target removes it.

    Raises:
        ConfigError: ``target`` exists and ``overwrite`` is false.
        StorageError: the disk is full, or the parent folder cannot be written.
    """
    if not target.name:
        raise ConfigError(f"{target} names no folder of its own. Choose another --out.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _recover(target)
    except OSError as error:
        raise storage_error(target, error) from error
    if target.exists() and not overwrite:
        raise ConfigError(f"{target} exists already. Choose another --out, or replace it with --overwrite.")
    if target.is_file():
        raise ConfigError(f"{target} is a file; --out names a folder. Choose another name.")
    try:
        staging = target.with_name(f"{STAGING_MARK}{os.getpid()}-{target.name}")
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
    except OSError as error:
        raise storage_error(target, error) from error
    try:
        yield staging
        _flush_tree(staging)
        _swap(staging, target)
    except OSError as error:
        raise storage_error(target, error) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def storage_error(path: Path, error: OSError) -> StorageError:
    """The ``StorageError`` that says why ``path`` could not be written."""
    reason = error.strerror or str(error)
    return StorageError(f"cannot write {path}: {reason}. Nothing was kept of it; free some space or choose another place.")


def _swap(staging: Path, target: Path) -> None:
    """Rename ``staging`` to ``target``; an old ``target`` is set aside first and removed only after the new one stands."""
    if not target.exists():
        os.rename(staging, target)
        _flush_folder(target.parent)
        return
    aside = target.with_name(f"{REPLACED_MARK}{os.getpid()}-{target.name}")
    os.rename(target, aside)
    try:
        os.rename(staging, target)
    except OSError:
        os.rename(aside, target)
        raise
    _flush_folder(target.parent)
    if aside.is_symlink():
        aside.unlink()
    shutil.rmtree(aside, ignore_errors=True)


def _recover(target: Path) -> None:
    """Undo what a killed process left for the same target: put a replaced folder back, and remove half-written ones."""
    for path in list(target.parent.iterdir()):
        kind = re.fullmatch(rf"({re.escape(STAGING_MARK)}|{re.escape(REPLACED_MARK)})(\d+)-{re.escape(target.name)}", path.name)
        if kind is None or _is_running(int(kind[2])):
            continue
        if kind[1] == REPLACED_MARK and not target.exists():
            os.rename(path, target)
        else:
            shutil.rmtree(path, ignore_errors=True)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _flush_tree(root: Path) -> None:
    for folder, _, files in os.walk(root, topdown=False):
        for name in files:
            descriptor = os.open(Path(folder, name), os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        _flush_folder(Path(folder))


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
