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
        main = found.main_groups
        out.print(_groups_table(found, main, positive))
        if len(found.models) > 1:
            out.print(_models_table(found, f"accuracy by {escape(found.by)} of each model"))
        for line in _lines(found, main):
            out.print(line, soft_wrap=True)
    for reason in report.not_compared:
        out.print(f"[yellow]not compared:[/] {escape(reason)}.", soft_wrap=True)


def show_balancing(found: GroupTable) -> None:
    """Print the effect of ``--balance`` on the groups of the validation images."""
    out.print(_models_table(found, f"effect of --balance on {found.images} validation images, by {escape(found.by)}", sizes=True))
    for line in found.remarks():
        out.print(escape(line), soft_wrap=True)


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


def _models_table(found: GroupTable, title: str, *, sizes: bool = False) -> Table:
    """Return a table with one column per model: the accuracy of each group, and the comparison of the groups."""
    table = plain_table(title, escape(found.by))
    for model in found.models:
        table.add_column(model.model.replace("-", "\n", 1).replace(" ", "\n"), justify="right", no_wrap=True)
    for scores in zip(*(model.groups for model in found.models), strict=True):
        size = f" (n = {scores[0].accuracy.n})" if sizes else ""
        table.add_row(f"{escape(scores[0].group)}{size}", *(f"{score.accuracy.value:.3f}" for score in scores))
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
    yield from map(escape, found.remarks())
    for model in found.models:
        if model is main or model.finding != main.finding:
            yield f"[{COLORS[model.finding]}]{model.model}, by {escape(found.by)}: {model.finding}:[/] {escape(model.reason)}."
    yield from map(escape, found.drops())
