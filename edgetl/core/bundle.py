"""Bundle on disk: a folder with a manifest, and no file that the manifest does not list.

Reading a file returns bytes that were hashed, so that what was verified is what the engine gets, whatever happens to the folder
in between.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from edgetl.core.config import parse_json, read_bytes
from edgetl.core.files.regular import open_plain
from edgetl.core.manifest import MANIFEST_NAME, BundleFile, Manifest, Variant, parents_of
from edgetl.errors import BundleError, IntegrityError, RunError

RUN_RECORD_NAME = "run.json"


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: its folder and its manifest. Files are read and checked on demand."""

    path: Path
    manifest: Manifest

    def variant(self, name: str) -> Variant:
        """The variant called ``name``.

        Raises:
            BundleError: there is none; the text lists those there are.
        """
        for variant in self.manifest.variants:
            if variant.name == name:
                return variant
        known = ", ".join(variant.name for variant in self.manifest.variants)
        raise BundleError(f"{self.path} has no variant {name!r}; it has {known}.")

    def read(self, file: BundleFile) -> bytes:
        """The bytes of one file, after comparing size and SHA-256 with the manifest.

        Raises:
            IntegrityError: missing, not a plain file, or not the file that the manifest names.
        """
        path = self.path / file.path
        for parent in list(path.relative_to(self.path).parents)[:-1]:
            if (self.path / parent).is_symlink():
                raise IntegrityError(f"{self.path / parent} is a symbolic link; a bundle holds plain files only. Install it again.")
        try:
            stream = open_plain(path, follow_links=False)
        except OSError as error:
            raise IntegrityError(f"{path}: {error.strerror}, though the manifest names it. Copy or install the bundle again.") from error
        with stream:
            status = os.fstat(stream.fileno())
            if status.st_nlink > 1:
                raise IntegrityError(f"{path} is not a plain file of its own (hard link); copy or install the bundle again.")
            if status.st_size != file.size_bytes:
                raise IntegrityError(
                    f"{path} has {status.st_size} bytes, the manifest says {file.size_bytes}. Copy or install the bundle again."
                )
            data = stream.read(file.size_bytes + 1)
        if hashlib.sha256(data).hexdigest() != file.sha256:
            raise IntegrityError(f"{path} is not the file that the manifest names (SHA-256 differs). Install the bundle again.")
        return data

    def seen_images(self) -> frozenset[int]:
        """The first 8 bytes of the content hash of every image that the model was trained or selected on, as integers."""
        return frozenset(unpack_hashes(self.read(self.manifest.seen_images)).tolist())

    def check_closed(self) -> None:
        """Refuse a bundle with a file or folder that the manifest does not name, or without one that it names.

        Raises:
            IntegrityError: naming the files.
        """
        named = {file.path for file in self.manifest.all_files()} | {MANIFEST_NAME}
        folders = {f"{folder}/" for path in named for folder in parents_of(path)}
        found = set()
        for folder, subfolders, files in os.walk(self.path, onerror=_refuse_unreadable):
            names = [name if Path(folder, name).is_symlink() else f"{name}/" for name in subfolders] + files
            place = Path(folder).relative_to(self.path).as_posix()
            found |= {name if place == "." else f"{place}/{name}" for name in names}
        # A folder in the place of a file is a missing file.
        unlisted = {name for name in found - folders if name.removesuffix("/") not in named}
        for title, paths in (("unlisted", unlisted), ("missing", named - found)):
            if paths:
                shown = ", ".join(sorted(paths)[:5])
                raise IntegrityError(f"{self.path} has {len(paths)} {title} file(s): {shown}. Copy or install the bundle again.")


def open_bundle(path: str | os.PathLike[str]) -> Bundle:
    """Open the bundle folder ``path`` and check its manifest and that no file is missing or added.

    Raises:
        BundleError: not a bundle; for a run folder the text contains the command that exports it.
        IntegrityError: files are missing or added.
    """
    folder = Path(path)
    if not folder.exists():
        raise BundleError(f"{folder} does not exist; give the folder that `edgetl export` wrote.")
    if not folder.is_dir():
        raise BundleError(f"{folder} is a file; give the folder that `edgetl export` wrote.")
    if not (folder / MANIFEST_NAME).exists():
        if is_run(folder):
            raise BundleError(f"{folder} is a run, not a bundle. Make one with: edgetl export {folder} --out BUNDLE")
        raise BundleError(f"{folder} is not a bundle: it has no {MANIFEST_NAME}. Give the folder that `edgetl export` wrote.")
    if (folder / MANIFEST_NAME).is_symlink():
        raise IntegrityError(f"{folder / MANIFEST_NAME} is a symbolic link; a bundle holds plain files only. Install it again.")
    if (folder / MANIFEST_NAME).is_file() and (folder / MANIFEST_NAME).stat().st_nlink > 1:
        raise IntegrityError(f"{folder / MANIFEST_NAME} is not a plain file of its own (hard link); copy or install the bundle again.")
    bundle = Bundle(folder, _read_manifest(folder / MANIFEST_NAME))
    bundle.check_closed()
    return bundle


def _read_manifest(path: Path) -> Manifest:
    data = read_bytes(path, BundleError)
    manifest = parse_json(data, Manifest, BundleError, name=str(path))
    # JSON parsers ignore white space at both ends, so a file without its last byte would be the same manifest.
    if not (data.startswith(b"{") and data.endswith(b"}\n")):
        raise IntegrityError(f"{path} was changed: it must begin with a brace, and end with a brace and a newline. Install it again.")
    return manifest


def _refuse_unreadable(error: OSError) -> NoReturn:
    raise IntegrityError(f"{error.filename}: {error.strerror}; a bundle's folders must be readable. Copy or install the bundle again.")


def is_run(path: str | os.PathLike[str]) -> bool:
    """True if ``path`` is a run folder: it has a run record."""
    return Path(path, RUN_RECORD_NAME).is_file()


def check_run_folder(path: str | os.PathLike[str]) -> Path:
    """``path``, which must look like a run.

    Raises:
        RunError: it does not; a bundle is recognized and the text reports it.
    """
    folder = Path(path)
    if not is_run(folder):
        if (folder / MANIFEST_NAME).is_file():
            raise RunError(f"{folder} is a bundle, not a run; this command needs the folder that `edgetl train` wrote.")
        what = "has no run.json" if folder.is_dir() else "does not exist"
        raise RunError(f"{folder} is not a run: it {what}. Give the folder that `edgetl train` wrote.")
    return folder


def describe_file(root: Path, path: Path) -> BundleFile:
    """The manifest's entry for a file below ``root``."""
    data = path.read_bytes()
    return BundleFile(path=path.relative_to(root).as_posix(), size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def hash_prefix(sha256: str) -> int:
    """The first 8 bytes of a hex digest: enough to recognize an image, at 8 bytes each."""
    return int(sha256[:16], 16)


def pack_prefixes(prefixes: Set[int]) -> bytes:
    """Sorted 8-byte prefixes, as ``hash_prefix`` gives them, little-endian."""
    return np.array(sorted(prefixes), dtype="<u8").tobytes()


def unpack_hashes(data: bytes) -> NDArray[np.uint64]:
    """The inverse of ``pack_prefixes``.

    Raises:
        IntegrityError: the length is not a multiple of 8.
    """
    if len(data) % 8:
        raise IntegrityError("the list of seen images is damaged: its length is not a multiple of 8 bytes.")
    return np.frombuffer(data, dtype="<u8").astype(np.uint64)
