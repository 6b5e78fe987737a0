"""``--include`` and ``--exclude``: glob patterns on paths relative to the data folder."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Selection:
    """Glob patterns that select files, against the default rules of a scan.

    A pattern without a slash, such as ``*_mask.png``, matches the name of the file or of any folder above it. A pattern with a slash,
    such as ``train/old/*``, matches the path relative to the data folder, or the path of a folder above the file. ``*`` also matches
    slashes. Patterns are case-sensitive.

    Attributes:
        include: files to use that are left out by default: masks, hidden files, thumbnails, files of runs.
        exclude: files to leave out. Takes precedence over ``include``.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    @cached_property
    def _patterns(self) -> tuple[_Patterns, _Patterns]:
        return _compile(self.include), _compile(self.exclude)

    def includes(self, path: str) -> bool:
        """Return true if a pattern of ``include`` matches ``path`` (POSIX, relative to the data folder)."""
        return bool(self.include) and _matches(path, self._patterns[0])

    def excludes(self, path: str) -> bool:
        """Return true if a pattern of ``exclude`` matches ``path`` (POSIX, relative to the data folder)."""
        return bool(self.exclude) and _matches(path, self._patterns[1])


NO_SELECTION = Selection()


@dataclass(frozen=True)
class _Patterns:
    names: tuple[re.Pattern[str], ...]
    paths: tuple[re.Pattern[str], ...]


def _compile(patterns: Sequence[str]) -> _Patterns:
    plain = [pattern.strip("/") for pattern in patterns if pattern.strip("/")]
    names = tuple(re.compile(fnmatch.translate(pattern)) for pattern in plain if "/" not in pattern)
    return _Patterns(names, tuple(re.compile(fnmatch.translate(pattern)) for pattern in plain if "/" in pattern))


def _matches(path: str, patterns: _Patterns) -> bool:
    parts = path.split("/")
    if any(pattern.match(part) for pattern in patterns.names for part in parts):
        return True
    return bool(patterns.paths) and any(
        pattern.match("/".join(parts[:length])) for length in range(len(parts), 0, -1) for pattern in patterns.paths
    )
