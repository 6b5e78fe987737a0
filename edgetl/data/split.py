"""Train, validation and test splits: deterministic, stratified, with copies of an image in one split."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgetl.core.files.names import printable
from edgetl.core.progress import Progress, silent
from edgetl.data.audit.copies import copy_sets
from edgetl.data.folder import ImageFolder, Part, Sample
from edgetl.data.scan_notes import EXAMPLES, ScanNote, log_notes
from edgetl.data.shards.index import ShardSet
from edgetl.errors import ConfigError


@dataclass(frozen=True)
class LabelConflict:
    """Copies of an image that have different labels."""

    paths: tuple[str, ...]
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Splits:
    """Disjoint train, validation and test splits of a folder.

    Attributes:
        folder: scanned folder.
        train, val, test: samples of each split. ``train`` is for training, ``val`` for every selection, ``test`` for reports only.
        cross_validated: true if cross-validation on ``train`` replaces ``val``, which is empty.
        conflicts: images with several labels. Their copies are only in ``train``.
        moved: copies of an image that were dropped from a ready-made split, because another split has the image.
        excluded: validation and test images that are in no split, because a run that the weights come from used them.
        leaked: test images of ready-made splits that are copies of training images (re-encoded, resized, mirrored or rotated).
        shards: shards of a sharded training; none for a folder. Training streams them. ``train``, ``val`` and ``test`` are then a sample.
    """

    folder: ImageFolder
    train: tuple[Sample, ...]
    val: tuple[Sample, ...]
    test: tuple[Sample, ...]
    conflicts: tuple[LabelConflict, ...] = ()
    moved: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    leaked: tuple[str, ...] = ()
    cross_validated: bool = False
    shards: ShardSet | None = None

    @property
    def validation(self) -> tuple[Sample, ...]:
        """Samples for every selection: ``val``, or ``train`` if the splits are cross-validated."""
        return self.train if self.cross_validated else self.val

    @property
    def notes(self) -> tuple[ScanNote, ...]:
        """Notes of the scan, and a note on copies of images that were dropped."""
        return (*self.folder.notes, *_copies(self.moved))

    @property
    def source(self) -> Path:
        """Folder of the images, or pattern of the shards."""
        return Path(self.shards.pattern) if self.shards else self.folder.root

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over the content and labels of all images. Shards: over names, keys, labels and sizes."""
        return self.shards.digest if self.shards else self.folder.fingerprint()

    @property
    def counts(self) -> dict[Part, int]:
        """Number of training images, and of evaluated validation and test images."""
        return {"train": self.shards.counts["train"] if self.shards else len(self.train), "val": len(self.val), "test": len(self.test)}

    def part(self, name: Part) -> tuple[Sample, ...]:
        """Return the samples of a split."""
        return {"train": self.train, "val": self.val, "test": self.test}[name]


def split(
    folder: ImageFolder, *, seed: int = 0, val: float = 0.15, test: float = 0.15, together: bool = True, progress: Progress = silent
) -> Splits:
    """Split ``folder`` into train, validation and test.

    Ready-made splits are kept. A missing ``val`` is taken from their ``train``.

    - Copies of an image (equal pixels) go into one split. With ``together`` also copies that were re-encoded, resized, mirrored or rotated
      (``edgetl.data.audit.copies``).
    - Within a class, images are ordered by a hash of the seed and their content. The result does not depend on file names or order.
    - The number of images of a class in val and test is its size times the ratio, rounded half to even.
    - Each class keeps at least one image in train. A class with three different images or more is in all requested splits.
    - Images of a table are stratified by ``edgetl.data.table.scan`` instead of by class.
    - All images of a group (``Sample.group``) go into one split. The ratios of the classes are kept as well as the groups allow.
      Ready-made splits are kept even if a group is in several of them.

    Args:
        folder: scanned folder.
        seed: seed of the order.
        val: ratio of the images of each class for validation, above 0, at most 0.5.
        test: ratio of the images of each class for the test, 0..0.5.
        together: keep changed copies of an image in one split.
        progress: called during the search for changed copies.

    Raises:
        ConfigError: a ratio is out of range.
    """
    if not (0.0 < val <= 0.5 and 0.0 <= test <= 0.5):
        raise ConfigError(f"val {val} and test {test} are out of range: val must be above 0 and at most 0.5, test between 0 and 0.5.")
    if any(sample.part for sample in folder.samples):
        return _split_ready_made(folder, seed=seed, val=val, together=together, progress=progress)
    conflicts = _conflicts(folder)
    sets = copy_sets(folder.samples, progress=progress) if together else {}
    parts = _divide(folder.samples, seed=seed, ratios={"test": test, "val": val}, sets=sets)
    return Splits(folder, tuple(parts["train"]), tuple(parts["val"]), tuple(parts["test"]), conflicts)


