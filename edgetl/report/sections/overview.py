"""Overview: key figures of one model, or the comparison of several models."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree.ElementTree import Element

from edgetl.core.results import Evaluation, Proportion, validation_name
from edgetl.core.tasks import SCORE_NAMES
from edgetl.report.charts import Axis, Series, interval_bar, line_chart
from edgetl.report.elements import Child, element, figure, number, paragraph, table, with_interval
from edgetl.report.models import ReportedModel


def overview(models: Sequence[ReportedModel], names: Sequence[str]) -> Element:
    """Return the first section: key figures of one model, or a table of several models with different ``names``."""
    if len(models) == 1:
        return element("section", element("h2", "Overview"), _key_figures(models[0]), id="overview", class_="overview")
    return element(
        "section",
        element("h2", "Comparison"),
        [paragraph(note, class_="warning") for note in comparison_notes(models)],
        _comparison(models, names),
        _losses(models, names),
        id="overview",
        class_="overview",
    )


def _key_figures(model: ReportedModel) -> Element:
    metric = SCORE_NAMES[model.task]
    cards: list[Child] = []
    if model.run is not None and model.run.record.test is not None:
        cards.append(_card(f"Test {metric}", model.run.record.test.score))
    if model.validation is not None:
        cards.append(_card(f"{validation_name(model.folds).capitalize()} {metric}", model.validation))
    shown = _shown(model)
    if shown is not None and (reliability := shown.reliability) is not None:
        cards.append(_plain_card("Calibration error (ECE)", number(reliability.ece), f"of {reliability.n} predictions"))
    if model.run is not None:
        counts = model.run.record.images
        cards.append(_plain_card("Training images", f"{counts['train']:,}", f"{len(model.labels)} labels"))
        if model.run.predictions:
            total = len(model.run.predictions)
            cards.append(_plain_card("Wrong predictions", f"{len(model.run.wrong):,}", f"of {total:,} {model.run.shown_split} images"))
    if model.bundles:
        first = model.bundles[0].manifest.variants[0]
        latency = f"{first.name}, {first.median_ms:.2f} ms on one thread"
        cards.append(_plain_card("Size of the first variant", f"{first.size_bytes / 1e6:.2f} MB", latency))
    return element("dl", cards, class_="cards")


def _shown(model: ReportedModel) -> Evaluation | None:
    return model.run.shown if model.run else None


def _card(title: str, value: Proportion) -> Element:
    return _plain_card(title, number(value.value), f"95 % interval {value.low:.3f} to {value.high:.3f}, n = {value.n}")


def _plain_card(title: str, value: Child, note: str) -> Element:
    return element("div", element("dt", title), element("dd", value, class_="value"), element("dd", note, class_="note"))


def comparison_notes(models: Sequence[ReportedModel]) -> list[str]:
    """Return the reasons why the figures of models cannot be compared, as sentences."""
    notes = []
    if len({model.task for model in models}) > 1:
        notes.append("The models have different tasks. Their metrics cannot be compared.")
    elif len({model.labels for model in models}) > 1:
        notes.append("The models have different labels. Their metrics cannot be compared.")
    if len({model.data_fingerprint for model in models}) > 1:
        notes.append("The models were trained on different images. Their test images differ too, so compare their metrics with care.")
    return notes


def _comparison(models: Sequence[ReportedModel], names: Sequence[str]) -> Element:
    """Return a table with one column per model."""
    found = [value for model in models for value in (model.validation, model.run.shown.score if model.run else None)]
    scores = [value for value in found if value is not None]
    low, high = min((score.low for score in scores), default=0.0), max((score.high for score in scores), default=1.0)
    axis = Axis("", low, max(high, low + 0.01))
    columns = [_column(model, axis) for model in models]
    metric = SCORE_NAMES[models[0].task] if len({model.task for model in models}) == 1 else "task metric"
    titles = (
        "contents",
        "strategy",
        "backbone",
        "training images",
        f"test {metric}",
        f"validation {metric}",
        "calibration error (ECE)",
        "wrong predictions",
        "smallest variant",
        "fastest variant",
        "license",
    )
    rows: list[list[Child]] = [[title, *(column[row] for column in columns)] for row, title in enumerate(titles)]
    head = ["metric", *names]
    return table("Models side by side, with 95 % intervals", head, rows, text_columns=len(head))


def _column(model: ReportedModel, axis: Axis) -> list[Child]:
    run, variants = model.run, [variant for bundle in model.bundles for variant in bundle.manifest.variants]
    smallest = min(variants, key=lambda item: item.size_bytes, default=None)
    fastest = min(variants, key=lambda item: item.median_ms, default=None)
    lineage = None if run else model.bundles[0].manifest.lineage
    test: Child = "not in a bundle"
    if run is not None:
        test = [interval_bar(run.record.test.score, axis), with_interval(run.record.test.score)] if run.record.test else "no test images"
    return [
        model.kind,
        lineage.strategy if lineage else run.record.plan.strategy if run else None,
        lineage.architecture if lineage else run.record.backbone.architecture if run else None,
        f"{lineage.train_images if lineage else run.record.images['train'] if run else 0:,}",
        test,
        [interval_bar(model.validation, axis), with_interval(model.validation)] if model.validation else "not in a bundle",
        number(run.shown.reliability.ece) if run and run.shown.reliability else "–",
        f"{len(run.wrong)} of {len(run.predictions)} {run.shown_split} images" if run and run.predictions else "–",
        f"{smallest.size_bytes / 1e6:.2f} MB ({smallest.name})" if smallest else "not exported",
        f"{fastest.median_ms:.2f} ms ({fastest.name})" if fastest else "not exported",
        model.license or "not stated",
    ]


def _losses(models: Sequence[ReportedModel], names: Sequence[str]) -> Element | None:
    lines = [
        Series(name, [(row["step"], row["val_loss"]) for row in model.run.curves if "val_loss" in row], index)
        for index, (name, model) in enumerate(zip(names, models, strict=True))
        if model.run is not None and model.run.curves
    ]
    if len(lines) < 2:
        return None
    label = "Validation loss over the steps of " + ", ".join(line.name for line in lines)
    return figure(line_chart("step", "validation loss", lines, label=label), "Validation loss of each model.")
