"""HTML page: all sections in one file without scripts and network access."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from xml.etree.ElementTree import Element

from edgetl.core.output.folders import write_file
from edgetl.device.monitoring.events import Event
from edgetl.report.elements import Child, element, html_document, is_generated, items, left_out_note, page_body, paragraph
from edgetl.report.models import ReportedModel, ShownImage
from edgetl.report.sections.calibration import calibration_section
from edgetl.report.sections.data import data_section
from edgetl.report.sections.groups import groups_section
from edgetl.report.sections.mistakes import golden_section, mistakes_section
from edgetl.report.sections.origin import events_section, origin_section
from edgetl.report.sections.overview import overview
from edgetl.report.sections.results import results_section
from edgetl.report.sections.training import training_section
from edgetl.report.sections.variants import variants_section
from edgetl.report.summary import ReportSummary, summarize

MAX_PAGE_BYTES = 5_000_000
# Base64 makes four bytes of three. The rest is for tables and charts.
MAX_IMAGE_BYTES = int(0.7 * MAX_PAGE_BYTES * 3 / 4)
_GENERATOR = "edgetl report"


def write_report(models: Sequence[ReportedModel], out: Path, *, events: Sequence[Event] | None = None) -> ReportSummary:
    """Write the report, and return its summary. The same models give the same bytes.

    Args:
        models: models of the report, in order.
        out: HTML file to write or replace. ``is_own_report`` checks that it is not a file of the user.
        events: events of devices, the newest first. None leaves the section out.

    Raises:
        StorageError: the file cannot be written.
    """
    fitting, left_out = limit_images(models, MAX_IMAGE_BYTES)
    data = render_page(fitting, events, left_out=left_out).encode()
    write_file(out, data)
    return ReportSummary(report=str(out), size_bytes=len(data), left_out=left_out, models=summarize(fitting))


def is_own_report(path: Path) -> bool:
    """Return true if ``write_report`` wrote a file."""
    return is_generated(path, _GENERATOR)


def limit_images(models: Sequence[ReportedModel], limit: int) -> tuple[list[ReportedModel], int]:
    """Remove the last images of each model so that all images have at most ``limit`` bytes.

    Returns:
        the models, and the number of removed images.
    """
    share, removed, fitting = limit // len(models), 0, []
    for model in models:
        used, run = 0, model.run
        if run is None:
            fitting.append(model)
            continue
        kept: list[tuple[ShownImage, ...]] = []
        for images in (run.gallery, run.samples):
            sizes = [len(item.jpeg) + len(item.saliency or b"") for item in images]
            count = sum(used + sum(sizes[: index + 1]) <= share for index in range(len(sizes)))
            used += sum(sizes[:count])
            removed += len(images) - count
            kept.append(images[:count])
        fitting.append(replace(model, run=replace(run, gallery=kept[0], samples=kept[1])))
    return fitting, removed


def render_page(models: Sequence[ReportedModel], events: Sequence[Event] | None = None, *, left_out: int = 0) -> str:
    """Return the HTML page. ``left_out`` is the number of images that ``limit_images`` removed."""
    names = unique_names(models)
    sections = [_sections(model, events) for model in models]
    titles = names if len(models) > 1 else ["Details"]
    articles = [
        _article(model, titles[index], found, id_=f"model-{index + 1}")
        for index, (model, found) in enumerate(zip(models, sections, strict=True))
    ]
    navigation = _navigation(names, [[title for title, _ in found] for found in sections])
    body = page_body("Model report", ", ".join(names), navigation, left_out_note(left_out), overview(models, names), articles)
    return html_document(f"Report: {', '.join(names)}", _GENERATOR, body)


def unique_names(models: Sequence[ReportedModel]) -> list[str]:
    """Return a different name for each model: its own name, with its contents or a number if another model has the same name."""
    counts, names = Counter(model.name for model in models), list[str]()
    for model in models:
        name = model.name if counts[model.name] == 1 else f"{model.name} ({model.kind})"
        number = next(number for number in count(1) if (name if number == 1 else f"{name} {number}") not in names)
        names.append(name if number == 1 else f"{name} {number}")
    return names


def _navigation(names: Sequence[str], titles: Sequence[Sequence[str]]) -> Element:
    links: list[Child] = [element("li", element("a", "Overview", href="#overview"))]
    for index, (name, parts) in enumerate(zip(names, titles, strict=True), start=1):
        inner = [element("li", element("a", title, href=f"#model-{index}-{part}")) for part, title in enumerate(parts, start=1)]
        links += inner if len(names) == 1 else [element("li", element("a", name, href=f"#model-{index}"), element("ul", inner))]
    return element("nav", element("ul", links), aria_label="Sections", class_="flat" if len(names) == 1 else None)


def _article(model: ReportedModel, title: str, sections: Sequence[tuple[str, list[Child]]], *, id_: str) -> Element:
    labels = f"{len(model.labels)} labels: {', '.join(model.labels[:30])}{' …' if len(model.labels) > 30 else ''}"
    alarms = model.run.record.alarms if model.run else ()
    return element(
        "article",
        element("h2", title, None if model.kind in title else element("small", f" {model.kind}")),
        paragraph(f"Task {model.task}. {labels}", class_="note"),
        [paragraph(element("strong", "Warning: "), alarm, class_="warning") for alarm in alarms],
        [element("section", element("h3", name), content, id=f"{id_}-{part}") for part, (name, content) in enumerate(sections, start=1)],
        id=id_,
    )


def _sections(model: ReportedModel, events: Sequence[Event] | None) -> list[tuple[str, list[Child]]]:
    """Return the title and content of each section of a model."""
    run, found = model.run, list[tuple[str, list[Child]]]()
    if run is not None:
        found.append(("Data", data_section(run)))
        found.append(("Training", training_section(run)))
        found.append((f"Results on {run.shown_split} images", results_section(run)))
        if run.shown.reliability is not None:
            found.append(("Calibration", calibration_section(run, run.shown.reliability)))
        if run.predictions:
            found.append(("Wrong predictions", mistakes_section(run)))
    found += [("Comparison of groups", groups_section(evaluation)) for evaluation in model.evaluations]
    for bundle in model.bundles:
        title = "Exported variants" if len(model.bundles) == 1 else f"Exported variants of {bundle.manifest.name}"
        found.append((title, variants_section(bundle.manifest)))
    if model.goldens:
        found.append(("Golden images", golden_section(model.goldens)))
    found.append(("Lineage and license", origin_section(model)))
    if events is not None:
        names = {model.name, *(bundle.manifest.name for bundle in model.bundles)}
        found.append(("Drift and events", events_section([event for event in events if event.model in names])))
    if model.missing:
        found.append(("Missing parts", [items(model.missing)]))
    return found