def _split_ready_made(folder: ImageFolder, *, seed: int, val: float, together: bool, progress: Progress) -> Splits:
    """Keep ready-made splits. An image in several of them stays in the last of train, val, test."""
    conflicts, sets = _conflicts(folder), copy_sets(folder.samples, progress=progress)
    conflicting = {str(folder.root / path) for conflict in conflicts for path in conflict.paths}
    rank = {"train": 0, "val": 1, "test": 2, None: 0}
    last: dict[str, int] = defaultdict(int)
    for sample in folder.samples:
        # An image with two labels cannot measure accuracy: its copies in val and test are dropped.
        last[sample.content] = 0 if str(sample.path) in conflicting else max(last[sample.content], rank[sample.part])
    kept: dict[Part, list[Sample]] = {"train": [], "val": [], "test": []}
    moved = []
    for sample in folder.samples:
        if rank[sample.part] == last[sample.content]:
            kept[sample.part or "train"].append(sample)
        else:
            moved.append(sample.path.relative_to(folder.root).as_posix())
    if not kept["val"]:
        plain = [sample for sample in kept["train"] if str(sample.path) not in conflicting]
        unclear = [sample for sample in kept["train"] if str(sample.path) in conflicting]
        bound = {sample.group for sample in unclear if sample.group}
        unclear += [sample for sample in plain if sample.group in bound]
        free = [sample for sample in plain if sample.group not in bound]
        again = _divide(free, seed=seed, ratios={"val": val}, sets=sets if together else {})
        kept["train"], kept["val"] = sorted([*again["train"], *unclear], key=lambda sample: sample.path), again["val"]
    log_notes(_copies(moved))
    trained = {sets.get(sample.content, sample.content) for sample in kept["train"]}
    leaked = (sample for sample in kept["test"] if sets.get(sample.content, sample.content) in trained)
    names = tuple(sample.path.relative_to(folder.root).as_posix() for sample in leaked)
    return Splits(folder, tuple(kept["train"]), tuple(kept["val"]), tuple(kept["test"]), conflicts, tuple(moved), leaked=names)


def _copies(moved: Sequence[str]) -> tuple[ScanNote, ...]:
    examples = tuple(map(printable, moved[:EXAMPLES]))
    return (ScanNote(reason="copy", used=False, count=len(moved), examples=examples),) if moved else ()


def _divide(samples: Sequence[Sample], *, seed: int, ratios: dict[Part, float], sets: Mapping[str, str]) -> dict[Part, list[Sample]]:
    """Distribute the images over the splits. ``sets`` has the set of copies of an image by its content (``copy_sets``)."""
    if any(sample.group for sample in samples):
        return _divide_groups(samples, seed=seed, ratios=ratios, sets=sets)
    groups: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        groups[sets.get(sample.content, sample.content)].append(sample)
    by_label: dict[int, list[list[Sample]]] = defaultdict(list)
    parts: dict[Part, list[Sample]] = {"train": [], "val": [], "test": []}
    for content in sorted(groups, key=lambda content: hashlib.sha256(f"edgetl split {seed} {content}".encode()).digest()):
        members = groups[content]
        if len({(member.label, member.targets) for member in members}) > 1:
            parts["train"] += members  # an image with two labels cannot measure accuracy
        else:
            by_label[members[0].label].append(members)
    for _, class_groups in sorted(by_label.items()):
        _deal(class_groups, ratios, parts)
    return {name: sorted(members, key=lambda sample: sample.path) for name, members in parts.items()}


def _deal(groups: list[list[Sample]], ratios: dict[Part, float], parts: dict[Part, list[Sample]]) -> None:
    """Distribute the groups of a class over the splits.

    Test and validation get their ratio of the images, and at least one group each while train keeps one.
    """
    total = sum(len(group) for group in groups)
    queue = list(groups)
    # With two groups, val has priority over test, because selection needs it.
    held_out = [name for name in ("val", "test") if name in ratios and ratios[name] > 0]
    for position, name in enumerate(held_out):
        wanted, taken = round(total * ratios[name]), 0
        reserved = len(held_out) - position  # one group for train and for each following split
        while (taken == 0 and len(queue) > 1) or (len(queue) > reserved and taken + len(queue[0]) <= wanted):
            group = queue.pop(0)
            parts[name] += group
            taken += len(group)
    for group in queue:
        parts["train"] += group


