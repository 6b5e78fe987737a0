"""Integrity check: decode every image of a folder in parallel, and cache the result by file size and modification time."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path
from typing import Any

from edgetl.core.files.atomic import write_text
from edgetl.core.files.byte_ranges import size_and_time
from edgetl.core.files.regular import read_plain
from edgetl.core.images.capture import Capture
from edgetl.core.images.decode import content_hash, examine
from edgetl.core.images.intensity import Levels
from edgetl.core.progress import Progress, silent
from edgetl.core.system.threads import map_ahead
from edgetl.data.content.colors import Colors, count_colors
from edgetl.data.content.facts import ImageFacts, measure_facts
from edgetl.errors import ImageError, StorageError

_log = logging.getLogger(__name__)

# Increase this number when decoding or hashing changes. Older caches are then ignored.
_CACHE_VERSION = 5
# Images that are decoded in advance.
_AHEAD = 64


@dataclass(frozen=True, slots=True)
class Checked:
    """Result of decoding a file: content hash, colors and facts, or the reason of the failure.

    ``levels`` is the smallest and largest value of an image with more than 8 bits per channel.
    """

    content: str | None
    reason: str = ""
    colors: Colors | None = None
    levels: Levels | None = None
    facts: ImageFacts | None = None


def check_images(paths: Sequence[Path], root: Path, *, progress: Progress = silent) -> dict[Path, Checked]:
    """Decode the images ``paths`` (below ``root``) and hash their pixels. Unchanged files are read from the user's cache folder."""
    file = cache_file(root, "scans", ".json")
    stamps = {path: _stamp(path, root) for path in paths}
    known = _read_cache(file, set(stamps.values()))
    results = {path: known[stamp] for path, stamp in stamps.items() if stamp in known}
    missing = [path for path in paths if path not in results]
    for done, (path, result) in enumerate(zip(missing, map_ahead(_check, missing, ahead=_AHEAD), strict=True), start=1):
        results[path] = result
        progress("checking images", done, len(missing))
    if missing:
        _write_cache(file, {stamps[path]: result for path, result in results.items()})
    return results


def _check(path: Path) -> Checked:
    try:
        image, levels, capture = examine(path)
        return Checked(content_hash(image), colors=count_colors(image), levels=levels, facts=measure_facts(image, capture))
    except ImageError as error:
        return Checked(None, str(error))


def _stamp(path: Path, root: Path) -> str:
    try:
        size, time_ns = size_and_time(path)
    except OSError:
        return f"{path.relative_to(root).as_posix()}|missing"
    return f"{path.relative_to(root).as_posix()}|{size}|{time_ns}"


def cache_file(root: Path, kind: str, suffix: str) -> Path | None:
    """Return the file of the user's cache folder for results of ``kind`` about the data folder ``root``; none without a home directory."""
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        folder = Path(base) if base else Path.home() / ".cache"
    except RuntimeError:  # no home directory: work without a cache
        return None
    key = hashlib.sha256(str(root.resolve()).encode("utf-8", "surrogateescape")).hexdigest()[:24]
    return folder / "edgetl" / kind / f"{key}{suffix}"


def _read_cache(path: Path | None, stamps: set[str]) -> dict[str, Checked]:
    """Return the cached results of the files with one of ``stamps``."""
    if path is None:
        return {}
    try:
        data = json.loads(read_plain(path))
        if data["version"] != _CACHE_VERSION:
            return {}
        return {str(stamp): _from_cache(*row) for stamp, row in data["files"].items() if stamp in stamps}
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        _log.debug("scan cache %s is not readable (%s); scanning again", path, error)
        return {}


def _from_cache(content: str | None, reason: str, colors: list[Any] | None, levels: list[int] | None, facts: list[Any] | None) -> Checked:
    measured = ImageFacts(*facts) if facts else None
    if measured and measured.capture:
        measured = replace(measured, capture=Capture(*measured.capture))
    limits = (int(levels[0]), int(levels[1])) if levels else None
    return Checked(content, str(reason), Colors(*colors) if colors else None, limits, measured)


def _write_cache(path: Path | None, results: dict[str, Checked]) -> None:
    if path is None:
        return
    files = {
        stamp: [
            result.content,
            result.reason,
            result.colors and list(astuple(result.colors)),
            result.levels,
            result.facts and [getattr(result.facts, item.name) for item in fields(result.facts)],
        ]
        for stamp, result in results.items()
        if not stamp.endswith("|missing")
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps({"version": _CACHE_VERSION, "files": files}))
    except (OSError, StorageError, UnicodeEncodeError) as error:
        _log.debug("scan cache %s cannot be written: %s", path, error)
