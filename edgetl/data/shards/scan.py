"""Scan of shards: classes, counts and splits, and a bounded number of images of each split. Memory does not grow with the images."""

from __future__ import annotations

import hashlib
import heapq
import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from edgetl.core.files.byte_ranges import ByteRange, range_path
from edgetl.core.files.names import printable
from edgetl.core.output.ownership import SHARD_INDEX_NAME
from edgetl.core.progress import Progress, silent
from edgetl.data.content.integrity import check_images
from edgetl.data.folder import BrokenImage, ImageFolder, Sample, check_broken
from edgetl.data.layout import Part
from edgetl.data.scan_notes import Notes, ScanNote, log_notes
from edgetl.data.shards.index import PARTS, ShardIndex, ShardSet, SplitRule, fraction, read_index
from edgetl.data.shards.members import Member, read_members
from edgetl.data.shards.names import find_shards
from edgetl.errors import DataError

# Largest number of images of each split that a run lists and evaluates. Of more, those with the smallest hashes are chosen.
MOST_LISTED = 5_000
# Training images of each class that are listed in any case.
LEAST_OF_CLASS = 10
MIN_CLASSES = 2
GROUPING = "field group of the shards; listed images only"

_Listed: TypeAlias = tuple[float, str, ByteRange, Member]


