"""Findings that the cleaned list leaves out on request (``--drop``), and those that it still contains."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

if TYPE_CHECKING:
    from edgetl.data.audit.result import AuditReport

Drop: TypeAlias = Literal[
    "near-duplicates",
    "label-errors",
    "strong-label-errors",
    "dark",
    "bright",
    "blurred",
    "uniform",
    "odd-size",
    "small-classes",
]
KINDS: tuple[Drop, ...] = get_args(Drop)


def find_dropped(report: AuditReport, labels: Mapping[str, str], kinds: Collection[Drop], gone: Collection[str]) -> dict[str, str]:
    """Return the files that the cleaned list leaves out because of ``kinds``, with the reason of each.

    Args:
        report: report with the findings.
        labels: label of each file.
        kinds: kinds of findings. Of near-duplicates with equal labels, the first remaining image stays.
        gone: files that the cleaned list leaves out already.
    """
    found: dict[str, str] = {}
    if "near-duplicates" in kinds:
        for item in report.copies:
            left = [file for file in item.files if file not in gone] if item.kind == "near-duplicate" else []
            if item.conflict:
                found |= dict.fromkeys(left, "near-duplicates of this image have different labels")
            else:
                found |= dict.fromkeys(left[1:], f"near-duplicate of {left[0]}" if left else "")
    for issue in report.label_issues:
        if "label-errors" in kinds or (issue.strong and "strong-label-errors" in kinds):
            found[issue.file] = f"possible label error: {issue.label}, {issue.suggested}?"
    found |= {flaw.file: f"{flaw.flaw}: {flaw.text}" for flaw in report.flaws if flaw.flaw in kinds}
    if "small-classes" in kinds:
        found |= {file: f"{label} has few images" for file, label in labels.items() if label in report.small_classes}
    return {file: reason for file, reason in found.items() if file not in gone}


def count_remaining(report: AuditReport, labels: Mapping[str, str], gone: Collection[str]) -> dict[str, int]:
    """Return the number of findings of each kind that the cleaned list still contains, without kinds that have none.

    Near-duplicates are counted in sets, small classes in labels, and the others in images.
    """
    issues = [issue for issue in report.label_issues if issue.file not in gone]
    counts: dict[str, int] = {
        "near-duplicates": sum(sum(file not in gone for file in item.files) > 1 for item in report.copies),
        "label-errors": len(issues),
        "strong-label-errors": sum(issue.strong for issue in issues),
    }
    for flaw in report.flaws:
        counts[flaw.flaw] = counts.get(flaw.flaw, 0) + (flaw.file not in gone)
    counts["small-classes"] = len({label for file, label in labels.items() if label in report.small_classes and file not in gone})
    return {kind: count for kind, count in counts.items() if count}
