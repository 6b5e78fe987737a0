"""Stores on other file systems: FAT, overlayfs of container images, several disks, and network file systems (D13)."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgetl.core.store import active_release
from edgetl.device.store.cleanup import clean
from edgetl.device.store.config import InstallConfig
from edgetl.device.store.install import install
from edgetl.device.store.status import confirm, read_status, roll_back
from edgetl.device.transport import pack
from edgetl.errors import StorageError
from tests.device.bundles import pass_self_test, release_in_use, write_bundle
from tests.disks import mounted, small_disk


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgetl.device.store.install.self_test", pass_self_test)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Bundles of the releases 1 to 6."""
    root = tmp_path_factory.mktemp("bundles")
    return {number: write_bundle(root / str(number), number) for number in range(1, 7)}


@pytest.fixture(params=[("vfat", "mkfs.vfat"), ("exfat-fuse", "mkfs.exfat")], ids=["FAT", "exFAT"])
def fat(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """File system of USB sticks: no links, and names that do not differ in case."""
    kind, make = request.param
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(64_000_000)
    if not shutil.which(make) or subprocess.run([make, str(image)], capture_output=True, check=False).returncode:
        pytest.skip(f"{make} is not installed (Debian packages dosfstools, exfatprogs)")
    reason = f"mounting {kind} needs root on Linux, and a kernel with vfat or the Debian package exfat-fuse"
    with mounted(tmp_path / "fat", "-t", kind, "-o", "loop", image, reason=reason) as folder:
        yield folder


@pytest.fixture
def overlay(tmp_path: Path) -> Iterator[Path]:
    """Overlay of a writable layer over an image. Files below ``lower`` are the image."""
    with small_disk(tmp_path / "layers", "8m") as layers:
        for name in ("lower", "upper", "work"):
            (layers / name).mkdir()
        yield layers


def _mount_overlay(layers: Path) -> Iterator[Path]:
    folders = f"lowerdir={layers}/lower,upperdir={layers}/upper,workdir={layers}/work"
    with mounted(layers.parent / "merged", "-t", "overlay", "-o", folders, "overlay") as folder:
        yield folder


def _use(store: Path, bundles: dict[int, Path], work: Path) -> None:
    """Use a store: updates, a rollback, a damaged release, cleanup."""
    for number in (1, 2, 3, 4):
        install(str(bundles[number]), store)
        confirm(store)
    pack(bundles[5], work / "5.edgetl")
    install(str(work / "5.edgetl"), store)
    assert release_in_use(store) == 5
    roll_back(store)
    assert release_in_use(store) == 4
    install(str(bundles[6]), store)
    (active_release(store).path / "card.md").write_text("changed")
    install(str(bundles[6]), store)
    assert read_status(store).damaged == ()
    (store / "state.json").write_bytes(b"")
    assert release_in_use(store) == 6
    clean(store, keep=1)
    _check(store, 6)


def _check(store: Path, release: int) -> None:
    """Check that the store has exactly one release, and no temporary files."""
    assert release_in_use(store) == release
    assert [path.name for path in (store / "releases").iterdir()] == [active_release(store).id]
    assert not any(path.name.startswith(".edgetl-partial") for path in store.iterdir())


def test_a_store_works_on_fat(fat: Path, bundles: dict[int, Path], tmp_path: Path) -> None:
    _use(fat / "store", bundles, tmp_path)


def test_a_store_works_on_overlayfs(overlay: Path, bundles: dict[int, Path], tmp_path: Path) -> None:
    for folder in _mount_overlay(overlay):
        _use(folder / "store", bundles, tmp_path)


def test_a_store_in_the_image_of_a_container_is_updated_and_cleaned(overlay: Path, bundles: dict[int, Path], tmp_path: Path) -> None:
    """overlayfs does not rename the folders of the image (EXDEV)."""
    for number in (1, 2, 3):
        install(str(bundles[number]), overlay / "lower/store")
        confirm(overlay / "lower/store")
    (active_release(overlay / "lower/store").path / "card.md").write_text("changed")
    for folder in _mount_overlay(overlay):
        store = folder / "store"
        install(str(bundles[3]), store)
        assert read_status(store).damaged == ()
        roll_back(store)
        assert release_in_use(store) == 2
        install(str(bundles[3]), store, InstallConfig(allow_downgrade=True))
        confirm(store)
        install(str(bundles[4]), store)
        assert clean(store, keep=1).removed
        _check(store, 4)


def test_the_releases_of_a_store_may_be_on_another_disk(bundles: dict[int, Path], tmp_path: Path) -> None:
    store = tmp_path / "store"
    (store / "releases").mkdir(parents=True)
    with small_disk(store / "releases", "8m"):
        _use(store, bundles, tmp_path)


def test_a_file_system_that_loses_renamed_files_is_refused(
    bundles: dict[int, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fusefat 0.1 renames a folder without its files."""
    install(str(bundles[1]), tmp_path / "store")

    def rename(source: Path, target: Path) -> None:
        shutil.rmtree(source)
        target.mkdir()

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(StorageError, match=r"lost files when a folder was renamed: .* has no manifest\.json.* Use another file system"):
        install(str(bundles[2]), tmp_path / "store")
    assert release_in_use(tmp_path / "store") == 1


def test_a_store_works_without_locks_and_without_flushing_of_folders(
    bundles: dict[int, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some network and FUSE file systems return these errors."""
    flush = os.fsync

    def flush_files_only(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        flush(descriptor)

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(os, "fsync", flush_files_only)
    monkeypatch.setattr(fcntl, "lockf", refuse)
    _use(tmp_path / "store", bundles, tmp_path)