class _Smallest:
    """The images with the ``most`` smallest hashes: a sample that does not depend on the order or the number of shards."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._heap: list[_Listed] = []

    def add(self, place: float, member: Member) -> None:
        item = (-place, member.key, member.part, member)
        if len(self._heap) < self._most:
            heapq.heappush(self._heap, item)
        elif item[0] > self._heap[0][0]:
            heapq.heapreplace(self._heap, item)

    def members(self) -> list[Member]:
        return [member for *_, member in self._heap]


@dataclass
class _Scanned:
    """Counts and listed images of the shards that are read so far."""

    rule: SplitRule
    digest: hashlib._Hash = field(default_factory=hashlib.sha256)
    counts: Counter[tuple[Part, str]] = field(default_factory=Counter)
    train_counts: list[int] = field(default_factory=list)
    left_out: Notes = field(default_factory=Notes)
    listed: dict[Part, _Smallest] = field(default_factory=lambda: {part: _Smallest(MOST_LISTED) for part in PARTS})
    of_class: defaultdict[str, _Smallest] = field(default_factory=lambda: defaultdict(lambda: _Smallest(LEAST_OF_CLASS)))

    def add(self, member: Member) -> Part:
        """Count an image, and list it if its hash is small. Return its split."""
        label, part = member.annotation.label, self.rule.part_of(member.key, member.annotation)
        self.digest.update(f"{member.key}\0{label}\0{member.part.size}\0{part}\n".encode("utf-8", "surrogateescape"))
        self.counts[part, label] += 1
        place = fraction(f"listed {self.rule.seed} {member.key}")
        self.listed[part].add(place, member)
        if part == "train":
            self.of_class[label].add(place, member)
        return part


def scan_shards(
    data: Path, rule: SplitRule, *, labels: Mapping[str, str] | None = None, progress: Progress = silent
) -> tuple[ImageFolder, ShardSet]:
    """Scan the shards ``data``: read headers and labels of all images, and decode the listed ones.

    Args:
        data: pattern such as ``shards/{00000..00999}.tar``, one .tar file, or a folder that `edgetl pack` wrote.
        rule: rule of the splits.
        labels: class of each key, in place of the ``.cls`` members.
        progress: called after each shard.

    Returns:
        The listed images, with their splits, and the set of shards.

    Raises:
        DataError: shards are missing or damaged, an image has no label or an unknown class, there are fewer than two classes, or more than
            10 % of the listed images cannot be decoded.
    """
    files, scanned = find_shards(data), _Scanned(rule)
    index = read_index(files[0].parent)
    expected = {item.name: item.images for item in index.shards} if index else {}
    for done, shard in enumerate(files, start=1):
        scanned.digest.update(f"{shard.name}\0{shard.stat().st_size}\n".encode("utf-8", "surrogateescape"))
        parts = Counter(scanned.add(member) for member in read_members(shard, labels, notes=scanned.left_out))
        scanned.train_counts.append(parts["train"])
        _check_count(shard, expected.get(shard.name), sum(parts.values()))
        progress("reading shards", done, len(files))
    names, classes = _classes(data, {label for _, label in scanned.counts}, None if labels else index)
    counts = {part: sum(count for (found, _), count in scanned.counts.items() if found == part) for part in PARTS}
    trained = [0] * len(names)
    for (part, label), count in scanned.counts.items():
        trained[classes[label]] += count if part == "train" else 0
    files_trained, digest = tuple(scanned.train_counts), scanned.digest.hexdigest()
    found = ShardSet(str(data.absolute()), files, names, classes, rule, files_trained, tuple(trained), counts, digest, labels)
    _check(found, scanned.left_out.result())
    return _listed_images(scanned, found, progress), found


def _check_count(shard: Path, expected: int | None, images: int) -> None:
    """Compare the number of images with that of the index."""
    if expected not in (None, images):
        raise DataError(
            f"{printable(shard)} has {images} images, but {SHARD_INDEX_NAME} lists {expected}. Copy this shard and its index again."
        )


def _classes(data: Path, found: set[str], index: ShardIndex | None) -> tuple[tuple[str, ...], dict[str, int]]:
    """Return the class names, and the index of the class for each text of a label.

    Raises:
        DataError: the index does not have a class.
    """
    if index is None:
        numbers = all(label.isascii() and label.isdecimal() for label in found)
        labels = tuple(sorted(found, key=lambda label: (int(label), label)) if numbers else sorted(found))
        return labels, {label: place for place, label in enumerate(labels)}
    # `edgetl pack` writes indices. A class name that is a number is not another index.
    classes = {label: place for place, label in enumerate(index.labels)} | {str(place): place for place in range(len(index.labels))}
    if unknown := sorted(found - classes.keys()):
        raise DataError(
            f"{printable(data)} has labels that {SHARD_INDEX_NAME} does not have: {', '.join(map(printable, unknown[:5]))}. It has "
            f"{len(index.labels)} classes: {', '.join(index.labels[:10])}. Pack the images again."
        )
    return index.labels, classes


def _check(shards: ShardSet, left_out: Sequence[ScanNote]) -> None:
    """Check the number of classes, and that each class and split has images.

    Raises:
        DataError: a number is too small.
    """
    where = printable(shards.pattern)
    if not sum(shards.counts.values()):
        more = "".join(f" {note.describe()}" for note in left_out)
        raise DataError(f"{where} has no images. Each image is a file such as 0001.jpg, followed by its class in 0001.cls.{more}")
    if len(shards.labels) < MIN_CLASSES:
        raise DataError(f"{where} has images of one class only ({printable(shards.labels[0])}). A classifier needs at least 2 classes.")
    if missing := [label for label, count in zip(shards.labels, shards.class_counts, strict=True) if not count]:
        raise DataError(f"{where} has no training image of {', '.join(missing[:5])}. Add images, or lower --val and --test.")
    if not shards.counts["val"]:
        raise DataError(f"{where} has {shards.counts['train']} training and 0 validation images. Add images, or raise --val.")


def _listed_images(scanned: _Scanned, shards: ShardSet, progress: Progress) -> ImageFolder:
    """Decode the listed images, and return them as a folder. Those that cannot be decoded are left out."""
    root = Path(os.path.commonpath([path.parent for path in shards.files]))
    members = {range_path(member.part, member.name): (part, member) for part in PARTS for member in scanned.listed[part].members()}
    for smallest in scanned.of_class.values():
        members |= {range_path(member.part, member.name): ("train", member) for member in smallest.members()}
    checked = check_images(sorted(members), root, progress=progress)
    samples, broken = [], []
    for path in sorted(members):
        (part, member), result = members[path], checked[path]
        if result.content is None:
            broken.append(BrokenImage(path, result.reason))
        else:
            label, group = shards.classes[member.annotation.label], member.annotation.group
            samples.append(Sample(path, label, result.content, part, group=group, levels=result.levels, facts=result.facts))
    listed = Counter(sample.part for sample in samples)
    notes = (*scanned.left_out.result(), _note(shards, {part: listed[part] for part in PARTS}))
    log_notes(notes)
    grouping = GROUPING if any(sample.group for sample in samples) else ""
    folder = ImageFolder(root, shards.labels, tuple(samples), tuple(broken), notes=notes, grouping=grouping)
    check_broken(folder)
    return folder


def _note(shards: ShardSet, listed: dict[Part, int]) -> ScanNote:
    text = (
        f"{len(shards.files):,} shards: {shards.counts['train']:,} training images are streamed. {listed['val']:,} of "
        f"{shards.counts['val']:,} validation and {listed['test']:,} of {shards.counts['test']:,} test images are evaluated (limit: "
        f"{MOST_LISTED:,} each, chosen by hash). {listed['train']:,} training images are listed for calibration."
    )
    return ScanNote(reason="shards", used=True, count=len(shards.files), text=text)
