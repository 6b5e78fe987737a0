"""Training: strategy with its reason, settings, curves, compared strategies, domain adaptation, and forgetting."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree.ElementTree import Element

from edgetl.core.results import Forgetting
from edgetl.report.charts import Series, line_chart
from edgetl.report.elements import Child, element, facts, number, paragraph, table, with_interval
from edgetl.report.models import RunFacts
from edgetl.report.sections.groups import groups_table
from edgetl.train.config.adaptation.options import AdaptationRecord


def training_section(run: RunFacts) -> list[Child]:
    """Return the content of the section about the training of a run."""
    record, plan = run.record, run.record.plan
    rates = f"{plan.lr:.1e} for the head" + (f", up to {plan.backbone_lr:.1e} for the backbone" if plan.backbone_lr else "")
    rows: list[tuple[str, Child]] = [
        ("Strategy", element("strong", plan.strategy)),
        ("Reason", plan.reason),
        ("Backbone", f"{record.backbone.architecture}, {'pretrained' if record.backbone.pretrained else 'random weights'}"),
        ("Head", record.head.describe() if not record.head.plain else "linear"),
        ("Input", record.preprocess.describe()),
        *(
            [("Steps", f"{plan.steps:,}, layers {plan.unfreeze}, augmentation {plan.augment}"), ("Learning rates", rates)]
            if plan.steps
            else []
        ),
        ("Options", ", ".join(f"--{name.replace('_', '-')}" for name in record.given) or "all defaults"),
        ("Seed", str(record.config.run.seed)),
        ("Duration", f"{record.seconds:,.0f} s on {record.host.get('cpu', 'an unknown host')}"),
    ]
    effect = groups_table(record.balancing, "Effect of --balance on validation images") if record.balancing else None
    adaptation, forgetting = _adaptation(record.adaptation), _forgetting(record.forgetting)
    return [facts(rows), _curves(run.curves), _compared(run), effect, adaptation, forgetting]


def _curves(rows: Sequence[dict[str, float]]) -> Element:
    if not rows:
        return paragraph(
            "There are no training curves: the head was fitted on frozen features in one step, or the network was pruned or adapted.",
            class_="note",
        )
    charts = []
    for name in ("loss", "accuracy"):
        parts = (("training (augmented images)", f"train_{name}", True), ("validation", f"val_{name}", False))
        lines = [
            Series(title, [(row["step"], row[key]) for row in rows if key in row], index, dashed)
            for index, (title, key, dashed) in enumerate(parts)
        ]
        last = rows[-1]
        label = (
            f"{name} over the steps. Last values: training {last.get(f'train_{name}', 0):.3f}, validation {last.get(f'val_{name}', 0):.3f}"
        )
        charts.append(element("figure", line_chart("step", name, lines, label=label)))
    return element("div", charts, class_="pair")


def _compared(run: RunFacts) -> Element | None:
    compared = run.record.compared
    if not compared:
        return None
    rows: list[list[Child]] = [
        [item.strategy, with_interval(item.validation), f"{item.steps:,}", f"{item.seconds:,.0f} s"] for item in compared
    ]
    return table("Compared strategies: accuracy on validation images", ("strategy", "validation", "steps", "duration"), rows)


def _adaptation(record: AdaptationRecord | None) -> Element | None:
    if record is None:
        return None
    rows: list[list[Child]] = [
        [
            element("strong", item.name) if item.name == record.chosen else item.name,
            number(item.information),
            f"{item.diversity:.3f}{' (collapsed)' if item.collapsed else ''}",
            f"{item.changed:.0%}",
            with_interval(item.labeled) if item.labeled else "not measured",
            with_interval(item.source) if item.source else "not measured",
        ]
        for item in record.candidates
    ]
    title = (
        f"Domain adaptation to {record.images:,} unlabeled images of {record.target}. The network in bold was chosen by {record.chosen_by}"
    )
    columns = ("network", "information", "diversity", "changed predictions", "labeled target images", "images of the run")
    return table(title, columns, rows)


def _forgetting(forgetting: Forgetting | None) -> Element | None:
    if forgetting is None:
        return None
    rows: list[list[Child]] = [
        [item.label, str(item.n), number(item.before), number(item.after), f"{item.low:+.3f} to {item.high:+.3f}"]
        for item in forgetting.classes
    ]
    title = (
        f"Forgetting of the previous task ({forgetting.parent}): accuracy {forgetting.before:.3f} before, {forgetting.after:.3f} after, "
        f"on {forgetting.images} images"
    )
    return table(title, ("class", "images", "before", "after", "accuracy drop, 95 % interval"), rows)
