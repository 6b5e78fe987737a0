"""Writer of shards: the images of a folder, in a mixed order, as tar archives in the WebDataset layout. Image files are not changed."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from edgetl.core.files.names import printable
from edgetl.core.images.decode import EXTENSIONS, read_image_file
from edgetl.core.images.file_types import HEADER_BYTES, image_format
from edgetl.core.output.folders import Inputs, new_folder
from edgetl.core.output.ownership import SHARD_INDEX_NAME
from edgetl.core.progress import Progress, silent
from edgetl.data.audit.copies import copy_sets
from edgetl.data.folder import ImageFolder, Part, Sample
from edgetl.data.shards.index import ShardFile, ShardIndex
from edgetl.data.shards.members import FACTS_SUFFIX, LABEL_SUFFIX
from edgetl.data.split import is_unclear, split, units_of
from edgetl.errors import ConfigError

_log = logging.getLogger(__name__)

IMAGES_PER_SHARD = 1_000
# Digits of the number in the name of a shard.
_DIGITS = 5


def pack_shards(
    folder: ImageFolder,
    out: Path,
    *,
    images_per_shard: int = IMAGES_PER_SHARD,
    inputs: Inputs,
    overwrite: bool = False,
    progress: Progress = silent,
) -> ShardIndex:
    """Write the images of a scanned folder as shards, with their index ``shards.json``.

    The order of the images depends on their contents only. The classes are therefore mixed, and the same images give the same bytes. The
    key of an image is the start of its content hash. Its JSON has its file, its group and its split of a ready-made split. Copies of an
    image (re-encoded, resized, mirrored or rotated) form a group, which includes the groups of these images.

    Args:
        folder: images of a classification task.
        out: folder to write.
        images_per_shard: number of images in each shard but the last.
        inputs: paths that the command reads, by their names in messages.
        overwrite: replace a folder of shards that edgetl wrote.
        progress: called during the search for copies, and after each shard.

    Raises:
        ConfigError: the task is not classification, or ``out`` exists.
        ImageError: an image cannot be read any more.
        StorageError: the shards cannot be written.
    """
    if folder.task != "classification":
        raise ConfigError(f"shards are for classification, and {printable(folder.root)} has labels for {folder.task}.")
    members = _members(folder, progress)
    with new_folder(out, inputs=inputs, overwrite=overwrite) as staging:
        shards = []
        starts = range(0, len(members), images_per_shard)
        for number, start in enumerate(starts):
            shards.append(_write_shard(staging / f"{number:0{_DIGITS}d}.tar", members[start : start + images_per_shard]))
            progress("writing shards", number + 1, len(starts))
        index = _index(folder, members, shards)
        (staging / SHARD_INDEX_NAME).write_text(index.model_dump_json(indent=1) + "\n", "utf-8", newline="\n")
    return index


_Member = tuple[str, Sample, bytes]


def _members(folder: ImageFolder, progress: Progress) -> list[_Member]:
    """Return key, image and JSON of each member, in the order of the shards."""
    parts = _parts(folder, progress)
    groups, unclear = _groups(folder, progress)
    seen, members = Counter[str](), []
    for sample in sorted(folder.samples, key=lambda item: (item.content, item.path)):
        if sample.path not in parts:
            continue
        seen[sample.content] += 1
        number = seen[sample.content]
        key = sample.content[:16] + (f"-{number}" if number > 1 else "")
        part = parts[sample.path] or ("train" if sample.path in unclear else None)
        facts = {"file": printable(sample.path.relative_to(folder.root)), "group": groups[sample.path], "split": part}
        members.append((key, sample, json.dumps({name: value for name, value in facts.items() if value}).encode()))
    return members


def _groups(folder: ImageFolder, progress: Progress) -> tuple[dict[Path, str], set[Path]]:
    """Return the group of each image, empty for an image without one, and the images that are for training only.

    Images of a group and copies of an image are in one group, as in the splits of a folder. Groups with a common image therefore become
    one, with the first of their names. A group that has an image with two labels, or copies with different labels, cannot measure accuracy.
    """
    sets = copy_sets(folder.samples, progress=progress)
    groups: dict[Path, str] = {}
    unclear: set[Path] = set()
    for unit in units_of(folder.samples, sets):
        paths, content, names = [sample.path for sample in unit], unit[0].content, {sample.group for sample in unit if sample.group}
        groups |= dict.fromkeys(paths, min(names, default=sets.get(content, content)[:16] if len(unit) > 1 else ""))
        if is_unclear(unit) or (not names and len({sample.label for sample in unit}) > 1):
            unclear.update(paths)
    return groups, unclear


def _index(folder: ImageFolder, members: Sequence[_Member], shards: Sequence[ShardFile]) -> ShardIndex:
    counts = Counter(folder.labels[sample.label] for _, sample, _ in members)
    return ShardIndex(labels=folder.labels, counts={label: counts[label] for label in folder.labels}, shards=tuple(shards))


def _parts(folder: ImageFolder, progress: Progress) -> dict[Path, Part | None]:
    """Return the ready-made split of each image; none without them. Copies of an image in another split are left out."""
    if not any(sample.part for sample in folder.samples):
        return dict.fromkeys((sample.path for sample in folder.samples), None)
    splits = split(folder, progress=progress)
    if splits.leaked:
        _log.warning(
            "%d of %d test images are copies of training images, such as %s",
            len(splits.leaked),
            len(splits.test),
            printable(splits.leaked[0]),
        )
    names: tuple[Part, ...] = ("train", "val", "test")
    return {sample.path: name for name in names for sample in splits.part(name)}


def _write_shard(path: Path, members: Sequence[_Member]) -> ShardFile:
    """Write a shard, and return its entry of the index."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for key, sample, facts in members:
            for suffix, data in _contents(sample, facts):
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size, info.mode = len(data), 0o644
                archive.addfile(info, io.BytesIO(data))
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return ShardFile(name=path.name, images=len(members), size_bytes=path.stat().st_size, sha256=digest)


def _contents(sample: Sample, facts: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield suffix and bytes of the members of an image."""
    data, suffix = read_image_file(sample.path), sample.path.suffix.lower()
    yield (suffix[1:] if suffix in EXTENSIONS else str(image_format(data[:HEADER_BYTES])).lower()), data
    yield LABEL_SUFFIX, str(sample.label).encode()
    yield FACTS_SUFFIX, facts
