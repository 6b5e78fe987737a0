"""Audit: combine copies, series, flaws, leakage and the results of frozen features into one report."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from edgetl.core.files.names import printable
from edgetl.data.audit.cleaned import find_removed
from edgetl.data.audit.copies import Joined, Kind, Pair
from edgetl.data.audit.leakage import find_leakage, places_of
from edgetl.data.audit.quality import SMALL_CLASS, find_flaws
from edgetl.data.audit.result import (
    AuditReport,
    BrokenFile,
    CopySet,
    LabelIssue,
    LeftOutCheck,
    RemovedFile,
    SimilarPair,
)
from edgetl.data.audit.series import find_series
from edgetl.data.folder import ImageFolder, Part

_WEAKEST: tuple[Kind, ...] = ("identical", "copy", "near-duplicate")
_PARTS: tuple[Part, ...] = ("train", "val", "test")


@dataclass(frozen=True)
class FeatureFindings:
    """Results of frozen features (``edgetl.train.workflows.audit``).

    Attributes:
        pairs: near-duplicates.
        similar: similar images with other details, the most similar first.
        label_issues: images whose label is probably wrong.
        backbone: name of the backbone.
        threshold: calibrated similarity.
        left_out: checks that were not made.
        pretraining: indices of images that pretrained the backbone, or copies of them.
    """

    pairs: tuple[Pair, ...] = ()
    similar: tuple[SimilarPair, ...] = ()
    label_issues: tuple[LabelIssue, ...] = ()
    backbone: str = ""
    threshold: float | None = None
    left_out: tuple[LeftOutCheck, ...] = ()
    pretraining: tuple[int, ...] = ()


@dataclass(frozen=True)
class Audit:
    """Report of an audit, with what the cleaned list needs.

    Attributes:
        report: report.
        removed: reason of each image that the cleaned list leaves out, by its index.
        groups: group of each image that should stay together with others, by its index.
    """

    report: AuditReport
    removed: dict[int, str]
    groups: dict[int, str]


def audit(folder: ImageFolder, copies: Sequence[Pair], findings: FeatureFindings, *, seen: Collection[int] = ()) -> Audit:
    """Combine the results of all checks.

    Args:
        folder: scanned images.
        copies: identical images and copies.
        findings: results of frozen features; empty without them.
        seen: indices of images that an earlier run used.
    """
    samples = folder.samples
    files = [printable(sample.path.relative_to(folder.root).as_posix()) for sample in samples]
    pairs = (*copies, *findings.pairs)
    joined, exact = Joined(len(samples), pairs), Joined(len(samples), copies)
    sets, counts = joined.sets(), folder.counts()
    members = places_of(series := find_series(folder), files)
    removed = find_removed(folder, [*((group, True) for group in exact.sets()), *((group, False) for group in _between(sets, exact))])
    report = AuditReport(
        data=printable(folder.root),
        images=len(samples),
        distinct=len(samples) - sum(len(group) - 1 for group in sets),
        counts=counts,
        parts={part: count for part in _PARTS if (count := sum(sample.part == part for sample in samples))},
        broken=tuple(BrokenFile(file=printable(item.path.relative_to(folder.root)), reason=item.reason) for item in folder.broken),
        notes=folder.notes,
        copies=tuple(_copy_sets(folder, files, joined, pairs)),
        similar=findings.similar,
        label_issues=findings.label_issues,
        flaws=find_flaws(files, [sample.facts for sample in samples]),
        small_classes=tuple(label for label, count in counts.items() if count < SMALL_CLASS),
        imbalance=round(max(counts.values(), default=1) / max(1, min(counts.values(), default=1)), 2),
        series=tuple(series),
        leakage=tuple(find_leakage(samples, joined, members, {*seen, *findings.pretraining})),
        seen=tuple(files[index] for index in sorted(seen)),
        pretraining=tuple(files[index] for index in findings.pretraining),
        backbone=findings.backbone,
        threshold=findings.threshold,
        left_out=findings.left_out,
        removed=tuple(RemovedFile(file=files[index], reason=reason) for index, reason in sorted(removed.items())),
    )
    return Audit(report, removed, _groups(sets, members))


def _between(sets: Sequence[Sequence[int]], exact: Joined) -> list[list[int]]:
    """Return sets of near-duplicates with one image of each set of exact copies."""
    reduced = (sorted({exact.root(index) for index in group}) for group in sets)
    return [group for group in reduced if len(group) > 1]


def _copy_sets(folder: ImageFolder, files: Sequence[str], joined: Joined, pairs: Sequence[Pair]) -> Iterator[CopySet]:
    kinds: dict[int, Kind] = {}
    for pair in pairs:
        root = joined.root(pair.first)
        kinds[root] = max(kinds.get(root, "identical"), pair.kind, key=_WEAKEST.index)
    for group in joined.sets():
        labels = tuple(folder.truth(folder.samples[index]) for index in group)
        yield CopySet(
            kind=kinds[group[0]],
            files=tuple(files[index] for index in group),
            labels=labels,
            parts=tuple(part for index in group if (part := folder.samples[index].part)),
            conflict=len(set(labels)) > 1,
        )


def _groups(sets: Sequence[Sequence[int]], series: Sequence[Sequence[int]]) -> dict[int, str]:
    """Return the group of each image of a set of near-duplicates or a series. Sets with a common image are one group."""
    members = [*sets, *series]
    joined = Joined(max((index for group in members for index in group), default=-1) + 1)
    for group in members:
        for index in group[1:]:
            joined.connect(group[0], index)
    return {index: f"set {group[0]}" for group in joined.sets() for index in group}
