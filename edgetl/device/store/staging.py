"""Staging of a release: copy a bundle into a temporary folder of the store, flush it to the disk, verify it, and rename it.

A release folder is complete as soon as it has its final name. Its deletion begins with the manifest.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from edgetl.core.bundle import Bundle, parse_bundle, read_manifest
from edgetl.core.files.atomic import storage_error
from edgetl.core.files.platforms import flush_folder
from edgetl.core.manifest import MANIFEST_NAME, SIGNATURE_NAME
from edgetl.core.output.folders import flush_tree
from edgetl.core.output.locks import locked
from edgetl.core.store.releases import release_of
from edgetl.core.store.state import RELEASES_NAME, TUNING_NAME, ReleaseRecord
from edgetl.errors import BundleError, InstallError, StorageError

DOWNLOADS_NAME = "downloads"
_STAGING_MARK = ".staging-"
# Space for folders, state and self-test, in addition to the files of the bundle.
_SPARE_BYTES = 1_000_000


@contextmanager
def install_lock(store: Path) -> Iterator[None]:
    """Hold the lock of installation and cleanup. It creates the folders of the store, and removes temporary folders of killed processes.

    Raises:
        InstallError: another process holds the lock.
        StorageError: the store cannot be written.
    """
    try:
        for folder in (store, store / RELEASES_NAME, store / TUNING_NAME, store / DOWNLOADS_NAME):
            if not folder.is_dir():
                folder.mkdir(parents=folder == store)
                flush_folder(folder.parent)
        holder = locked(store / "install")
        holds = holder.__enter__()
    except OSError as error:
        raise storage_error(store, error) from error
    try:
        if not holds:
            raise InstallError(f"another process installs a release into {store}, or removes releases. Wait until it ends.")
        remove_temporary(store)
        yield
    finally:
        holder.__exit__(None, None, None)


@contextmanager
def staging_folder(store: Path) -> Iterator[Path]:
    """Yield the path of a folder to create. It is removed at the end, unless it was renamed."""
    folder = store / RELEASES_NAME / f"{_STAGING_MARK}{secrets.token_hex(4)}"
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check_space(store: Path, size_bytes: int) -> None:
    """Check that the disk of the store has space for ``size_bytes`` more bytes.

    Raises:
        StorageError: there is too little space.
    """
    free = shutil.disk_usage(store).free
    needed = size_bytes + _SPARE_BYTES
    if free < needed:
        raise StorageError(
            f"{store} has {free / 1e6:.1f} MB of free space, and the installation needs {needed / 1e6:.1f} MB. Nothing was written. Free "
            f"some space, or remove earlier releases: edgetl gc --keep 1 --store {store}"
        )


def copy_bundle(source: Path, folder: Path) -> None:
    """Copy a bundle into a new folder with permissions 0700. Each file is verified while it is read.

    Raises:
        BundleError: the source is not a bundle, or a file differs from the manifest.
        StorageError: the folder cannot be written.
    """
    manifest, signature = read_manifest(source)
    bundle = parse_bundle(source, manifest, signature)
    try:
        folder.mkdir(mode=0o700)
        _create(folder / MANIFEST_NAME, manifest)
        if signature is not None:
            _create(folder / SIGNATURE_NAME, signature)
        for file in bundle.manifest.all_files():
            (folder / file.path).parent.mkdir(parents=True, exist_ok=True)
            _create(folder / file.path, bundle.read(file))
    except OSError as error:
        raise storage_error(folder, error) from error


def flush(folder: Path) -> None:
    """Flush a staged bundle to the disk.

    Raises:
        StorageError: the system reports an error. The data on the disk is then undefined.
    """
    try:
        flush_tree(folder)
    except OSError as error:
        raise storage_error(folder, error) from error


def read_from_disk(bundle: Bundle) -> None:
    """Verify the flushed files of a bundle, after a request to the system to forget its cached copies.

    Raises:
        IntegrityError: a file differs from the manifest.
    """
    for file in bundle.manifest.all_files():
        if hasattr(os, "posix_fadvise"):
            with suppress(OSError), open(bundle.path / file.path, "rb") as stream:
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        bundle.read(file)


def damage(store: Path, record: ReleaseRecord) -> str:
    """Return the first difference of an installed release from its manifest; empty if it is complete."""
    try:
        bundle = release_of(store, record).open()
        for file in bundle.manifest.all_files():
            bundle.read(file)
    except BundleError as error:
        return str(error)
    return ""


def publish(folder: Path, store: Path, record: ReleaseRecord) -> None:
    """Rename a staged folder to its final name. A complete release with this name is kept, and a damaged one is replaced.

    Raises:
        StorageError: the folder cannot be renamed, or the file system lost its files.
    """
    target = release_of(store, record)
    try:
        if target.path.exists():
            if not damage(store, record):
                return
            remove_release(target.path)
        os.rename(folder, target.path)
        flush_folder(target.path.parent)
        target.open()
    except OSError as error:
        raise storage_error(target.path, error) from error
    except BundleError as error:
        raise StorageError(
            f"the file system of {store} lost files when a folder was renamed: {error} Use another file system: --store DIR."
        ) from error


def remove_release(folder: Path) -> None:
    """Remove a release folder, its manifest first. A folder without a manifest is not a release, and the next cleanup removes it.

    A rename to a temporary name is not possible in each case: overlayfs does not rename a folder of the image below it.

    Raises:
        OSError: the folder cannot be removed.
    """
    if folder.is_dir() and not folder.is_symlink():
        (folder / MANIFEST_NAME).unlink(missing_ok=True)
        flush_folder(folder)
        shutil.rmtree(folder)
    else:
        folder.unlink()


def remove_temporary(store: Path) -> None:
    """Remove the temporary folders of killed processes. Call it within ``install_lock``.

    Raises:
        StorageError: a folder cannot be removed.
    """
    try:
        for path in list((store / RELEASES_NAME).iterdir()):
            if path.name.startswith(_STAGING_MARK):
                shutil.rmtree(path)
    except OSError as error:
        raise storage_error(store, error) from error


def _create(path: Path, data: bytes) -> None:
    with open(path, "xb") as file:
        file.write(data)
