"""File names of a table: match them with images, despite differences in Unicode form, case, suffix and leading folders."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from edgetl.data.listing import list_images
from edgetl.data.scan_notes import Notes
from edgetl.data.selection import NO_SELECTION, Selection
from edgetl.errors import DataError

_FORM, _CASE, _SUFFIX, _BELOW = "Unicode form", "upper and lower case", "suffix", "folder"
_ABSOLUTE = re.compile(r"(/|[A-Za-z]:/)")


class TableFiles:
    """Lookup of images below ``root`` by the file names of a table.

    A name is relative to ``root`` or to the folder of the table. If no such file exists, the name may differ from the file name in Unicode
    form, case, a missing suffix, or leading folders. A name that matches two files is an error. So is an existing image outside ``root``,
    unless ``larger`` states that the table is for more images than those below ``root``.
    """

    def __init__(self, root: Path, table: Path, *, selection: Selection = NO_SELECTION, larger: bool = False) -> None:
        self.root = root
        self.table = table
        self.larger = larger
        self.left_out = Notes()
        self.images = list(list_images(root, selection, self.left_out).files())
        self._index: dict[tuple[str, str], list[Path]] | None = None
        self._differences: Counter[str] = Counter()
        self._prefixes: dict[str, str] = {}

    def find(self, name: str) -> Path | None:
        """Return the path of the image called ``name``, starting with ``root``, or none.

        Raises:
            DataError: the image is outside ``root``, or several images match.
        """
        posix = name.replace("\\", "/")
        for base in (self.root, self.table.parent):
            for given in dict.fromkeys((name, posix)):
                if given and os.path.isfile(base / given):  # noqa: PTH113 (Path.is_file raises for a long name)
                    return self._inside(base / given, name)
        for prefix, wanted in self._wanted(posix):
            for difference, key in _keys(wanted):
                if found := self._only((difference, key), name):
                    self._note(difference, prefix, name)
                    return found
        # A name without folders may mean an image in any folder, if only one image has it.
        if "/" not in posix and (found := self._only((_BELOW, _folded(posix)), name)):
            self._differences[_BELOW] += 1
            return found
        return None

    def notes(self) -> Iterator[str]:
        """Yield a sentence for each kind of difference between the table's names and the file names."""
        for difference, count in sorted(self._differences.items()):
            yield f"{count} names differ from the file names in {difference}."
        for prefix in self._prefixes:
            yield f"the leading folders {prefix!r} of the names are ignored."

    def suggestion(self, name: str) -> str:
        """Return a sentence with a file that ``name`` may mean; empty if there is none."""
        stem = PurePosixPath(name.replace("\\", "/")).with_suffix("").name if name.strip("./\\") else ""
        found = self._images().get((_BELOW, _folded(stem)), [])
        return f" Did you mean {found[0].relative_to(self.root).as_posix()}?" if found else ""

    def _inside(self, path: Path, name: str) -> Path | None:
        plain = Path(os.path.normpath(Path.cwd() / path))
        for root, candidate in ((Path(os.path.normpath(Path.cwd() / self.root)), plain), (self.root.resolve(), path.resolve())):
            if candidate.is_relative_to(root):
                return self.root / candidate.relative_to(root)
        if self.larger:
            return None
        raise DataError(f"{name} is outside {self.root}. Give a folder that contains all images.")

    def _wanted(self, posix: str) -> Iterator[tuple[str, str]]:
        """Yield pairs: leading folders to ignore, and the rest of the name, relative to ``root``. The longest rest comes first."""
        whole = os.path.normpath(posix) if posix else ""
        if not _ABSOLUTE.match(posix):
            yield "", whole
            beside = os.path.relpath(self.table.parent / whole, self.root)
            if not beside.startswith(".."):
                yield "", Path(beside).as_posix()
        parts = whole.split("/")
        for start in range(1, len(parts)):
            if parts[0] != "..":
                yield "/".join(parts[:start]), "/".join(parts[start:])

    def _only(self, key: tuple[str, str], name: str) -> Path | None:
        found = self._images().get(key, [])
        if len(found) > 1:
            names = " and ".join(path.relative_to(self.root).as_posix() for path in found[:2])
            raise DataError(f"{name!r} matches {len(found)} files: {names}. Write the path relative to {self.root}, with its suffix.")
        return found[0] if found else None

    def _images(self) -> dict[tuple[str, str], list[Path]]:
        """Index of the images by every key of their names. It is built at the first lookup."""
        if self._index is None:
            self._index = defaultdict(list)
            for path in self.images:
                relative = path.relative_to(self.root).as_posix()
                stem = relative[: -len(path.suffix)] if path.suffix else relative
                keys = {(_FORM, _nfc(relative)), (_CASE, _folded(relative)), (_SUFFIX, _nfc(stem)), (_SUFFIX, _folded(stem))}
                for bare in (path.name, path.stem):
                    keys.add((_BELOW, _folded(bare)))
                for key in keys:
                    self._index[key].append(path)
        return self._index

    def _note(self, difference: str, prefix: str, name: str) -> None:
        if prefix:
            self._prefixes.setdefault(prefix, name)
            if len(self._prefixes) > 1:
                first, second = list(self._prefixes.values())[:2]
                raise DataError(f"{first!r} and {second!r} are in different folders that {self.root} does not have. ")
        if difference != _FORM or not prefix:
            self._differences[difference] += 1


def _keys(name: str) -> tuple[tuple[str, str], ...]:
    """Return the lookup keys of a name, the closest match first."""
    return (_FORM, _nfc(name)), (_CASE, _folded(name)), (_SUFFIX, _nfc(name)), (_SUFFIX, _folded(name))


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _folded(text: str) -> str:
    return unicodedata.normalize("NFC", text.casefold())
