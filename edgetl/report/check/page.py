"""HTML page of a data audit: findings with galleries, in one file without scripts and network access."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from edgetl.core.files.names import printable
from edgetl.core.output.folders import write_file
from edgetl.data.audit.quality import BRIGHT, ODD_AREA, ODD_ASPECT
from edgetl.data.audit.result import STRONG_MARGIN, AuditReport, CopySet, Flaw, LabelIssue
from edgetl.data.content.facts import DARK, UNIFORM
from edgetl.data.folder import ImageFolder
from edgetl.report.check.galleries import Entry, Galleries
from edgetl.report.elements import Child, element, html_document, is_generated, items, left_out_note, page_body, paragraph, table

_GENERATOR = "edgetl check"
# Base64 makes four bytes of three. The page has at most 5 MB.
_MAX_IMAGE_BYTES = 3_200_000
_MOST_ROWS = 40
_KINDS = {"identical": "Identical images", "copy": "Copies", "near-duplicate": "Near-duplicates"}
_KIND_TEXTS = {
    "identical": "The files have equal pixels. Their names or formats may differ.",
    "copy": "The images were re-encoded, resized, mirrored or rotated.",
    "near-duplicate": "The images show the same photo, cropped or edited. Some may be two photos of one still scene.",
}
_FLAWS: dict[Flaw, str] = {
    "uniform": "Uniform images",
    "dark": "Dark images",
    "bright": "Bright images",
    "blurred": "Possibly blurred images",
    "odd-size": "Odd sizes",
}
_LEVELS = (
    ("identical", "L0 identical"),
    ("near_duplicates", "L1 near-duplicate"),
    ("same_group", "L2 same group"),
    ("earlier_run", "L3 earlier training"),
)
# Unit and direction of the values below flawed images.
_FLAW_NOTES: dict[Flaw, str] = {
    "uniform": f"Contrast is the standard deviation of the gray values, 0 to 0.5. These images are below {UNIFORM}.",
    "dark": f"Brightness is the mean gray value: 0 is black, and 1 is white. These images are below {DARK}.",
    "bright": f"Brightness is the mean gray value: 0 is black, and 1 is white. These images are above {BRIGHT}.",
    "blurred": "Lower sharpness means more blur. These images are far below the others. Plain objects also have a low sharpness.",
    "odd-size": f"The area differs from the median by a factor over {ODD_AREA:g}, or the aspect ratio by a factor over {ODD_ASPECT:g}.",
}
# Titles of the sections that a card of the overview leads to, the first existing one.
_FILES, _LEAKAGE, _CONFLICTS, _ISSUES, _FLAWED = (
    "Broken files",
    "Leakage between splits",
    "Label conflicts",
    "Possible label errors",
    "Possible flaws of images",
)
Section = tuple[str, list[Child]]


def write_check_page(report: AuditReport, folder: ImageFolder, out: Path) -> None:
    """Write the page to ``out``. ``is_check_page`` checks that it replaces no file of the user.

    Raises:
        StorageError: the file cannot be written.
    """
    write_file(out, render_check_page(report, folder).encode())


def is_check_page(path: Path) -> bool:
    """Return true if ``write_check_page`` wrote a file."""
    return is_generated(path, _GENERATOR)


def render_check_page(report: AuditReport, folder: ImageFolder) -> str:
    """Return the HTML page of a report."""
    files = {printable(sample.path.relative_to(folder.root).as_posix()): sample.path for sample in folder.samples}
    galleries = Galleries(files, _MAX_IMAGE_BYTES)
    sections = [
        *_broken(report),
        *_leakage(report),
        *_conflicts(report, galleries),
        *_label_issues(report, galleries),
        *_copies(report, galleries),
        *_similar(report, galleries),
        *_flaws(report, galleries),
        *_series(report, galleries),
        _classes(report),
        _cleaned_list(report),
        *_notes(report),
    ]
    galleries.fill()
    name = Path(report.data).name or report.data
    places = {title: f"part-{place}" for place, (title, _) in enumerate(sections, start=1)}
    links = [element("li", element("a", title, href=f"#{place}")) for title, place in places.items()]
    body = page_body(
        "Data check",
        name,
        element("nav", element("ul", links), aria_label="Sections", class_="flat"),
        left_out_note(galleries.left_out),
        _overview(report, places),
        [element("section", element("h2", title), content, id=places[title]) for title, content in sections],
    )
    return html_document(f"Data check: {name}", _GENERATOR, body)


def _overview(report: AuditReport, places: Mapping[str, str]) -> Child:
    """Return the cards with the numbers of findings. A card leads to the section of its finding.

    Args:
        report: report.
        places: identifier of each section by its title.
    """
    leaked = max((item.identical + item.near_duplicates for item in report.leakage), default=0)
    strong = sum(item.strong for item in report.label_issues)
    cards: list[tuple[str, str, str, Sequence[str]]] = [
        ("Images", f"{report.images:,}", f"{report.distinct:,} different photos, {len(report.counts)} labels", ("Labels",)),
        ("Broken files", f"{len(report.broken):,}", "they cannot be decoded", (_FILES,)),
        ("Duplicates", f"{len(report.copies):,}", "sets of images that show one photo", tuple(_KINDS.values())),
        ("Label conflicts", f"{sum(item.conflict for item in report.copies):,}", "of these sets: different labels", (_CONFLICTS,)),
        ("Possible label errors", f"{len(report.label_issues):,}", f"{strong:,} strong indications, for a review", (_ISSUES,)),
        ("Possible flaws", f"{len(report.flaws):,}", "dark, blurred, uniform, odd sizes", (_FLAWED,)),
    ]
    if report.leakage:
        cards.append(("Leaked test images", f"{leaked:,}", "levels L0 and L1", (_LEAKAGE,)))
    shown = []
    for name, value, note, titles in cards:
        place = next((places[title] for title in titles if title in places), None)
        head = element("a", name, href=f"#{place}") if place else name
        number = [element("div", value, class_="value"), element("div", note, class_="note")]
        shown.append(element("div", element("dt", head), element("dd", number)))
    return element("section", element("dl", shown, class_="cards"), id="overview")


def _broken(report: AuditReport) -> list[Section]:
    lines = [f"{item.file}: {item.reason}" for item in report.broken[:_MOST_ROWS]]
    more = len(report.broken) - len(lines)
    return [(_FILES, [items([*lines, *([f"and {more:,} more: see --json"] if more else [])])])] if lines else []


def _leakage(report: AuditReport) -> list[Section]:
    if not report.leakage:
        return []
    rows: list[Sequence[Child]] = [
        [item.part, f"{item.images:,}", *(f"{getattr(item, name):,}" for name, _ in _LEVELS)] for item in report.leakage
    ]
    note = (
        "An image counts once, at its lowest level. Training images reveal it, so the accuracy is optimistic. `edgetl train` rejects "
        "splits with more than 0.5 % of the test images at L0 or L1."
    )
    head = ("split", "images", *(title for _, title in _LEVELS))
    return [(_LEAKAGE, [table("Leaked images of each split", head, rows), paragraph(note, class_="note")])]


def _conflicts(report: AuditReport, galleries: Galleries) -> list[Section]:
    found = [item for item in report.copies if item.conflict]
    if not found:
        return []
    text = f"{len(found):,} sets of images of one photo have different labels. At least one label of each set is wrong."
    text += " The prediction comes from a probe without these images. It may be wrong." if report.probe_accuracy is not None else ""
    return [(_CONFLICTS, [paragraph(text), galleries.gallery(map(_set_entry, found))])]


def _label_issues(report: AuditReport, galleries: Galleries) -> list[Section]:
    found = report.label_issues
    if not found:
        return _uncertain(report, galleries)
    accuracy = f"They predict {report.probe_accuracy:.1%} of all labels. " if report.probe_accuracy is not None else ""
    texts: tuple[str, ...] = (
        f"{len(found):,} labels are possibly wrong. A linear probe and the neighbors of each image predict its label, without the given "
        f"one (confident learning, Northcutt et al. 2021). {accuracy}Some of the listed labels are correct: review them.",
        "Below each image are the probabilities of the given and of the suggested label. In a strong indication they differ by "
        f"{STRONG_MARGIN:g} or more. Of a set of copies, one image is shown. Images of label conflicts are not listed again.",
    )
    if report.small_classes:
        texts += (f"Labels with few images are neither checked nor suggested: {', '.join(report.small_classes)}.",)
    flaws = {item.file: item.flaw for item in report.flaws}
    strong, weak = ([_issue_entry(item, flaws) for item in found if item.strong == grade] for grade in (True, False))
    confusions = Counter((item.label, item.suggested) for item in found).most_common(10)
    rows: list[Sequence[Child]] = [[label, suggested, f"{count:,}"] for (label, suggested), count in confusions]
    content: list[Child] = [
        *map(paragraph, texts),
        [element("h3", f"Strong indications ({len(strong):,})"), galleries.gallery(strong, narrow=True)] if strong else None,
        galleries.folded(f"Weak indications ({len(weak):,})", weak, narrow=True) if weak else None,
        table("Most frequent pairs", ("given label", "suggested label", "images"), rows, text_columns=2),
    ]
    return [(_ISSUES, content), *_uncertain(report, galleries)]


def _uncertain(report: AuditReport, galleries: Galleries) -> list[Section]:
    if not report.uncertain:
        return []
    text = (
        "The probe overlooks wrong labels, too. These images are in no list above, but the probability of their label is below one half. "
        "Open a label, and look for images that do not belong to it. The lowest probability comes first."
    )
    by_label: dict[str, list[Entry]] = {}
    for item in report.uncertain:
        by_label.setdefault(item.label, []).append(((item.file,), f"{item.label} {item.probability:.2f}", (item.file,)))
    content = [galleries.folded(f"{label} ({len(entries):,})", entries, narrow=True) for label, entries in by_label.items()]
    return [("Uncertain labels", [paragraph(text), *content])]


def _issue_entry(item: LabelIssue, flaws: Mapping[str, Flaw]) -> Entry:
    values = f"{item.label} {item.given_probability:.2f}, {item.suggested} {item.suggested_probability:.2f}"
    lines = [values, *([flaws[item.file]] if item.file in flaws else []), item.file]
    return (item.file,), f"{item.label} → {item.suggested}?", lines


def _copies(report: AuditReport, galleries: Galleries) -> list[Section]:
    sections: list[Section] = []
    for kind, title in _KINDS.items():
        found = [item for item in report.copies if item.kind == kind and not item.conflict]
        if found:
            text = f"{len(found):,} sets of images. {_KIND_TEXTS[kind]}"
            sections.append((title, [paragraph(text), galleries.gallery(map(_set_entry, found))]))
    return sections


def _set_entry(item: CopySet) -> Entry:
    labels, parts = dict.fromkeys(item.labels), dict.fromkeys(item.parts)
    title = " = ".join(labels) if len(labels) > 1 else f"{item.labels[0]}, {len(item.files)} images"
    lines = [f"prediction: {item.suggested} ({item.suggested_probability:.2f})"] if item.suggested_probability is not None else []
    lines += [f"splits: {', '.join(parts)}"] * (len(parts) > 1) + list(item.files[:6]) + ["…"] * (len(item.files) > 6)
    return item.files, title, lines


def _similar(report: AuditReport, galleries: Galleries) -> list[Section]:
    if not report.similar:
        return []
    text = (
        "These images are more similar than 99.9 % of the images with different labels, but not the same photo. They are often photos of "
        "one object. If so, keep them in one split with --group. Pairs with different labels come first: one of the labels may be wrong."
    )
    entries = [
        (item.files, f"{' ≠ '.join(item.labels)}, " * (item.labels[0] != item.labels[1]) + f"similarity {item.similarity:.2f}", item.files)
        for item in report.similar
    ]
    return [("Similar images", [paragraph(text), galleries.gallery(entries)])]


def _flaws(report: AuditReport, galleries: Galleries) -> list[Section]:
    content: list[Child] = []
    for flaw, title in _FLAWS.items():
        found = [item for item in report.flaws if item.flaw == flaw]
        if found:
            entries = [((item.file,), item.text, (item.file,)) for item in found]
            content += [
                element("h3", f"{title} ({len(found):,})"),
                paragraph(_FLAW_NOTES[flaw], class_="note"),
                galleries.gallery(entries, narrow=True),
            ]
    return [(_FLAWED, content)] if content else []


def _series(report: AuditReport, galleries: Galleries) -> list[Section]:
    if not report.series:
        return []
    images = sum(len(item.files) for item in report.series)
    crossing = sum(len(item.parts) > 1 for item in report.series)
    text = (
        f"{len(report.series):,} series with {images:,} images were probably taken together. Keep each in one split with --group, or train "
        "on the cleaned list, which has a column of groups."
    )
    text += f" {crossing:,} are in several ready-made splits." if crossing else ""
    entries = [
        (
            item.files,
            f"{item.name}, {len(item.files)} images",
            [item.source, *([f"splits: {', '.join(item.parts)}"] * (len(item.parts) > 1))],
        )
        for item in report.series
    ]
    return [("Series and groups", [paragraph(text), galleries.gallery(entries)])]


def _classes(report: AuditReport) -> Section:
    most = max(report.counts.values(), default=0)
    rows: list[Sequence[Child]] = []
    for label, count in sorted(report.counts.items(), key=lambda item: -item[1]):
        length = 100 * count / most if most else 0.0
        bar = element("span", element("span", style=f"inline-size: {length:.1f}%"), class_="meter", aria_hidden="true")
        rows.append([label, bar, f"{count:,}"])
    warnings = (
        [f"{', '.join(report.small_classes)}: fewer than 10 images. Add images, or leave the label out."] if report.small_classes else []
    )
    if report.empty_classes:
        warnings.append(f"{', '.join(report.empty_classes)}: no images. Add images, or remove the label.")
    if report.imbalance > 3:
        warnings.append(
            f"The most frequent label has {report.imbalance:g} times as many images as the rarest one with images. Consider --balance."
        )
    return "Labels", [
        [paragraph(text, class_="warning") for text in warnings],
        table("Images of each label", ("label", "ratio", "images"), rows, text_columns=2),
    ]


def _cleaned_list(report: AuditReport) -> Section:
    text = f"`--keep FILE` writes a label table without {len(report.removed):,} images."
    if report.remaining:
        left = ", ".join(f"{kind} ({count:,})" for kind, count in report.remaining.items())
        text += f" It still contains findings: {left}. Review them. `--drop KINDS` leaves kinds out, such as `--drop blurred,dark`."
    lines = [f"{item.file}: {item.reason}" for item in report.removed[:_MOST_ROWS]]
    more = len(report.removed) - len(lines)
    listed = element("details", element("summary", f"Images that it leaves out ({len(report.removed):,})"), items(lines))
    note = paragraph(f"{more:,} more are not shown. --json lists all.", class_="note") if more else None
    return "Cleaned list", [paragraph(text), listed if lines else None, note]


def _notes(report: AuditReport) -> list[Section]:
    lines = [f"Left out: {item.check}: {item.reason}." for item in report.left_out] + [note.describe() for note in report.notes]
    if not report.leakage:
        lines.append(
            "The folder has no ready-made splits. `edgetl train` keeps all copies of an image in one split. Photos of one object or burst "
            "stay together only with --group."
        )
    if report.backbone:
        lines.append(f"Features: {report.backbone}. Images with a similarity of {report.threshold} or more were candidates of duplicates.")
    return [("Notes", [items(lines)])] if lines else []
