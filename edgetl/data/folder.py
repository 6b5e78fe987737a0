"""Scan of a folder of labelled images. Every file is decoded; broken ones are reported and left out."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgetl.core.files.names import label_problem, printable
from edgetl.core.images.intensity import Levels
from edgetl.core.output_decoding import describe_truth
from edgetl.core.progress import Progress, silent
from edgetl.core.tasks import OutputDecoding, Task
from edgetl.data.content.integrity import check_images
from edgetl.data.content.masks import find_masks
from edgetl.data.layout import ClassFolder, find_classes, parts_of
from edgetl.data.layout import Part as Part
from edgetl.data.listing import list_images
from edgetl.data.scan_notes import Notes, ScanNote, log_notes
from edgetl.data.selection import NO_SELECTION, Selection
from edgetl.errors import DataError

MAX_BROKEN_SHARE = 0.10
MIN_IMAGES_PER_CLASS = 2


@dataclass(frozen=True)
class Sample:
    """One readable image.

    Attributes:
        path: the file.
        label: index into the folder's labels; of images from a table the stratum that splits keep in proportion.
        content: SHA-256 (hex) of the upright RGB pixels, equal for copies of an image.
        part: the split that a ready-made ``train/ val/ test/`` folder puts it in.
        targets: from a table: 0 or 1 for each label, or the one number; empty for a class.
        group: key of the images that stay in one split; empty for an image without a group.
        levels: of more than 8 bits a channel the smallest and largest value; known after a scan.
    """

    path: Path
    label: int
    content: str
    part: Part | None = None
    targets: tuple[float, ...] = ()
    group: str = ""
    levels: Levels | None = None


@dataclass(frozen=True)
class BrokenImage:
    """One file that looks like an image and cannot be decoded."""

    path: Path
    reason: str


@dataclass(frozen=True)
class ImageFolder:
    """Result of a scan: sorted labels, samples sorted by path, scan notes, and the task of the labels.

    ``grouping`` is the column or pattern that gave the groups, if the images have groups.
    """

    root: Path
    labels: tuple[str, ...]
    samples: tuple[Sample, ...]
    broken: tuple[BrokenImage, ...]
    task: Task = "classification"
    notes: tuple[ScanNote, ...] = ()
    grouping: str = ""

    def counts(self) -> dict[str, int]:
        """Readable images of each label; of a column of numbers, those that have one."""
        if self.task == "classification":
            found = Counter(sample.label for sample in self.samples)
            return {label: found[index] for index, label in enumerate(self.labels)}
        numbers = self.task != "multi-label"
        return {label: sum(numbers or sample.targets[index] > 0 for sample in self.samples) for index, label in enumerate(self.labels)}

    def truth(self, sample: Sample) -> str:
        """Truth of ``sample`` as text: its class, its labels, or its number."""
        return describe_truth(OutputDecoding(self.task, self.labels), sample.label, sample.targets)

    def fingerprint(self) -> str:
        """SHA-256 (hex) of the labelled contents: independent of paths and order."""
        lines = sorted(f"{sample.content} {self.truth(sample)}" for sample in self.samples)
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def scan(
    root: str | Path, *, known_labels: Sequence[str] | None = None, selection: Selection = NO_SELECTION, progress: Progress = silent
) -> ImageFolder:
    """Scan class folders below ``root``, or below the folders of ready-made splits there. Every image is decoded once, then cached.

    Args:
        root: the folder. Images may be in nested and linked folders.
        known_labels: of a trained model, to evaluate it: their order is kept, classes may be absent, others are refused.
        selection: files to use, or to leave out, against the rules.
        progress: called after each decoded file.

    Raises:
        DataError: no folder, ambiguous layout, unknown classes, a class name that cannot be exported, more than 10 % broken images, or
            without ``known_labels`` too few classes or images.
    """
    folder, notes = check_folder(Path(root)), Notes()
    classes = find_classes(list_images(folder, selection, notes), notes, known_labels=known_labels)
    labels = _labels(folder, classes, known_labels, notes)
    entries = sorted(((path, item) for item in classes for path in item.folder.files()), key=lambda entry: entry[0])
    contents = check_images([path for path, _ in entries], folder, progress=progress)
    masks = find_masks({path: result for path, result in contents.items() if not _is_included(path, folder, selection)}, folder)
    samples, broken = [], []
    for path, item in entries:
        result = contents[path]
        if path in masks:
            notes.add("mask", path.relative_to(folder), by=f"*{path.suffix}")
        elif result.content is None:
            broken.append(BrokenImage(path, result.reason))
        else:
            samples.append(Sample(path, labels.index(item.label), result.content, item.part, levels=result.levels))
            _note_name(path, folder, notes)
    found = ImageFolder(folder, labels, tuple(samples), tuple(broken), notes=notes.result())
    log_notes(found.notes)
    check_broken(found)
    if known_labels is None:
        _check_classes(found, classes)
    return found


def check_folder(path: Path, *, option: str = "", holds: str = "one folder of images for each class") -> Path:
    """``path``, which must be a folder; ``option`` (``--data``), and what the folder ``holds``, are named in the message.

    Raises:
        DataError: missing, a file, or in a folder that cannot be entered.
    """
    try:
        if path.is_dir():
            return path
        what = "is a file" if path.exists() else "does not exist"
    except OSError as error:
        what = f"cannot be read: {error.strerror}"
    named = f"{option} {printable(path)}".lstrip()
    raise DataError(f"{named} {what}; give a folder that holds {holds}.")


def split_folders(root: Path) -> dict[str, Part]:
    """The folders of ready-made splits in ``root``, by name; none if there is none for training."""
    try:
        names = [entry.name for entry in os.scandir(root) if entry.is_dir()]
    except OSError as error:
        raise DataError(f"{printable(root)} cannot be listed: {error.strerror}. Check its permissions.") from error
    found = parts_of(names)
    return found if "train" in found.values() else {}


def _is_included(path: Path, root: Path, selection: Selection) -> bool:
    return bool(selection.include) and selection.includes(path.relative_to(root).as_posix())


def _note_name(path: Path, root: Path, notes: Notes) -> None:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        notes.add("not-utf8", path.relative_to(root))


def _labels(root: Path, classes: Sequence[ClassFolder], known: Sequence[str] | None, notes: Notes) -> tuple[str, ...]:
    """Labels of the class folders, or those of a trained model.

    Raises:
        DataError: no image, a class that the model does not have, or a name that JSON, XML or a terminal cannot hold.
    """
    if not any(item.folder.count for item in classes):
        where, left_out = printable(root), " ".join(["", *(note.describe() for note in notes.result() if not note.used)])
        raise DataError(
            f"{where} holds no images in class folders. Put JPEG, PNG, WebP, BMP or TIFF files into one folder for each class: "
            f"{where}/cat, {where}/dog.{left_out}"
        )
    found = {item.label for item in classes}
    if known is not None and (unknown := sorted(found - set(known))):
        raise DataError(
            f"{root} has classes that the model does not have: {', '.join(unknown[:5])}. It has {', '.join(known[:10])}. "
            f"Give a folder with class folders of these names."
        )
    for item in classes:
        if problem := label_problem(item.label):
            raise DataError(
                f"{printable(item.folder.path)}: the name of this class folder {problem}, which exported files cannot hold. Rename it."
            )
    return tuple(known or sorted(found))


def check_broken(folder: ImageFolder) -> None:
    """Refuse a folder of which too much cannot be decoded.

    Raises:
        DataError: naming some of the files.
    """
    total = len(folder.samples) + len(folder.broken)
    if len(folder.broken) > MAX_BROKEN_SHARE * total:
        names = ", ".join(printable(item.path.relative_to(folder.root)) for item in folder.broken[:5])
        raise DataError(
            f"{printable(folder.root)}: {len(folder.broken)} of {total} images cannot be decoded ({names}"
            f"{', …' if len(folder.broken) > 5 else ''}); the limit is {MAX_BROKEN_SHARE:.0%}. The first: {folder.broken[0].reason} "
            f"Copy the folder again, convert these files to JPEG or PNG, or remove them."
        )


def _check_classes(folder: ImageFolder, classes: Sequence[ClassFolder]) -> None:
    where = printable(folder.root)
    if len(folder.labels) < 2:
        inside = f"{where}/{printable(classes[0].folder.path.relative_to(folder.root))}"
        more = f" If its folders are the classes, give {inside}." if len(classes[0].folder.folders) > 1 else ""
        raise DataError(f"{where} holds one class ({folder.labels[0]}); a classifier needs at least 2 class folders.{more}")
    unread: Counter[str] = Counter()
    for item in classes:
        if suffixes := item.folder.all_unread():
            unread[item.label] += sum(suffixes.values())
    small = [label for label, count in folder.counts().items() if count < MIN_IMAGES_PER_CLASS]
    if small:
        named = [f"{label} ({folder.counts()[label]})" for label in small[:5]]
        others = [f"{label} holds {unread[label]} files in formats that are not read" for label in small if unread[label]]
        raise DataError(
            f"{where}: too few readable images in {', '.join(named)}; each class folder needs at least {MIN_IMAGES_PER_CLASS}. "
            f"{'; '.join(others)}{'. Convert them to JPEG or PNG. ' if others else ''}Add images, or leave the folder out with --exclude."
        )
