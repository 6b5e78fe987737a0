"""Tar shards and Parquet files with real small images."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

from tests.device.bundles import image


def colored(number: int) -> bytes:
    """Return a PNG file whose color depends on ``number``."""
    return image((number * 37 % 256, number * 91 % 256, number * 53 % 256))


def add_file(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    """Add a regular file to a tar archive."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def write_shard(path: Path, files: Mapping[str, bytes]) -> Path:
    """Write a tar shard with these files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            add_file(archive, name, data)
    return path


def write_shards(folder: Path, *, shards: int, images: int) -> list[Path]:
    """Write tar shards in the WebDataset layout, each with ``images`` images and their classes."""
    found = []
    for shard in range(shards):
        files = {}
        for index in range(images):
            files[f"{shard:02d}/{index:04d}.png"] = colored(shard * images + index)
            files[f"{shard:02d}/{index:04d}.cls"] = b"1"
        found.append(write_shard(folder / f"{shard:02d}.tar", files))
    return found
