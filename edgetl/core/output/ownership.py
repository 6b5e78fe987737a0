"""Recognition of files that edgetl wrote, by its records. Other files are never replaced or removed.

edgetl wrote a folder if a record in it is valid and lists every file. A file that no record lists belongs to the user.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetl.core.bundle import RUN_RECORD_NAME
from edgetl.core.config import load_json
from edgetl.core.files.atomic import STAGING_MARK
from edgetl.core.files.regular import read_plain
from edgetl.core.manifest import MANIFEST_NAME

FIT_RECORD_NAME = "fit.json"
DEMO_RECORD_NAME = "demo.json"
SHARD_INDEX_NAME = "shards.json"
CHECKPOINTS_SUFFIX, COMPARE_SUFFIX = ".checkpoints", ".compare"
REPLACED_MARK = ".edgetl-replaced-"
LOCK_MARK = ".edgetl-lock-"

MAX_RECORD_BYTES = 50_000_000
# Files that file managers write into folders.
_NOISE = frozenset({".DS_Store", "Thumbs.db", "desktop.ini"})
_LOGS = r"logs/(csv/(metrics\.csv|hparams\.yaml)|tensorboard/(events\.out\.tfevents\.[^/]+|hparams\.yaml)|mlflow\.db(-journal|-wal|-shm)?)"
# Copies of images in the replay memory of an updated run.
_MEMORY = r"memory/[0-9a-f]{16}\.[a-z]{3,4}"
_STATE = r"step-\d{8}-[0-9a-f]{16}\.safetensors"
# Features of a sharded probe, of each process.
_FEATURES = r"features-\d+/(features\.npy|labels\.npy|validation\.npy|progress\.json)"
_UNFINISHED_FILE = rf"(.+/)?{re.escape(STAGING_MARK)}[0-9a-f]{{8}}-[^/]+"
_RUN_KEYS = {"schema_version", "labels", "config", "backbone", "preprocess", "files"}
_BUNDLE_KEYS = {"schema_version", "variants", "golden", "lineage", "preprocess"}
_HUB_NAMES = ("README.md", "config.json", "model.safetensors")
STRATEGIES = ("probe", "partial", "full", "progressive", "scratch")


@dataclass(frozen=True)
class _Own:
    """Files of edgetl in a folder: relative POSIX paths, and patterns of them."""

    names: frozenset[str] = frozenset()
    patterns: tuple[str, ...] = ()

    def holds(self, name: str) -> bool:
        return name in self.names or any(re.fullmatch(pattern, name) for pattern in (*self.patterns, _UNFINISHED_FILE))

    def below(self, folder: str) -> _Own:
        """Return the same files with paths relative to the parent of ``folder``."""
        names = frozenset(f"{folder}/{name}" for name in self.names)
        return _Own(names, tuple(rf"{re.escape(folder)}/({pattern})" for pattern in self.patterns))

    def __or__(self, other: _Own) -> _Own:
        return _Own(self.names | other.names, (*self.patterns, *other.patterns))


def foreign_files(folder: Path) -> Iterator[Path]:
    """Yield the files below ``folder`` that edgetl did not write, including links and special files.

    Raises:
        OSError: a folder cannot be listed.
    """
    own = _own(folder)
    yield from (path for path, name in _walk(folder) if not own.holds(name))


def holds_own(folder: Path) -> bool:
    """Return true if edgetl wrote at least one file of ``folder``.

    Raises:
        OSError: a folder cannot be listed.
    """
    own = _own(folder)
    return folder.is_dir() and any(own.holds(name) for _, name in _walk(folder))


@contextmanager
def created(folder: Path) -> Iterator[None]:
    """Create ``folder`` if it is missing. It is removed at the end if it is then still empty.

    Raises:
        OSError: the folder cannot be created.
    """
    is_new = not folder.is_dir()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        if is_new:
            with suppress(OSError):  # it has files
                folder.rmdir()


def remove_own(folder: Path) -> list[Path]:
    """Remove the files of edgetl from a side folder (checkpoints, compared runs), and the empty folders.

    Returns:
        The remaining files, which edgetl did not write.

    Raises:
        OSError: a file cannot be removed.
    """
    if folder.is_symlink() or not folder.is_dir():
        return []
    own, kept = _own(folder), []
    for path, name in list(_walk(folder)):
        if own.holds(name):
            path.unlink(missing_ok=True)
        else:
            kept.append(path)
    for parent, _, _ in os.walk(folder, topdown=False):
        with suppress(OSError):  # not empty, for instance with files of a file manager
            Path(parent).rmdir()
    return kept


def _walk(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield all files, links and special files below ``folder``, with their relative path (empty for links and special files)."""
    for parent, folders, files in os.walk(folder, onerror=_raise):
        links = [name for name in folders if Path(parent, name).is_symlink()]
        for name in sorted((*files, *links)):
            path = Path(parent, name)
            regular = stat.S_ISREG(path.lstat().st_mode)
            if not (regular and name in _NOISE):
                # edgetl writes regular files only.
                yield path, path.relative_to(folder).as_posix() if regular else ""


