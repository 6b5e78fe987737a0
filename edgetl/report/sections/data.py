"""Data: number of images of each class and split, duplicates, notes of the scan, and training images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from xml.etree.ElementTree import Element

from edgetl.core.files.names import printable
from edgetl.core.tasks import CLASS_TASKS, OutputDecoding
from edgetl.data.groups import describe_grouping
from edgetl.report.elements import Child, element, facts, items, table
from edgetl.report.images import data_uri
from edgetl.report.models import RunFacts, ShownImage

# Longest list of files in the page.
MOST_FILES = 20


def data_section(run: RunFacts) -> list[Child]:
    """Return the content of the section about the images of a run."""
    record, splits = run.record, run.splits
    contents = Counter(entry.content for entry in splits.entries)
    copies = sum(count - 1 for count in contents.values())
    counts = record.images
    rows: list[tuple[str, Child]] = [
        ("Images", f"{counts['train']:,} training, {counts['val']:,} validation, {counts['test']:,} test"),
        *([("Validation", f"cross-validated ({record.folds} folds) on the training images")] if record.folds else []),
        ("Copies", f"{copies:,} images have the same pixels as another image. Copies are in one split." if copies else "none"),
        ("Conflicts", f"{len(splits.conflicts)} groups of equal images with different labels" if splits.conflicts else "none"),
        ("Unreadable", f"{len(splits.broken)} files cannot be decoded and were left out" if splits.broken else "none"),
        ("Groups", describe_grouping(record.grouping, record.task)),
        ("Fingerprint", element("code", splits.fingerprint[:16])),
    ]
    if splits.excluded:
        rows.append(("Left out", f"{len(splits.excluded)} images, because an earlier run of the lineage was trained or selected on them"))
    lists = (("Equal images with different labels", [" = ".join(paths) for paths in splits.conflicts]), ("Unreadable files", splits.broken))
    return [
        facts(rows),
        [_file_list(title, files) for title, files in lists if files],
        items(_notes(run)) if record.notes else None,
        _class_table(run),
        _samples(run.samples),
    ]


def _notes(run: RunFacts) -> list[str]:
    """Return the notes of the scan. Folders of this host are removed from the name of the label table."""
    labels = run.record.config.data.labels
    texts = [note.describe() for note in run.record.notes]
    return [text.replace(printable(labels), printable(Path(labels).name)) for text in texts] if labels else texts


def _file_list(title: str, files: Sequence[str]) -> Element:
    more = [f"and {len(files) - MOST_FILES} more: see splits.json of the run"] if len(files) > MOST_FILES else []
    return element("details", element("summary", f"{title} ({len(files)})"), items([*files[:MOST_FILES], *more]))


def _class_table(run: RunFacts) -> Element:
    """Return a table of the number of images of each class (label, level) and split."""
    names, found = count_labels(run)
    most = max(found[name, "train"] for name in names)
    rows: list[list[Child]] = []
    for name in names:
        train, val, test = (found[name, part] for part in ("train", "val", "test"))
        length = 100 * train / most if most else 0.0
        bar = element("span", element("span", style=f"inline-size: {length:.1f}%"), class_="meter", aria_hidden="true")
        rows.append([name, bar, f"{train:,}", f"{val:,}", f"{test:,}"])
    return table("Images of each label", ("label", "ratio", "training", "validation", "test"), rows, text_columns=2)


def count_labels(run: RunFacts) -> tuple[tuple[str, ...], Counter[tuple[str, str]]]:
    """Return the names of the classes (labels, levels), and the number of images by name and split. A regression has one name."""
    decoding: OutputDecoding = run.record.decoding
    names = decoding.level_names if decoding.task == "ordinal" else decoding.labels
    found: Counter[tuple[str, str]] = Counter()
    for entry in run.splits.entries:
        if decoding.task in CLASS_TASKS:
            found[names[entry.label], entry.part] += 1
        elif decoding.task == "ordinal":
            found[f"{entry.targets[0]:g}", entry.part] += 1
        else:
            present = [decoding.task == "regression" or value > 0 for value in entry.targets]
            found.update((name, entry.part) for name, has in zip(names, present, strict=True) if has)
    return names, found


def _samples(samples: Sequence[ShownImage]) -> Element | None:
    if not samples:
        return None
    shown = [
        element("li", element("img", src=data_uri(item.jpeg), alt=f"Training image of {item.caption[0]}"), element("span", item.caption[0]))
        for item in samples
    ]
    return element("div", element("h4", "Training images"), element("ul", shown, class_="samples"))
