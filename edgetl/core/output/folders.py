"""Output folders and files: checked before the work, locked during the work, replaced only if edgetl wrote them.

A folder is written under a temporary name next to its final path, and then renamed. It is complete as soon as it exists.
"""

from __future__ import annotations

import io
import logging
import os
import re
import secrets
import shutil
import stat
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

from edgetl.core.files.atomic import STAGING_MARK, storage_error, write_bytes
from edgetl.core.files.platforms import flush_file, flush_folder, process_runs
from edgetl.core.files.regular import file_id, open_plain
from edgetl.core.output.locks import is_locked, locked
from edgetl.core.output.ownership import REPLACED_MARK, created, foreign_files, remove_own
from edgetl.errors import ConfigError

_log = logging.getLogger(__name__)

# Paths that a command reads, by their name in messages: {"the images": data, "--teacher": run}.
Inputs: TypeAlias = Mapping[str, Path]

# Metadata of every chart of edgetl. Charts that users draw with matplotlib do not have it.
_CHART_MARK = "drawn by edgetl"
_MARKED: dict[str, dict[str, Any]] = {
    ".png": {"metadata": {"Software": _CHART_MARK}},
    ".jpg": {"pil_kwargs": {"comment": _CHART_MARK}},
    ".svg": {"metadata": {"Creator": _CHART_MARK}},
    ".pdf": {"metadata": {"Creator": _CHART_MARK}},
}
# File that marks a temporary folder of edgetl, which may be removed.
_OWNED = ".edgetl"
_SHOWN = 3


def check_output(out: Path, *, inputs: Inputs | None = None, overwrite: bool = False) -> None:
    """Check that an output folder can be written or replaced. Nothing is changed.

    Args:
        out: output folder.
        inputs: paths that the command reads. ``out`` must not equal, contain or be inside one of them.
        overwrite: allow replacing an empty folder, or a folder with files of edgetl only.

    Raises:
        ConfigError: ``out`` is not a valid folder name, exists, is a link or a file, overlaps an input, or is written by another process.
        StorageError: the parent folder cannot be written.
    """
    place = _place(out)
    _check_apart(out, place, inputs or {})
    _check_replaceable(out, place, overwrite=overwrite)
    _check_writable(out, place)
    try:
        busy = is_locked(place)
    except OSError as error:
        raise storage_error(out, error) from error
    if busy:
        raise _busy(out)


@contextmanager
def reserved(out: Path, *, inputs: Inputs | None = None, overwrite: bool = False) -> Iterator[Path]:
    """Check ``out`` as ``check_output`` does, and hold its lock. No other process writes it during the block.

    Yields:
        The path of ``out`` with links in its parents resolved. The parent exists.

    Raises:
        ConfigError, StorageError: as ``check_output``.
    """
    place = _place(out)
    _check_apart(out, place, inputs or {})
    _check_writable(out, place)
    with ExitStack() as stack:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            if not stack.enter_context(locked(place)):
                raise _busy(out)
            _recover(place)
        except OSError as error:
            raise storage_error(out, error) from error
        _check_replaceable(out, place, overwrite=overwrite)
        yield place


