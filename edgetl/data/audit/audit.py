"""Audit: combine copies, series, flaws, leakage and the results of frozen features into one report."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edgetl.core.files.names import printable
from edgetl.data.audit.cleaned import find_removed
from edgetl.data.audit.copies import Joined, Kind, Pair
from edgetl.data.audit.dropped import Drop, count_remaining, find_dropped
from edgetl.data.audit.leakage import find_leakage, places_of
from edgetl.data.audit.quality import SMALL_CLASS, find_flaws, measure_imbalance
from edgetl.data.audit.result import (
    AuditReport,
    BrokenFile,
    CopySet,
    LabelIssue,
    LeftOutCheck,
    RemovedFile,
    SimilarPair,
    UncertainLabel,
)
from edgetl.data.audit.series import find_series
from edgetl.data.folder import BrokenImage, ImageFolder, Part

_WEAKEST: tuple[Kind, ...] = ("identical", "copy", "near-duplicate")
_PARTS: tuple[Part, ...] = ("train", "val", "test")


@dataclass(frozen=True)
class FeatureFindings:
    """Results of frozen features (``edgetl.train.workflows.audit``).

    Attributes:
        pairs: near-duplicates.
        similar: similar images with other details, the most similar first.
        label_issues: images whose label is possibly wrong.
        uncertain: other images whose label has a low probability.
        probe_accuracy: ratio of the labels that the probe predicts, out of sample.
        predictions: label with the highest out-of-sample probability, and this probability, by the index of an image.
        backbone: name of the backbone.
        threshold: calibrated similarity.
        left_out: checks that were not made.
        pretraining: indices of images that pretrained the backbone, or copies of them.
    """

    pairs: tuple[Pair, ...] = ()
    similar: tuple[SimilarPair, ...] = ()
    label_issues: tuple[LabelIssue, ...] = ()
    uncertain: tuple[UncertainLabel, ...] = ()
    probe_accuracy: float | None = None
    predictions: Mapping[int, tuple[str, float]] = field(default_factory=dict)
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


def audit(
    folder: ImageFolder, copies: Sequence[Pair], findings: FeatureFindings, *, seen: Collection[int] = (), drop: Collection[Drop] = ()
) -> Audit:
    """Combine the results of all checks.

    Args:
        folder: scanned images.
        copies: identical images and copies.
        findings: results of frozen features; empty without them.
        seen: indices of images that an earlier run used.
        drop: kinds of findings that the cleaned list leaves out.
    """
    samples, counts, files = folder.samples, folder.counts(), [_name(folder, sample.path) for sample in folder.samples]
    joined = Joined(len(samples), pairs := (*copies, *findings.pairs))
    members = places_of(series := find_series(folder), files)
    report = AuditReport(
        data=printable(folder.root),
        images=len(samples),
        distinct=len(samples) - sum(len(group) - 1 for group in joined.sets()),
        counts=counts,
        parts={part: count for part in _PARTS if (count := sum(sample.part == part for sample in samples))},
        broken=tuple(BrokenFile(file=_name(folder, item.path), reason=_reason(item)) for item in folder.broken),
        notes=folder.notes,
        copies=tuple(_copy_sets(folder, joined, pairs, findings.predictions)),
        similar=findings.similar,
        label_issues=findings.label_issues,
        uncertain=findings.uncertain,
        probe_accuracy=findings.probe_accuracy,
        flaws=find_flaws(files, [sample.facts for sample in samples]),
        small_classes=tuple(label for label, count in counts.items() if 0 < count < SMALL_CLASS),
        imbalance=measure_imbalance(counts.values()),
        series=tuple(series),
        leakage=tuple(find_leakage(samples, joined, members, {*seen, *findings.pretraining})),
        seen=tuple(files[index] for index in sorted(seen)),
        pretraining=tuple(files[index] for index in findings.pretraining),
        backbone=findings.backbone,
        threshold=findings.threshold,
        left_out=findings.left_out,
    )
    return _clean(folder, report, _graded_sets(joined.sets(), Joined(len(samples), copies)), drop, _groups(joined.sets(), members))


def _clean(
    folder: ImageFolder, report: AuditReport, sets: Sequence[tuple[Sequence[int], bool]], drop: Collection[Drop], groups: dict[int, str]
) -> Audit:
    """Complete a report with the images that the cleaned list leaves out, and the findings that it still contains."""
    labels = {_name(folder, sample.path): folder.truth(sample) for sample in folder.samples}
    files = list(labels)
    removed = {files[index]: reason for index, reason in find_removed(folder, sets).items()}
    removed |= find_dropped(report, labels, drop, removed)
    completed = report.model_copy(
        update={
            "removed": tuple(RemovedFile(file=file, reason=removed[file]) for file in files if file in removed),
            "remaining": count_remaining(report, labels, removed),
        }
    )
    return Audit(completed, {index: removed[file] for index, file in enumerate(files) if file in removed}, groups)


def _name(folder: ImageFolder, path: Path) -> str:
    return printable(path.relative_to(folder.root).as_posix())


def _reason(item: BrokenImage) -> str:
    """Return the reason without the path at its start, because the report names the file."""
    return item.reason.removeprefix(printable(item.path)).lstrip(": ")


def _graded_sets(sets: Sequence[Sequence[int]], exact: Joined) -> list[tuple[list[int], bool]]:
    """Return the sets of exact copies, with true, and sets of near-duplicates with one image of each set of exact copies, with false."""
    reduced = (sorted({exact.root(index) for index in group}) for group in sets)
    return [*((group, True) for group in exact.sets()), *((group, False) for group in reduced if len(group) > 1)]


def _copy_sets(
    folder: ImageFolder, joined: Joined, pairs: Sequence[Pair], predictions: Mapping[int, tuple[str, float]]
) -> Iterator[CopySet]:
    kinds: dict[int, Kind] = {}
    for pair in pairs:
        root = joined.root(pair.first)
        kinds[root] = max(kinds.get(root, "identical"), pair.kind, key=_WEAKEST.index)
    for group in joined.sets():
        labels = tuple(folder.truth(folder.samples[index]) for index in group)
        conflict = len(set(labels)) > 1
        known = [predictions[index] for index in group if conflict and index in predictions]
        suggested, probability = max(known, key=lambda item: item[1], default=("", None))
        yield CopySet(
            kind=kinds[group[0]],
            files=tuple(_name(folder, folder.samples[index].path) for index in group),
            labels=labels,
            parts=tuple(part for index in group if (part := folder.samples[index].part)),
            conflict=conflict,
            suggested=suggested,
            suggested_probability=probability,
        )


def _groups(sets: Sequence[Sequence[int]], series: Sequence[Sequence[int]]) -> dict[int, str]:
    """Return the group of each image of a set of near-duplicates or a series. Sets with a common image are one group."""
    members = [*sets, *series]
    joined = Joined(max((index for group in members for index in group), default=-1) + 1)
    for group in members:
        for index in group[1:]:
            joined.connect(group[0], index)
    return {index: f"set {group[0]}" for group in joined.sets() for index in group}
