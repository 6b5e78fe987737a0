"""HTML page of a data audit: findings with galleries, in one file without scripts and network access."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from edgetl.core.files.names import printable
from edgetl.core.output.folders import write_file
from edgetl.data.audit.result import AuditReport, CopySet, Flaw
from edgetl.data.folder import ImageFolder
from edgetl.report.check.galleries import MOST_ENTRIES, Galleries
from edgetl.report.elements import Child, element, html_document, is_generated, items, paragraph, table

_GENERATOR = "edgetl check"
# Base64 makes four bytes of three. The page has at most 5 MB.
_MAX_IMAGE_BYTES = 3_200_000
_MOST_ROWS = 40
_KINDS = {"identical": "Identical pixels", "copy": "Copies", "near-duplicate": "Near-duplicates"}
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
        _leakage(report),
        *_conflicts(report, galleries),
        *_label_issues(report, galleries),
        *_copies(report, galleries),
        *_similar(report, galleries),
        *_flaws(report, galleries),
        *_series(report, galleries),
        _classes(report),
        *_files(report),
    ]
    name = Path(report.data).name or report.data
    links = [element("li", element("a", title, href=f"#part-{place}")) for place, (title, _) in enumerate(sections, start=1)]
    missing = f"{galleries.left_out} images were left out, because the page would exceed 5 MB." if galleries.left_out else None
    body = element(
        "body",
        element("a", "Skip to the content", href="#content", class_="skip"),
        element("header", paragraph("Data check", class_="brand"), element("h1", name)),
        element("nav", element("ul", links), aria_label="Sections", class_="flat"),
        element(
            "main",
            paragraph(missing, class_="warning") if missing else None,
            _overview(report),
            [element("section", element("h2", title), content, id=f"part-{place}") for place, (title, content) in enumerate(sections, 1)],
            id="content",
        ),
        element("footer", paragraph(f"Written by edgetl {version('edgetl')}. The page needs no network.")),
    )
    return html_document(f"Data check: {name}", _GENERATOR, body)


def _overview(report: AuditReport) -> Child:
    leaked = max((item.identical + item.near_duplicates for item in report.leakage), default=0)
    cards: list[tuple[str, str, str]] = [
        ("Images", f"{report.images:,}", f"{report.distinct:,} different photos, {len(report.counts)} labels"),
        ("Broken files", f"{len(report.broken):,}", "they cannot be decoded"),
        ("Duplicate sets", f"{len(report.copies):,}", f"{sum(item.conflict for item in report.copies):,} with different labels"),
        ("Possible label errors", f"{len(report.label_issues):,}", "for a review"),
        ("Possible flaws", f"{len(report.flaws):,}", "dark, blurred, uniform, odd sizes"),
        ("Leaked test images", f"{leaked:,}" if report.leakage else "–", "levels L0 and L1" if report.leakage else "no ready-made splits"),
    ]
    left_out = [f"{item.check}: {item.reason}." for item in report.left_out]
    return element(
        "section",
        element(
            "dl",
            [
                element(
                    "div", element("dt", name), element("dd", element("div", value, class_="value"), element("div", note, class_="note"))
                )
                for name, value, note in cards
            ],
            class_="cards",
        ),
        [element("h3", "Checks that were left out"), items(left_out)] if left_out else None,
        paragraph(
            f"Features: {report.backbone}. Images with a similarity of {report.threshold} or more were compared in detail.", class_="note"
        )
        if report.backbone
        else None,
        id="overview",
    )


def _leakage(report: AuditReport) -> Section:
    if not report.leakage:
        text = (
            "The folder has no ready-made splits. `edgetl train` keeps all copies of an image in one split. Photos of one object or burst "
            "stay together only with --group."
        )
        return "Leakage between splits", [paragraph(text)]
    rows: list[Sequence[Child]] = [
        [item.part, f"{item.images:,}", *(f"{getattr(item, name):,}" for name, _ in _LEVELS)] for item in report.leakage
    ]
    note = (
        "An image counts once, at its lowest level. Training images reveal it, so the accuracy is optimistic. `edgetl train` rejects "
        "splits with more than 0.5 % of the test images at L0 or L1."
    )
    return "Leakage between splits", [
        table("Leaked images of each split", ("split", "images", *(title for _, title in _LEVELS)), rows),
        paragraph(note, class_="note"),
    ]


def _conflicts(report: AuditReport, galleries: Galleries) -> list[Section]:
    found = [item for item in report.copies if item.conflict]
    if not found:
        return []
    text = f"{len(found):,} sets of copies have different labels. At least one label of each set is wrong."
    return [("Label conflicts", [paragraph(text), galleries.gallery(map(_set_entry, found)), _more(len(found))])]


def _label_issues(report: AuditReport, galleries: Galleries) -> list[Section]:
    found = report.label_issues
    if not found:
        return []
    text = (
        f"{len(found):,} labels are probably wrong, the most probable errors first. Each image was predicted by a linear probe and its "
        "neighbors, without its own label (confident learning, Northcutt et al. 2021). Review them: in published studies about half of "
        "such labels were wrong."
    )
    entries = [
        (
            (item.file,),
            f"{item.label} → {item.suggested}?",
            (f"probability {item.given_probability:.2f} → {item.suggested_probability:.2f}", item.file),
        )
        for item in found
    ]
    confusions = Counter((item.label, item.suggested) for item in found).most_common(10)
    rows: list[Sequence[Child]] = [[label, suggested, f"{count:,}"] for (label, suggested), count in confusions]
    return [
        (
            "Possible label errors",
            [
                paragraph(text),
                galleries.gallery(entries),
                _more(len(found)),
                table("Most frequent pairs", ("given label", "suggested label", "images"), rows, text_columns=2),
            ],
        )
    ]


def _copies(report: AuditReport, galleries: Galleries) -> list[Section]:
    sections = []
    for kind, title in _KINDS.items():
        found = [item for item in report.copies if item.kind == kind and not item.conflict]
        if found:
            text = f"{len(found):,} sets of images. {_KIND_TEXTS[kind]}"
            sections.append((title, [paragraph(text), galleries.gallery(map(_set_entry, found)), _more(len(found))]))
    return sections


def _set_entry(item: CopySet) -> tuple[Sequence[str], str, Sequence[str]]:
    labels, parts = dict.fromkeys(item.labels), dict.fromkeys(item.parts)
    title = " = ".join(labels) if len(labels) > 1 else f"{item.labels[0]}, {len(item.files)} images"
    return item.files, title, [f"splits: {', '.join(parts)}"] * (len(parts) > 1) + list(item.files[:6]) + ["…"] * (len(item.files) > 6)


def _similar(report: AuditReport, galleries: Galleries) -> list[Section]:
    if not report.similar:
        return []
    text = (
        "These images are more similar than 99.9 % of the images with different labels, but not the same photo. They are often photos of "
        "one object. If so, keep them in one split with --group."
    )
    entries = [(item.files, f"similarity {item.similarity:.2f}", item.files) for item in report.similar]
    return [("Similar images", [paragraph(text), galleries.gallery(entries), _more(len(report.similar))])]


def _flaws(report: AuditReport, galleries: Galleries) -> list[Section]:
    content: list[Child] = []
    for flaw, title in _FLAWS.items():
        found = [item for item in report.flaws if item.flaw == flaw]
        if found:
            entries = [((item.file,), item.text, (item.file,)) for item in found]
            content += [element("h3", f"{title} ({len(found):,})"), galleries.gallery(entries), _more(len(found))]
    return [("Possible flaws of images", content)] if content else []


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
    return [("Series and groups", [paragraph(text), galleries.gallery(entries), _more(len(report.series))])]


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
    if report.imbalance > 3:
        warnings.append(
            f"The most frequent label has {report.imbalance:g} times as many images as the rarest. Consider --balance of `edgetl train`."
        )
    return "Labels", [
        [paragraph(text, class_="warning") for text in warnings],
        table("Images of each label", ("label", "ratio", "images"), rows, text_columns=2),
    ]


def _files(report: AuditReport) -> list[Section]:
    content: list[Child] = []
    if report.broken:
        lines = [f"{item.file}: {item.reason}" for item in report.broken[:_MOST_ROWS]]
        content += [element("h3", f"Broken files ({len(report.broken):,})"), items(lines)]
    if report.notes:
        content += [element("h3", "Notes of the scan"), items([note.describe() for note in report.notes])]
    if report.removed:
        lines = [f"{item.file}: {item.reason}" for item in report.removed[:_MOST_ROWS]]
        more = len(report.removed) - len(lines)
        content += [
            element("h3", f"Left out of the cleaned list ({len(report.removed):,})"),
            items([*lines, *([f"and {more:,} more: see --json"] if more else [])]),
        ]
    return [("Files", content)] if content else []


def _more(count: int) -> Child:
    return paragraph(f"The first {MOST_ENTRIES} of {count:,} are shown. --json lists all.", class_="note") if count > MOST_ENTRIES else None
