"""Comparison of groups of images: accuracy of each model, gaps, and findings (``edgetl evaluate --by``)."""

from __future__ import annotations

from collections.abc import Sequence

from edgetl.core.group_metrics import LEAST_GROUP, Gap, GroupScore, GroupTable, ModelGroups
from edgetl.report.charts import Axis, interval_bar
from edgetl.report.elements import Child, element, items, number, paragraph, table, with_interval
from edgetl.runtime.evaluation import EvaluationReport


def groups_section(evaluation: EvaluationReport) -> list[Child]:
    """Return the content of the section about the groups of an evaluation."""
    left_out = [f"Not compared: {reason}." for reason in evaluation.not_compared]
    note = (
        f"Accuracy with 95 % interval (Wilson) on {evaluation.result.accuracy.n} images. A star: fewer than {LEAST_GROUP} images, "
        f"not compared. p is the probability of such a gap if all groups were equal. Alarm: a large gap with p below 0.05."
    )
    return [
        paragraph(note, class_="note"),
        [groups_table(found, f"Groups by {found.by}") for found in evaluation.groups],
        items(left_out) if left_out else None,
    ]


def groups_table(found: GroupTable, title: str) -> list[Child]:
    """Return the finding and the tables of one column."""
    main, axis = found.main_groups, Axis("accuracy", 0.0, 1.0)
    others = [model for model in found.models if model is not main]
    scores = zip(main.groups, *(model.groups for model in others), strict=True)
    rows = [_group(row[0], row[1:], axis) for row in scores]
    differing = [f"{model.model}: {model.finding}: {model.reason}." for model in others if model.finding != main.finding]
    return [
        element("h4", title),
        paragraph(
            element("strong", f"{main.model}: {main.finding}: "), f"{main.reason}.", class_="warning" if main.finding == "alarm" else None
        ),
        table(f"Accuracy by {found.by}", (found.by, "images", main.model, *(model.model for model in others)), rows),
        table(
            "Comparison of the groups",
            ("model", "largest gap", "p", "ratio", "equalized odds", "p", "finding"),
            map(_model, (main, *others)),
        ),
        items(lines) if (lines := [*found.remarks(), *differing, *found.drops()]) else None,
    ]


def _group(score: GroupScore, others: Sequence[GroupScore], axis: Axis) -> list[Child]:
    """Return the row of a group: the accuracy of the evaluated model with its interval, and that of the others."""
    images = f"{score.accuracy.n}{'' if score.compared else '*'}"
    shown: list[Child] = [interval_bar(score.accuracy, axis), with_interval(score.accuracy)]
    return [score.group, images, shown, *(number(other.accuracy.value) for other in others)]


def _model(model: ModelGroups) -> list[Child]:
    ratio: Child = "–" if model.ratio is None else number(model.ratio, 2)
    return [model.model, *_gap(model.gap), ratio, *_gap(model.equalized_odds), model.finding]


def _gap(gap: Gap | None) -> tuple[Child, Child]:
    return (number(gap.value), number(gap.p)) if gap else ("–", "–")
