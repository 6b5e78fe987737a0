"""Groups: images of one object, patient, visit or burst. All images of a group stay in one split."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import replace

from edgetl.core.config import StrictModel
from edgetl.core.files.names import printable
from edgetl.core.tasks import Task
from edgetl.data.folder import ImageFolder, Part
from edgetl.data.scan_notes import EXAMPLES, ScanNote, log_notes
from edgetl.data.split import Splits
from edgetl.errors import ConfigError


class Grouping(StrictModel):
    """Groups of the images of a run.

    Attributes:
        source: column or pattern that defines the groups.
        groups: number of groups.
        alone: number of images without a group.
        crossing: number of groups with images in several ready-made splits.
    """

    source: str
    groups: int
    alone: int
    crossing: int = 0


def count_groups(splits: Splits) -> Grouping | None:
    """Count the groups of ``splits``; none if the images have no groups."""
    if not splits.folder.grouping:
        return None
    counts = Counter(sample.group for sample in splits.folder.samples)
    alone = counts.pop("", 0)
    crossing = sum(len(parts) > 1 for parts in _parts_of_groups(splits).values())
    return Grouping(source=splits.folder.grouping, groups=len(counts), alone=alone, crossing=crossing)


def describe_grouping(grouping: Grouping | None, task: Task = "classification") -> str:
    """Describe the groups of a run in one line. The option ``--group`` does not exist for the task ``anomaly``."""
    if grouping is None:
        remedy = "Give folders train/ and test/" if task == "anomaly" else "Set --group of `edgetl train`"
        return (
            f"none given. Images of one object, patient or burst may be in several splits, which makes accuracy optimistic. {remedy} to "
            f"keep them together"
        )
    alone = f", {grouping.alone} images without a group" if grouping.alone else ""
    crossing = f"; {grouping.crossing} of them are in several ready-made splits" if grouping.crossing else ", each in one split"
    return f"{grouping.groups} ({grouping.source}){alone}{crossing}"


def crossing_alarm(splits: Splits) -> str | None:
    """Return a warning about groups with images in several ready-made splits, or none."""
    parts = _parts_of_groups(splits)
    crossing = {group: found for group, found in parts.items() if len(found) > 1}
    if not crossing:
        return None
    leaking = {group for group, found in crossing.items() if "train" in found}
    affected = [sum(sample.group in leaking for sample in part) for part in (splits.val, splits.test)]
    return (
        f"{len(crossing)} of {len(parts)} groups are in several ready-made splits: {affected[0]} validation and {affected[1]} test "
        f"images belong to a group of training images, so accuracy is optimistic. Move each group into one split."
    )


def _parts_of_groups(splits: Splits) -> dict[str, set[Part]]:
    found: dict[str, set[Part]] = defaultdict(set)
    names: tuple[Part, ...] = ("train", "val", "test")
    for name in names:
        for sample in splits.part(name):
            if sample.group:
                found[sample.group].add(name)
    return found


def group_by_path(folder: ImageFolder, pattern: str) -> ImageFolder:
    """Assign each image to a group by a pattern in its path. Images that do not match get no group.

    Args:
        folder: scanned images.
        pattern: regular expression, searched in the path relative to the folder (with ``/``). The key of a group is the expression's
            first capture group, or the whole match.

    Raises:
        ConfigError: ``pattern`` is not a regular expression, or no image matches.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"--group {pattern!r} is neither a column nor a regular expression: {error}.") from error
    samples, unmatched = [], []
    for sample in folder.samples:
        name = sample.path.relative_to(folder.root).as_posix()
        found = compiled.search(name)
        key = (found[1] if compiled.groups else found[0]) if found else None
        samples.append(replace(sample, group=printable(key or "")))
        if not key:
            unmatched.append(name)
    if folder.samples and len(unmatched) == len(samples):
        raise ConfigError(f"--group {pattern!r} matches no path, such as {unmatched[0]}. Change the pattern, or give the name of a column.")
    examples = tuple(map(printable, unmatched[:EXAMPLES]))
    notes = (ScanNote(reason="no-group", used=True, count=len(unmatched), examples=examples),) if unmatched else ()
    log_notes(notes)
    return replace(folder, samples=tuple(samples), notes=(*folder.notes, *notes), grouping=f"pattern {pattern}")
