"""Divide a folder into train, val and test: deterministic, stratified, and never one picture in two splits."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from edgetl.data.folder import ImageFolder, Part, Sample
from edgetl.errors import ConfigError


@dataclass(frozen=True)
class LabelConflict:
    """Copies of one picture that are filed under different labels."""

    paths: tuple[str, ...]
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Splits:
    """Three disjoint parts of one folder.

    Attributes:
        folder: what was divided.
        train, val, test: the samples; training sees ``train``, every choice is made on ``val``, ``test`` is only reported.
        conflicts: pictures filed under several labels; their copies are only in ``train``.
        moved: copies of a picture that a ready-made folder had in another split, and were dropped there.
    """

    folder: ImageFolder
    train: tuple[Sample, ...]
    val: tuple[Sample, ...]
    test: tuple[Sample, ...]
    conflicts: tuple[LabelConflict, ...] = ()
    moved: tuple[str, ...] = ()

    def part(self, name: Part) -> tuple[Sample, ...]:
        """The samples of one split."""
        return {"train": self.train, "val": self.val, "test": self.test}[name]


def split(folder: ImageFolder, *, seed: int = 0, val: float = 0.15, test: float = 0.15) -> Splits:
    """Divide ``folder``; ready-made parts are kept, and a missing ``val`` is taken from their ``train``.

    Copies of a picture (equal pixels) form one group, which goes into one split. Within a class the groups are ordered by a hash of
    the seed and their content, so that the result depends on neither file names nor order. Every class keeps at least one group in
    train; one with three groups or more has images in all splits that were asked for. Images from a table are dealt by stratum
    instead (see ``edgetl.data.table``).

    Args:
        folder: a scanned folder.
        seed: chooses the division.
        val: share for validation, 0..0.5.
        test: share for the test, 0..0.5.

    Raises:
        ConfigError: a share out of range.
    """
    if not (0.0 < val <= 0.5 and 0.0 <= test <= 0.5):
        raise ConfigError(f"val {val} and test {test} are shares: val lies in 0..0.5 (not 0), test in 0..0.5.")
    if any(sample.part for sample in folder.samples):
        return _split_ready_made(folder, seed=seed, val=val)
    conflicts = _conflicts(folder)
    parts = _divide(folder.samples, seed=seed, shares={"test": test, "val": val})
    return Splits(folder, tuple(parts["train"]), tuple(parts["val"]), tuple(parts["test"]), conflicts)


def _split_ready_made(folder: ImageFolder, *, seed: int, val: float) -> Splits:
    """Keep the given parts. A picture that stands in two of them stays in the last of train, val, test, where it does least harm."""
    conflicts = _conflicts(folder)
    conflicting = {str(folder.root / path) for conflict in conflicts for path in conflict.paths}
    rank = {"train": 0, "val": 1, "test": 2, None: 0}
    last: dict[str, int] = defaultdict(int)
    for sample in folder.samples:
        # A picture with two labels can measure nothing: its copies in val and test are dropped.
        last[sample.content] = 0 if str(sample.path) in conflicting else max(last[sample.content], rank[sample.part])
    kept: dict[Part, list[Sample]] = {"train": [], "val": [], "test": []}
    moved = []
    for sample in folder.samples:
        if rank[sample.part] == last[sample.content]:
            kept[sample.part or "train"].append(sample)
        else:
            moved.append(str(sample.path.relative_to(folder.root)))
    if not kept["val"]:
        plain = [sample for sample in kept["train"] if str(sample.path) not in conflicting]
        again = _divide(plain, seed=seed, shares={"val": val})
        unclear = [sample for sample in kept["train"] if str(sample.path) in conflicting]
        kept["train"], kept["val"] = sorted([*again["train"], *unclear], key=lambda sample: sample.path), again["val"]
    return Splits(folder, tuple(kept["train"]), tuple(kept["val"]), tuple(kept["test"]), conflicts, tuple(moved))


def _divide(samples: Sequence[Sample], *, seed: int, shares: dict[Part, float]) -> dict[Part, list[Sample]]:
    groups: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        groups[sample.content].append(sample)
    by_label: dict[int, list[list[Sample]]] = defaultdict(list)
    parts: dict[Part, list[Sample]] = {"train": [], "val": [], "test": []}
    for content in sorted(groups, key=lambda content: hashlib.sha256(f"edgetl split {seed} {content}".encode()).digest()):
        members = groups[content]
        if len({(member.label, member.targets) for member in members}) > 1:
            parts["train"] += members  # a picture with two labels can measure nothing
        else:
            by_label[members[0].label].append(members)
    for _, class_groups in sorted(by_label.items()):
        _deal(class_groups, shares, parts)
    return {name: sorted(members, key=lambda sample: sample.path) for name, members in parts.items()}


def _deal(groups: list[list[Sample]], shares: dict[Part, float], parts: dict[Part, list[Sample]]) -> None:
    """Deal one class's groups: whole shares first, at least one for each part while train keeps one."""
    total = sum(len(group) for group in groups)
    queue = list(groups)
    # With two groups, val goes before test: choices need it, a report does not.
    asked = [name for name in ("val", "test") if name in shares and shares[name] > 0]
    for position, name in enumerate(asked):
        wanted, taken = round(total * shares[name]), 0
        reserved = len(asked) - position  # one group for train and for each part that is still to come
        while queue and ((taken == 0 and len(queue) > 1) or (taken > 0 and len(queue) > reserved and taken + len(queue[0]) <= wanted)):
            group = queue.pop(0)
            parts[name] += group
            taken += len(group)
    for group in queue:
        parts["train"] += group


def _conflicts(folder: ImageFolder) -> tuple[LabelConflict, ...]:
    groups: dict[str, list[Sample]] = defaultdict(list)
    for sample in folder.samples:
        groups[sample.content].append(sample)
    found = []
    for members in groups.values():
        labels = sorted({folder.truth(member) for member in members})
        if len(labels) > 1:
            found.append(LabelConflict(tuple(str(member.path.relative_to(folder.root)) for member in members), tuple(labels)))
    return tuple(found)