@contextmanager
def new_folder(target: Path, *, inputs: Inputs | None = None, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty temporary folder, which becomes ``target`` when the block ends without an error.

    A killed process leaves only a folder with the prefix ``.edgetl-partial-``. No command accepts it, and the next call for the same target
    removes it.

    Raises:
        ConfigError, StorageError: as ``check_output``. Also at the end, if another program made or changed ``target`` in the meantime, or
            ``target`` cannot be replaced. The result is then kept next to it.
    """
    with reserved(target, inputs=inputs, overwrite=overwrite) as place:
        before = file_id(place, follow_links=False)
        outer = place.with_name(f"{STAGING_MARK}{os.getpid()}-{place.name}")
        try:
            outer.mkdir()
            (outer / _OWNED).touch()
            staging = outer / place.name
            staging.mkdir()
            yield staging
            flush_tree(staging)
            _publish(staging, place, before)
        except OSError as error:
            raise storage_error(target, error) from error
        finally:
            shutil.rmtree(outer, ignore_errors=True)


@contextmanager
def locked_folder(out: Path, *, inputs: Inputs | None = None) -> Iterator[None]:
    """Hold the lock of ``out``, a folder that is never replaced. It is created if it is missing, and removed if it is then still empty.

    Args:
        out: output folder.
        inputs: as for ``check_output``.

    Raises:
        ConfigError: another process writes the folder, ``out`` overlaps an input, or a part of the path is a broken link.
        StorageError: the folder cannot be created or written.
    """
    place = _place(out)
    _check_apart(out, place, inputs or {})
    with ExitStack() as stack:
        try:
            stack.enter_context(created(place))
            if not stack.enter_context(locked(place)):
                raise _busy(out)
        except OSError as error:
            raise storage_error(out, error) from error
        _check_writable(out, place / "x")
        yield


def remove_side_folder(folder: Path) -> None:
    """Remove a side folder (checkpoints, compared runs) of a finished run. Files that edgetl did not write are kept and reported.

    Raises:
        StorageError: a file cannot be removed.
    """
    try:
        kept = remove_own(folder)
    except OSError as error:
        raise storage_error(folder, error) from error
    if kept:
        _log.warning("%s is kept: edgetl did not write %s", folder, _shown(folder, kept))


def check_side_folder(folder: Path) -> None:
    """Check that a side folder can be created: the path is not a file or a link.

    Raises:
        ConfigError: the path is a file or a link.
    """
    if os.path.lexists(folder) and (folder.is_symlink() or not folder.is_dir()):
        raise ConfigError(f"{folder} is not a folder, but checkpoints are saved at this path. Move it, or choose another --out.")


def check_chart(path: Path, option: str, *, inputs: Inputs | None = None) -> None:
    """Check that a chart file can be written, and replaces no file of the user.

    Raises:
        ConfigError: the suffix is not supported, a file that edgetl did not write exists, or the path is inside an input.
        StorageError: the folder cannot be written.
    """
    if path.suffix.lower() not in _MARKED:
        raise ConfigError(f"{option} {path}: the name must end in {', '.join(_MARKED)}.")
    check_output_file(path, option, is_own=_is_own_chart, inputs=inputs)


def check_output_file(path: Path, option: str, *, is_own: Callable[[Path], bool], inputs: Inputs | None = None) -> None:
    """Check that an output file can be written, and replaces no file of the user.

    Args:
        path: file to write.
        option: option of the command, for messages.
        is_own: function that returns true for a file that edgetl wrote, which may be replaced.
        inputs: paths that the command reads. ``path`` must not equal one of them, or be inside it.

    Raises:
        ConfigError: a file that edgetl did not write exists, or the path is inside an input.
        StorageError: the folder cannot be written.
    """
    place = _place(path, option)
    _check_apart(path, place, inputs or {}, option)
    if os.path.lexists(place) and not is_own(place):
        raise ConfigError(f"{option} {path} exists already, and edgetl did not write it. Choose another name, or move the file.")
    _check_writable(path, place)


def write_file(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` atomically, after creating its folder.

    Raises:
        StorageError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(path, error) from error
    write_bytes(path, data)


def write_chart(figure: Any, path: Path, *, dpi: int) -> None:
    """Write a matplotlib figure atomically, with the metadata that ``check_chart`` recognizes.

    Raises:
        StorageError: the file cannot be written.
    """
    suffix, drawn = path.suffix.lower(), io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # missing glyphs become boxes
        figure.savefig(drawn, dpi=dpi, format=suffix[1:], **_MARKED[suffix])
    write_file(path, drawn.getvalue())


def _is_own_chart(path: Path) -> bool:
    try:
        with open_plain(path, follow_links=False) as file:
            return _CHART_MARK.encode() in file.read()
    except OSError:
        return False


def _place(out: Path, option: str = "--out") -> Path:
    """Return the path of ``out`` with links and ``..`` resolved, except in its last name.

    Raises:
        ConfigError: the path has no last name, or a part of it is a broken link.
    """
    if out.name in ("", ".."):
        raise ConfigError(f"{out} has no folder name. Choose another {option}.")
    for parent in (out.parent, *out.parent.parents):
        if parent.is_symlink() and not parent.exists():
            raise ConfigError(
                f"{out}: {parent} is a symbolic link to {parent.readlink()}, which does not exist. Repair the link, or choose another "
                f"{option}."
            )
    try:
        return out.parent.resolve() / out.name
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(f"{option} {out}: the path cannot be resolved ({error}). Choose another {option}.") from error


def _check_apart(out: Path, place: Path, inputs: Inputs, option: str = "--out") -> None:
    """Check that an output does not overlap an input. Folders are compared by identity, through links, ``..`` and bind mounts."""
    for name, path in inputs.items():
        given = path.resolve()
        if _same(place, given):
            relation = "is"
        elif any(_same(place, parent) for parent in given.parents):
            relation = "contains"
        elif any(_same(given, parent) for parent in place.parents):
            relation = "is inside"
        else:
            continue
        raise ConfigError(f"{option} {out} {relation} {name} ({path}), which would be changed or lost. Choose another {option}.")


def _same(first: Path, second: Path) -> bool:
    try:
        return first == second or first.samefile(second)
    except OSError:
        return False


def _check_replaceable(out: Path, place: Path, *, overwrite: bool) -> None:
    if not os.path.lexists(place):
        return
    if place.is_symlink():
        nowhere = "" if place.exists() else ", which does not exist"
        raise ConfigError(
            f"{out} is a symbolic link to {place.readlink()}{nowhere}. Use the folder itself, remove the link, or choose another --out."
        )
    if not place.is_dir():
        kind = "a file" if stat.S_ISREG(place.lstat().st_mode) else "not a folder"
        raise ConfigError(f"{out} is {kind}. --out must be a folder. Choose another name.")
    for name, used in (("the working directory", Path.cwd()), ("the home directory", _home())):
        if used is not None and any(_same(place, parent) for parent in (used, *used.parents)):
            raise ConfigError(f"{out} is or contains {name}, which is never replaced. Choose another --out.")
    if os.path.ismount(place):
        raise ConfigError(f"{out} is a mount point, which cannot be replaced. Use a new folder below it.")
    try:
        foreign = list(islice(foreign_files(place), _SHOWN + 1))
    except OSError as error:
        raise ConfigError(f"{out} exists already and cannot be listed ({error.strerror}). Choose another --out.") from error
    if foreign:
        raise ConfigError(
            f"{out} exists already and has files that edgetl did not write: {_shown(place, foreign)}. Only empty folders and folders of "
            f"edgetl are replaced. Choose another --out, or move these files."
        )
    if not overwrite:
        raise ConfigError(f"{out} exists already. Choose another --out, or replace it with --overwrite.")


def _home() -> Path | None:
    try:
        return Path.home()
    except RuntimeError:
        return None


def _shown(folder: Path, files: list[Path]) -> str:
    names = ", ".join(path.relative_to(folder).as_posix() for path in files[:_SHOWN])
    return f"{names}, …" if len(files) > _SHOWN else names


def _check_writable(out: Path, place: Path) -> None:
    """Create and remove a folder next to ``out``. Permissions do not reveal quotas and read-only or virtual file systems."""
    parent = next(path for path in place.parents if os.path.lexists(path))
    try:
        if not parent.is_dir():
            raise NotADirectoryError(20, f"{parent} is not a folder")
        Path(tempfile.mkdtemp(prefix=STAGING_MARK, dir=parent)).rmdir()
        with suppress(FileNotFoundError, NotADirectoryError):
            place.with_name(_aside_name(place)).lstat()  # check the length of the longest temporary name
    except FileNotFoundError as error:
        raise storage_error(out, OSError(None, f"new folders cannot be created in {parent} (a virtual file system)")) from error
    except OSError as error:
        raise storage_error(out, error) from error


def _busy(out: Path) -> ConfigError:
    return ConfigError(f"another process is writing {out}. Wait until it ends, or choose another --out.")


def _aside_name(place: Path) -> str:
    return f"{REPLACED_MARK}{os.getpid()}-{place.name}"


def _publish(staging: Path, place: Path, before: tuple[int, int] | None) -> None:
    """Rename ``staging`` to ``place``. A replaced folder is renamed first, and removed after the rename."""
    now = file_id(place, follow_links=False)
    if now is not None and (now != before or next(foreign_files(place), None) is not None):
        raise _kept(staging, place, "was created or changed by another program in the meantime, and is not replaced")
    aside = place.with_name(_aside_name(place))
    try:
        if now is not None:
            os.rename(place, aside)
        os.rename(staging, place)
    except OSError as error:  # a race, a folder of another user in /tmp, or a layer of a container image
        if now is not None and not os.path.lexists(place):
            os.rename(aside, place)
        raise _kept(staging, place, f"cannot be created or replaced ({error.strerror})") from error
    flush_folder(place.parent)
    if now is not None:
        shutil.rmtree(aside, ignore_errors=True)


def _kept(staging: Path, place: Path, reason: str) -> ConfigError:
    """Move a finished result next to its final path, and return the error that reports it."""
    kept = place.with_name(f"{place.name}-{secrets.token_hex(4)}")
    os.rename(staging, kept)
    flush_folder(place.parent)
    return ConfigError(f"{place} {reason}. The new result is in {kept}.")


def _recover(place: Path) -> None:
    """Clean up after a killed process: restore a replaced folder, and remove incomplete folders. Other folders are kept."""
    pattern = re.compile(rf"({re.escape(STAGING_MARK)}|{re.escape(REPLACED_MARK)})(\d+)-{re.escape(place.name)}")
    for path in list(place.parent.iterdir()):
        kind = pattern.fullmatch(path.name)
        if kind is None or path.is_symlink() or not path.is_dir():
            continue
        if process_runs(int(kind[2])) and int(kind[2]) != os.getpid():
            continue
        if kind[1] == REPLACED_MARK and not os.path.lexists(place):
            os.rename(path, place)
        elif (path / _OWNED).is_file() or next(foreign_files(path), None) is None:
            shutil.rmtree(path)
        else:
            _log.warning("%s is kept: it looks like a temporary folder, but has files that edgetl did not write", path)


def flush_tree(root: Path) -> None:
    """Flush all files and folders below ``root`` to the disk, the inner ones first.

    Raises:
        OSError: the system reports an error.
    """
    for folder, _, files in os.walk(root, topdown=False):
        for name in files:
            flush_file(Path(folder, name))
        flush_folder(Path(folder))
