"""Tree of the image files in a folder. Other files are counted by reason (``edgetl.data.scan_notes``)."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from edgetl.core.bundle import is_run
from edgetl.core.files.names import printable
from edgetl.core.files.regular import file_id, open_plain
from edgetl.core.images.decode import EXTENSIONS, FORMATS
from edgetl.core.images.file_types import HEADER_BYTES, image_format
from edgetl.core.manifest import MANIFEST_NAME
from edgetl.data.scan_notes import Notes, Reason, log_notes
from edgetl.data.selection import NO_SELECTION, Selection
from edgetl.errors import DataError

# Deeper folders are reported and not read: such nesting is a mistake.
MAX_DEPTH = 64
# Thumbnails, indexes and trash folders: macOS, Windows, Synology, QNAP, Linux desktops, Python, Jupyter, version control.
SYSTEM_FOLDERS = frozenset({"system volume information"}).union(
    (
        "__macosx @eadir @recycle #recycle #snapshot $recycle.bin lost+found .thumbnails .thumbs @thumb .@__thumb __pycache__ .appledouble "
        ".ipynb_checkpoints .spotlight-v100 .trashes .fseventsd .temporaryitems .documentrevisions-v100 .trash .git .svn .hg .dvc .cache "
        "cvs"
    ).split()
)
SYSTEM_FILES = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", ".ds_store", "icon\r", ".localized", ".gitkeep", ".gitignore"})
# Raw camera files and whole-slide images have the signature of TIFF. A TIFF decoder would read their thumbnail.
_OTHER_TIFF = frozenset(
    ".3fr .arw .cr2 .dcr .dng .erf .iiq .kdc .mef .mos .nef .nrw .orf .pef .raf .rw2 .sr2 .srf .srw .svs .scn .bif .ndpi .vms .lsm".split()
)
# Unsupported formats with images, whatever their signature. A class with such files is reported, not ignored as "no images".
_OTHER_IMAGES = frozenset(
    (
        ".heic .heif .avif .gif .jp2 .j2k .jxl .psd .exr .hdr .dds .npy .npz .dcm .dicom .nii .mha .fits .svg .pdf .ico .icns .tga .pcx "
        ".ppm .pgm .pbm .pnm .raw .cr3 .czi .nd2 .mat .h5 .hdf5 .tfrecord .mp4 .avi .mov .zip .tar .gz .7z .rar"
    ).split()
)


@dataclass
class Folder:
    """Folder of the tree.

    Attributes:
        path: path from the data folder, through links.
        images: image files in the folder.
        folders: folders in it that may have images, sorted by name.
        unread: number of files in unsupported image formats, by suffix.
        others: number of other entries that were left out, without hidden and system files.
        problem: reason why the folder cannot be listed; empty if it was listed.
    """

    path: Path
    images: list[Path] = field(default_factory=list)
    folders: list[Folder] = field(default_factory=list)
    unread: Counter[str] = field(default_factory=Counter)
    others: int = 0
    problem: str = ""

    @property
    def name(self) -> str:
        """Name of the folder in Unicode normal form C."""
        return unicodedata.normalize("NFC", self.path.name)

    def files(self) -> Iterator[Path]:
        """Yield the image files in the folder and below it."""
        yield from self.images
        for folder in self.folders:
            yield from folder.files()

    @property
    def count(self) -> int:
        """Number of image files in the folder and below it."""
        return len(self.images) + sum(folder.count for folder in self.folders)

    def all_unread(self) -> Counter[str]:
        """Count files in unsupported formats in the folder and below it, by suffix."""
        return sum((folder.all_unread() for folder in self.folders), self.unread.copy())

    @property
    def is_empty(self) -> bool:
        """True if the folder has no entries, apart from hidden and system files."""
        return not (self.images or self.unread or self.others or self.problem) and all(folder.is_empty for folder in self.folders)


def list_images(root: Path, selection: Selection, notes: Notes) -> Folder:
    """List the image files below ``root``.

    Files are selected by suffix. Files with a missing or unknown suffix are selected by their first bytes. Linked folders are read last.
    A link to a folder above ``root``, or to a folder that is already read, is left out: it would list files twice or without end.

    Args:
        root: data folder.
        selection: patterns of files to use or to leave out.
        notes: receives the files that are left out, and the links.

    Raises:
        DataError: ``root`` cannot be listed.
    """
    walk = _Walk(root, selection, notes)
    tree = walk.read(root, "", depth=0)
    if tree.problem:
        raise DataError(f"{printable(root)} cannot be listed: {tree.problem}. Check its permissions.")
    walk.read_links()
    return tree


def find_images(folder: Path) -> list[Path]:
    """List the image files below ``folder``, sorted. Files that are left out are logged.

    Raises:
        DataError: ``folder`` cannot be listed.
    """
    notes = Notes()
    files = sorted(list_images(folder, NO_SELECTION, notes).files())
    log_notes(notes.result())
    return files


class _Walk:
    """State of a listing."""

    def __init__(self, root: Path, selection: Selection, notes: Notes) -> None:
        self.root = root
        self.selection = selection
        self.notes = notes
        real = Path(os.path.realpath(root))
        # A link to one of these would read the data folder again.
        self.seen = {key for folder in real.parents if (key := file_id(folder))}
        self.links: list[tuple[Folder, str, int]] = []

    def read(self, path: Path, relative: str, *, depth: int) -> Folder:
        """Return the tree below ``path``. Linked folders are read later, by ``read_links``.

        Args:
            path: folder to read.
            relative: its path relative to the data folder.
            depth: number of folders above it, up to the data folder.
        """
        folder = Folder(path)
        if depth > MAX_DEPTH:
            return self._unreadable(folder, relative, f"deeper than {MAX_DEPTH} folders")
        try:
            with os.scandir(path) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            return self._unreadable(folder, relative, error.strerror or str(error))
        if key := file_id(path):
            self.seen.add(key)
        for entry in entries:
            inside = f"{relative}/{entry.name}" if relative else entry.name
            if _is_folder(entry):
                self._take_folder(folder, entry, inside, depth)
            else:
                self._take_file(folder, entry, inside)
        return folder

    def read_links(self) -> None:
        """Read the linked folders, then the links in them."""
        for parent, relative, depth in self.links:  # the list grows during the loop
            path = parent.path / Path(relative).name
            key = file_id(path)
            if key is None or key in self.seen:
                self.notes.add("loop", relative)
                parent.others += 1
                continue
            self.notes.add("linked", f"{relative} -> {os.path.realpath(path)}")
            parent.folders.append(self.read(path, relative, depth=depth))
            parent.folders.sort(key=lambda folder: folder.path)

    def _unreadable(self, folder: Folder, relative: str, problem: str) -> Folder:
        folder.problem = problem
        if relative:
            self.notes.add("unreadable", f"{relative} ({problem})")
        return folder

    def _take_folder(self, parent: Folder, entry: os.DirEntry[str], relative: str, depth: int) -> None:
        if self.selection.excludes(relative):
            parent.others += 1
            self._leave_out("excluded", Path(entry.path), relative)
        elif (reason := _omitted_folder(entry)) is not None:
            if reason == "edgetl":
                parent.others += 1
            parent.folders += self._leave_out(reason, Path(entry.path), relative)
        elif entry.is_symlink():
            self.links.append((parent, relative, depth + 1))
        else:
            parent.folders.append(self.read(Path(entry.path), relative, depth=depth + 1))

    def _leave_out(self, reason: Reason, path: Path, relative: str) -> list[Folder]:
        """Count the files below ``path`` as left out. Return a folder with the files that ``--include`` selects, if there are any."""
        if path.is_symlink():  # files behind a link are neither counted nor read
            self.notes.add(reason, relative, by=f"{relative}/")
            return []
        kept = Folder(path)
        total = 0

        def unreadable(error: OSError) -> None:
            self.notes.add("unreadable", f"{os.path.relpath(error.filename, self.root)} ({error.strerror})")

        for parent, folders, files in os.walk(path, onerror=unreadable):
            folders.sort()
            for name in sorted(files):
                file = Path(parent, name)
                inside = f"{relative}/{file.relative_to(path).as_posix()}"
                if reason != "excluded" and self.selection.includes(inside) and not self.selection.excludes(inside):
                    kept.images.append(file)
                else:
                    total += 1
        if total:
            self.notes.add(reason, relative, count=total, by=f"{relative}/")
        return [kept] if kept.images else []

    def _take_file(self, folder: Folder, entry: os.DirEntry[str], relative: str) -> None:
        suffix = _suffix(entry.name)
        if self.selection.excludes(relative):
            folder.others += 1
            self.notes.add("excluded", relative, by=f"*{suffix}")
        elif self.selection.includes(relative):
            folder.images.append(Path(entry.path))
        elif (reason := _omitted_file(entry.name)) is not None:
            self.notes.add(reason, relative)
        elif suffix in EXTENSIONS:
            folder.images.append(Path(entry.path))
        else:
            self._take_by_content(folder, Path(entry.path), relative, suffix)

    def _take_by_content(self, folder: Folder, path: Path, relative: str, suffix: str) -> None:
        try:
            with open_plain(path) as file:
                found = image_format(file.read(HEADER_BYTES))
        except OSError as error:
            folder.others += 1
            self.notes.add("unreadable", f"{relative} ({error.strerror or error})")
            return
        if found in FORMATS and suffix not in _OTHER_TIFF:
            folder.images.append(path)
            self.notes.add("content", relative, by=suffix or "no suffix")
        elif found is not None or suffix in _OTHER_IMAGES or suffix in _OTHER_TIFF:
            folder.unread[suffix or str(found)] += 1
            self.notes.add("unsupported", relative, by=suffix or str(found))
        else:
            folder.others += 1
            self.notes.add("other", relative, by=suffix or "no suffix")


def _suffix(name: str) -> str:
    stem, _, ending = name.rpartition(".")
    return f".{ending.lower()}" if stem.strip(".") else ""


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle
        return False


def _omitted_folder(entry: os.DirEntry[str]) -> Reason | None:
    if entry.name.lower() in SYSTEM_FOLDERS:
        return "system"
    if entry.name.startswith("."):
        return "hidden"
    try:
        path = Path(entry.path)
        return "edgetl" if is_run(path) or (path / MANIFEST_NAME).is_file() else None
    except OSError:  # reported where the folder is listed
        return None


def _omitted_file(name: str) -> Reason | None:
    if name.lower() in SYSTEM_FILES or name.startswith("._"):
        return "system"
    return "hidden" if name.startswith(".") else None
