"""Tables and lines of a comparison of groups (``edgetl evaluate --by``)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from rich.markup import escape
from rich.table import Table

from edgetl.cli.session import out
from edgetl.cli.tables import plain_table
from edgetl.core.group_metrics import LEAST_GROUP, Finding, Gap, GroupTable, ModelGroups
from edgetl.core.results import Proportion
from edgetl.runtime.evaluation import EvaluationReport

COLORS: dict[Finding, str] = {"alarm": "red", "uncertain": "yellow", "none": "default", "not-compared": "yellow"}


def show_groups(report: EvaluationReport, positive: str | None) -> None:
    """Print the tables and findings of each column. ``positive`` is the label whose rates are shown; none for the second of two."""
    for found in report.groups:
        main = next(model for model in found.models if model.model == found.main)
        out.print(_groups_table(found, main, positive))
        if len(found.models) > 1:
            out.print(_models_table(found))
        for line in _lines(found, main):
            out.print(line, soft_wrap=True)
    for reason in report.not_compared:
        out.print(f"[yellow]not compared:[/] {escape(reason)}.", soft_wrap=True)


def _groups_table(found: GroupTable, main: ModelGroups, positive: str | None) -> Table:
    """Return a table with one row per group: metrics of the evaluated model. A group that is too small to be compared has a star."""
    labels = [rates.label for rates in main.groups[0].rates]
    label = positive or (labels[1] if len(labels) == 2 else None)
    rates = [f"TPR of {escape(label)}", f"FPR of {escape(label)}"] if label else []
    table = plain_table(f"groups by {escape(found.by)}: {main.model}", escape(found.by), "n", "accuracy", *rates)
    for score in main.groups:
        cells = [_with_interval(score.accuracy)]
        if label:
            pair = score.rates[labels.index(label)]
            cells += [_with_interval(pair.true_positive), _with_interval(pair.false_positive)]
        table.add_row(escape(score.group), f"{score.accuracy.n}{'' if score.compared else '*'}", *cells)
    if not all(score.compared for score in main.groups):
        table.caption, table.caption_justify = f"* fewer than {LEAST_GROUP} images: not compared", "left"
    return table


def _with_interval(value: Proportion) -> str:
    return f"{value.value:.2f} ({value.low:.2f} to {value.high:.2f})" if value.n else "none"


def _models_table(found: GroupTable) -> Table:
    """Return a table with one column per model: the accuracy of each group, and the comparison of the groups."""
    table = plain_table(f"accuracy by {escape(found.by)} of each model", escape(found.by))
    for model in found.models:
        table.add_column(model.model.replace("-", "\n", 1).replace(" ", "\n"), justify="right", no_wrap=True)
    for scores in zip(*(model.groups for model in found.models), strict=True):
        table.add_row(escape(scores[0].group), *(f"{score.accuracy.value:.3f}" for score in scores))
    table.add_section()
    rows: dict[str, Callable[[ModelGroups], str]] = {
        "largest gap": lambda model: _gap(model.gap),
        "p": lambda model: f"{model.gap.p:.3f}" if model.gap else "",
        "ratio": lambda model: "none" if model.ratio is None else f"{model.ratio:.2f}",
        "equalized odds": lambda model: _gap(model.equalized_odds),
        "p ": lambda model: f"{model.equalized_odds.p:.3f}" if model.equalized_odds else "",
        "finding": lambda model: f"[{COLORS[model.finding]}]{model.finding}[/]",
    }
    for title, cell in rows.items():
        table.add_row(title, *map(cell, found.models))
    return table


def _gap(gap: Gap | None) -> str:
    return f"{gap.value:.3f}" if gap else "none"


def _lines(found: GroupTable, main: ModelGroups) -> Iterator[str]:
    """Yield remarks about the groups, the finding of ``main``, and the findings and drops of other models that differ from it."""
    by = escape(found.by)
    if found.is_label:
        yield f"Each group by {by} has one label only: the accuracy of a group is the recall of its label."
    if found.without:
        yield f"{found.without} images without a value of {by} are left out."
    for model in found.models:
        if model is main or model.finding != main.finding:
            yield f"[{COLORS[model.finding]}]{model.model}, by {by}: {model.finding}:[/] {escape(model.reason)}."
    for model in found.models:
        for group in model.groups:
            if model.drop and group.drop and group.drop.low > 0 and group.compared:
                yield (
                    f"{model.model}, by {by}: accuracy of {escape(group.group)} {100 * group.drop.value:.1f} points lower than of "
                    f"{found.reference} (95 % interval {100 * group.drop.low:.1f} to {100 * group.drop.high:.1f}); all images: "
                    f"{100 * model.drop.value:.1f} points."
                )