def _raise(error: OSError) -> None:
    raise error


def _own(folder: Path) -> _Own:
    for recognize in (_of_run, _of_bundle, _of_fit, _of_demo, _of_shards, _of_hub_folder):
        if own := recognize(folder):
            return own
    if folder.name.endswith(CHECKPOINTS_SUFFIX):
        return _Own(patterns=(_STATE, _FEATURES))
    if folder.name.endswith(COMPARE_SUFFIX):
        return _runs(folder, STRATEGIES)
    return _Own()


def _of_run(folder: Path) -> _Own | None:
    record = _read(folder / RUN_RECORD_NAME)
    files = record.get("files")
    if not record.keys() >= _RUN_KEYS or not isinstance(files, dict):
        return None
    return _Own(frozenset({RUN_RECORD_NAME, *(name for name in files if "/" not in name)}), (_LOGS, _MEMORY))


def _of_bundle(folder: Path) -> _Own | None:
    manifest = _read(folder / MANIFEST_NAME)
    if not manifest.keys() >= _BUNDLE_KEYS:
        return None
    return _Own(frozenset({MANIFEST_NAME, "manifest.sig", *_listed(manifest)}))


def _listed(value: Any) -> Iterator[str]:
    """Yield the paths of all files that a manifest of any schema version lists."""
    if isinstance(value, dict):
        if {"path", "size_bytes", "sha256"} <= value.keys():
            yield str(value["path"])
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _listed(item)


def _of_fit(folder: Path) -> _Own | None:
    record = _read(folder / FIT_RECORD_NAME)
    if not {"schema_version", "contract", "tried"} <= record.keys():
        return None
    return _Own(frozenset({FIT_RECORD_NAME})) | _runs(folder, ("run", "bundle"))


def _of_demo(folder: Path) -> _Own | None:
    if not {"schema_version", "images"} <= _read(folder / DEMO_RECORD_NAME).keys():
        return None
    return _Own(frozenset({DEMO_RECORD_NAME, "demo.png"}), (r"digits/\d/\d{4}\.png",)) | _runs(folder, ("run", "bundle"))


def _of_shards(folder: Path) -> _Own | None:
    index = _read(folder / SHARD_INDEX_NAME)
    if not {"schema_version", "labels", "counts", "shards"} <= index.keys() or not isinstance(index["shards"], list):
        return None
    names = (str(shard.get("name")) for shard in index["shards"] if isinstance(shard, dict))
    return _Own(frozenset({SHARD_INDEX_NAME, *names}))


def _of_hub_folder(folder: Path) -> _Own | None:
    config = _read(folder / "config.json").get("pretrained_cfg")
    written = isinstance(config, dict) and config.get("tag") == "edgetl" and all((folder / name).is_file() for name in _HUB_NAMES)
    return _Own(frozenset(_HUB_NAMES)) if written else None


def _runs(folder: Path, names: tuple[str, ...]) -> _Own:
    """Return the files of the runs and bundles ``names`` in ``folder``, including the files of unfinished ones."""
    own = _Own()
    for name in names:
        if not (folder / name).is_symlink():
            own |= _own(folder / name).below(name)
        short = re.escape(name)
        unfinished = rf"({re.escape(STAGING_MARK)}|{re.escape(REPLACED_MARK)})\d+-{short}/.+"
        own |= _Own(
            patterns=(rf"{short}{re.escape(CHECKPOINTS_SUFFIX)}/({_STATE}|{_FEATURES})", rf"{re.escape(LOCK_MARK)}{short}", unfinished)
        )
    return own


def _read(path: Path) -> dict[str, Any]:
    """Read a JSON object; empty if the file is missing or invalid."""
    try:
        value = load_json(read_plain(path, max_bytes=MAX_RECORD_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
