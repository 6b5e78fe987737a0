"""Bundle on disk: a folder with a manifest and the files that the manifest lists.

``Bundle.read`` returns the bytes that it verified. A later change of the file on disk does not reach the inference engine.
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

from edgetl.core.config import MAX_JSON_BYTES, parse_json, read_bytes
from edgetl.core.files.regular import open_plain
from edgetl.core.manifest import MANIFEST_NAME, SIGNATURE_NAME, BundleFile, Manifest, Variant, parents_of
from edgetl.errors import BundleError, IntegrityError, RunError

RUN_RECORD_NAME = "run.json"
MAX_SIGNATURE_BYTES = 10_000
# Suffix of transport files (``edgetl.device.transport``).
TRANSPORT_SUFFIX = ".edgetl"


@dataclass(frozen=True)
class Bundle:
    """Opened bundle: its folder and its manifest. Files are read and verified on demand.

    Attributes:
        path: folder of the bundle.
        manifest: content of the manifest.
        manifest_sha256: SHA-256 of the bytes that ``manifest`` was parsed from, 64 hex digits.
        signature: bytes of ``manifest.sig``, not checked; none without a signature.
    """

    path: Path
    manifest: Manifest
    manifest_sha256: str
    signature: bytes | None = None

    def variant(self, name: str) -> Variant:
        """Return the variant called ``name``.

        Raises:
            BundleError: the bundle has no such variant. The message lists its variants.
        """
        for variant in self.manifest.variants:
            if variant.name == name:
                return variant
        known = ", ".join(variant.name for variant in self.manifest.variants)
        raise BundleError(f"{self.path} has no variant {name!r}. Its variants: {known}.")

    def read(self, file: BundleFile) -> bytes:
        """Return the bytes of a file after a check of its size and SHA-256.

        Raises:
            IntegrityError: the file is missing, is not a regular file, or differs from the manifest.
        """
        path = self.path / file.path
        for parent in list(path.relative_to(self.path).parents)[:-1]:
            if (self.path / parent).is_symlink():
                raise IntegrityError(f"{self.path / parent} is a symbolic link. A bundle has only regular files. Copy it again.")
        try:
            stream = open_plain(path, follow_links=False)
        except OSError as error:
            raise IntegrityError(f"{path}: {error.strerror}, but the manifest lists it. Copy the bundle again.") from error
        with stream:
            status = os.fstat(stream.fileno())
            if status.st_nlink > 1:
                raise IntegrityError(f"{path} is a hard link. A bundle has only regular files. Copy it again.")
            if status.st_size != file.size_bytes:
                raise IntegrityError(f"{path} has {status.st_size} bytes, but the manifest lists {file.size_bytes}. Copy the bundle again.")
            data = stream.read(file.size_bytes + 1)
        if hashlib.sha256(data).hexdigest() != file.sha256:
            raise IntegrityError(f"{path} differs from the manifest (SHA-256). Copy the bundle again.")
        return data

    def seen_images(self) -> frozenset[int]:
        """Return the hash prefixes of the images used for training or model selection.

        A prefix is the first 8 bytes of the image's content hash, as an integer.
        """
        return frozenset(unpack_hashes(self.read(self.manifest.seen_images)).tolist())

    def check_closed(self) -> None:
        """Check that the folder has exactly the files that the manifest lists, the manifest, and optionally its signature.

        Raises:
            IntegrityError: files are missing or unlisted. The message lists some of them.
        """
        named = {file.path for file in self.manifest.all_files()} | {MANIFEST_NAME}
        folders = {f"{folder}/" for path in named for folder in parents_of(path)}
        found = set()
        for folder, subfolders, files in os.walk(self.path, onerror=_refuse_unreadable):
            names = [name if Path(folder, name).is_symlink() else f"{name}/" for name in subfolders] + files
            place = Path(folder).relative_to(self.path).as_posix()
            found |= {name if place == "." else f"{place}/{name}" for name in names}
        # A folder with the name of a listed file counts as a missing file.
        unlisted = {name for name in found - folders if name.removesuffix("/") not in named} - {SIGNATURE_NAME}
        for title, paths in (("unlisted", unlisted), ("missing", named - found)):
            if paths:
                shown = ", ".join(sorted(paths)[:5])
                raise IntegrityError(f"{self.path} has {len(paths)} {title} file(s): {shown}. Copy the bundle again.")


def open_bundle(path: str | os.PathLike[str]) -> Bundle:
    """Open a bundle folder. Check its manifest, and that no file is missing or unlisted.

    Raises:
        BundleError: ``path`` is not a bundle. For a run folder the message has the command that exports it.
        IntegrityError: files are missing or unlisted, or the manifest was changed.
    """
    return parse_bundle(Path(path), *read_manifest(path))


def read_manifest(path: str | os.PathLike[str]) -> tuple[bytes, bytes | None]:
    """Read the manifest of a bundle folder and its signature, without parsing them.

    Returns:
        the bytes of ``manifest.json``, and those of ``manifest.sig``; none without a signature.

    Raises:
        BundleError: ``path`` is not a bundle, or one of the files is too large.
        IntegrityError: one of the files is a link.
    """
    folder = Path(path)
    if not folder.exists():
        raise BundleError(f"{folder} does not exist. Give the folder that `edgetl export` wrote.")
    if folder.is_file() and folder.suffix == TRANSPORT_SUFFIX:
        raise BundleError(f"{folder} is a transport file, not a bundle folder. Unpack it: unzip {folder} -d BUNDLE")
    if not folder.is_dir():
        raise BundleError(f"{folder} is a file. Give the folder that `edgetl export` wrote.")
    if not (folder / MANIFEST_NAME).exists():
        if is_run(folder):
            raise BundleError(f"{folder} is a run, not a bundle. Export it: edgetl export {folder} --out BUNDLE")
        raise BundleError(f"{folder} is not a bundle: it has no {MANIFEST_NAME}. Give the folder that `edgetl export` wrote.")
    manifest = _read_unlinked(folder / MANIFEST_NAME, MAX_JSON_BYTES)
    signed = os.path.lexists(folder / SIGNATURE_NAME)
    return manifest, _read_unlinked(folder / SIGNATURE_NAME, MAX_SIGNATURE_BYTES) if signed else None


def parse_bundle(folder: Path, data: bytes, signature: bytes | None) -> Bundle:
    """Return the bundle in ``folder`` with the manifest ``data``, after a check that no file is missing or unlisted.

    Args:
        folder: folder of the bundle.
        data: bytes of the manifest, as ``read_manifest`` returned them.
        signature: bytes of its signature. They are kept, not checked (``edgetl.device.signature.verified_bundle``).

    Raises:
        BundleError: the manifest is not valid.
        IntegrityError: files are missing or unlisted, or the manifest was changed.
    """
    bundle = Bundle(folder, parse_manifest(data, str(folder / MANIFEST_NAME)), hashlib.sha256(data).hexdigest(), signature)
    bundle.check_closed()
    return bundle


def parse_manifest(data: bytes, name: str) -> Manifest:
    """Parse the bytes of a manifest. ``name`` is the file in messages.

    Raises:
        BundleError: it is not a valid manifest.
        IntegrityError: it has other bytes around the JSON object.
    """
    manifest = parse_json(data, Manifest, BundleError, name=name)
    # JSON parsers ignore outer white space: a file without its last byte would pass as the same manifest.
    if not (data.startswith(b"{") and data.endswith(b"}\n")):
        raise IntegrityError(f"{name} was changed: it must start with a brace and end with a brace and a newline. Copy the bundle again.")
    return manifest


def _read_unlinked(path: Path, max_bytes: int) -> bytes:
    if path.is_symlink():
        raise IntegrityError(f"{path} is a symbolic link. A bundle has only regular files. Copy it again.")
    if path.is_file() and path.stat().st_nlink > 1:
        raise IntegrityError(f"{path} is a hard link. A bundle has only regular files. Copy it again.")
    return read_bytes(path, BundleError, max_bytes=max_bytes)


def _refuse_unreadable(error: OSError) -> NoReturn:
    raise IntegrityError(f"{error.filename}: {error.strerror}. All folders of a bundle must be readable. Copy the bundle again.")


def is_run(path: str | os.PathLike[str]) -> bool:
    """Return true if ``path`` is a run folder, that is, it has a ``run.json``."""
    return Path(path, RUN_RECORD_NAME).is_file()


def check_run_folder(path: str | os.PathLike[str]) -> Path:
    """Return ``path`` if it is a run folder.

    Raises:
        RunError: it is not a run folder. The message reports whether it is a bundle.
    """
    folder = Path(path)
    if not is_run(folder):
        if (folder / MANIFEST_NAME).is_file():
            raise RunError(f"{folder} is a bundle, not a run. This command needs the folder that `edgetl train` wrote.")
        problem = "has no run.json" if folder.is_dir() else "does not exist"
        raise RunError(f"{folder} is not a run: it {problem}. Give the folder that `edgetl train` wrote.")
    return folder


def describe_file(root: Path, path: Path) -> BundleFile:
    """Return the manifest entry (path, size, SHA-256) of a file below ``root``."""
    data = path.read_bytes()
    return BundleFile(path=path.relative_to(root).as_posix(), size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def hash_prefix(sha256: str) -> int:
    """Return the first 8 bytes of a hex digest as an integer. They are enough to recognize an image."""
    return int(sha256[:16], 16)


def pack_prefixes(prefixes: Set[int]) -> bytes:
    """Encode hash prefixes (see ``hash_prefix``) as sorted little-endian 64-bit integers."""
    return np.array(sorted(prefixes), dtype="<u8").tobytes()


def unpack_hashes(data: bytes) -> NDArray[np.uint64]:
    """Decode the bytes of ``pack_prefixes`` to uint64 ``[n]``.

    Raises:
        IntegrityError: the length is not a multiple of 8.
    """
    if len(data) % 8:
        raise IntegrityError("the list of seen images is damaged: its length is not a multiple of 8 bytes.")
    return np.frombuffer(data, dtype="<u8").astype(np.uint64)