def _divide_groups(samples: Sequence[Sample], *, seed: int, ratios: dict[Part, float], sets: Mapping[str, str]) -> dict[Part, list[Sample]]:
    """Distribute whole groups, the largest first. Each goes into the split that lacks most of its classes.

    The method is that of scikit-learn's ``StratifiedGroupKFold``, for unequal ratios. Then a split without a class gets the smallest group
    with this class, if train keeps another one.
    """
    units = sorted(units_of(samples, sets), key=lambda unit: (-len(unit), _order(seed, unit)))
    column = {label: index for index, label in enumerate(sorted({sample.label for sample in samples}))}
    counts = np.zeros((len(units), len(column)), np.int64)
    for row, unit in zip(counts, units, strict=True):
        for sample in unit:
            row[column[sample.label]] += 1
    parts: list[Part] = ["train", *(name for name in ("val", "test") if ratios.get(name, 0) > 0)]
    wanted = np.array([1 - sum(ratios.values()), *(ratios[name] for name in parts[1:])])[:, None] * counts.sum(axis=0)
    have, where = np.zeros(wanted.shape), np.zeros(len(units), np.int64)
    unclear = np.array([is_unclear(unit) for unit in units])
    for index in np.argsort(~unclear, kind="stable"):
        lacking = ((wanted - have) * counts[index] / counts.sum(axis=0)).sum(axis=1)
        where[index] = 0 if unclear[index] else int(lacking.argmax())
        have[where[index]] += counts[index]
    _cover(where, have, counts, unclear)
    divided: dict[Part, list[Sample]] = {"train": [], "val": [], "test": []}
    for unit, place in zip(units, where, strict=True):
        divided[parts[place]] += unit
    return {name: sorted(members, key=lambda sample: sample.path) for name, members in divided.items()}


def _cover(where: NDArray[np.int64], have: NDArray[np.float64], counts: NDArray[np.int64], fixed: NDArray[np.bool_]) -> None:
    """Move groups until train (split 0) has every class. Also cover the classes of the other splits where train keeps a group.

    Args:
        where: split index of each group. Changed in place.
        have: number of images, ``[splits, classes]``. Changed in place.
        counts: number of images, ``[groups, classes]``.
        fixed: true for groups that stay in train, ``[groups]``.
    """
    for part, label in np.ndindex(have.shape):
        if have[part, label]:
            continue
        # Groups are sorted by size: the last is the smallest.
        for index in np.flatnonzero(counts[:, label])[::-1]:
            if part == 0 or (where[index] == 0 and not fixed[index] and bool((have[0] > counts[index]).all())):
                have[where[index]] -= counts[index]
                have[part] += counts[index]
                where[index] = part
                break


def units_of(samples: Sequence[Sample], sets: Mapping[str, str]) -> list[list[Sample]]:
    """Collect images that must stay together: images of a group, and copies of an image. Groups with a common image are merged."""
    parent: dict[tuple[str, str], tuple[str, str]] = {}

    def root(key: tuple[str, str]) -> tuple[str, str]:
        while parent.setdefault(key, key) != key:
            parent[key] = key = parent[parent[key]]
        return key

    keys = [("content", sets.get(sample.content, sample.content)) for sample in samples]
    for sample, key in zip(samples, keys, strict=True):
        if sample.group:
            parent[root(("group", sample.group))] = root(key)
    units: dict[tuple[str, str], list[Sample]] = defaultdict(list)
    for sample, key in zip(samples, keys, strict=True):
        units[root(key)].append(sample)
    return list(units.values())


def _order(seed: int, unit: Sequence[Sample]) -> bytes:
    first = min(sample.content for sample in unit)
    return hashlib.sha256(f"edgetl split {seed} {first}".encode()).digest()


def is_unclear(unit: Sequence[Sample]) -> bool:
    """Return true if an image has two labels. It cannot measure accuracy."""
    truth = {(sample.content, sample.label, sample.targets) for sample in unit}
    return len(truth) > len({sample.content for sample in unit})


def _conflicts(folder: ImageFolder) -> tuple[LabelConflict, ...]:
    groups: dict[str, list[Sample]] = defaultdict(list)
    for sample in folder.samples:
        groups[sample.content].append(sample)
    found = []
    for members in groups.values():
        labels = sorted({folder.truth(member) for member in members})
        if len(labels) > 1:
            found.append(LabelConflict(tuple(member.path.relative_to(folder.root).as_posix() for member in members), tuple(labels)))
    return tuple(found)
