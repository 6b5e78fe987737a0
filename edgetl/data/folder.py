"""Scan of a folder of labeled images. Every file is decoded. Files that cannot be decoded are reported and left out."""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

from edgetl.core.files.names import label_problem, printable
from edgetl.core.images.intensity import Levels
from edgetl.core.output_decoding import describe_truth
from edgetl.core.progress import Progress, silent
from edgetl.core.tasks import ANOMALY_LABELS, CLASS_TASKS, OutputDecoding, Task
from edgetl.data.content.facts import ImageFacts
from edgetl.data.content.integrity import check_images
from edgetl.data.content.masks import find_masks
from edgetl.data.layout import ClassFolder, find_classes, parts_of
from edgetl.data.layout import Part as Part
from edgetl.data.listing import Folder, find_images, list_images
from edgetl.data.scan_notes import Notes, ScanNote, log_notes
from edgetl.data.selection import NO_SELECTION, Selection
from edgetl.errors import DataError

# Function from the tree of a data folder to its class folders.
FindClasses: TypeAlias = Callable[[Folder, Notes], list[ClassFolder]]

_log = logging.getLogger(__name__)

MAX_BROKEN_RATIO = 0.10
MIN_IMAGES_PER_CLASS = 2


@dataclass(frozen=True, slots=True)
class SyntheticDefect:
    """Synthetic defect of a normal image.

    Attributes:
        kind: ``cut-paste`` is a piece of the image at another place. ``confetti`` is three rectangles of random colors.
            ``small-confetti`` is one small rectangle.
        copy: number of the copy of the image. Copies have different defects.
    """

    kind: Literal["cut-paste", "confetti", "small-confetti"]
    copy: int = 0


@dataclass(frozen=True, slots=True)
class Sample:
    """Readable image with its label.

    Attributes:
        path: image file.
        label: index into the folder's labels. For images of a multi-label, regression or ordinal table: index of the stratum, which
            splits keep in proportion.
        content: SHA-256 (hex) of the upright RGB pixels. Copies of an image have equal values.
        part: split of an image in a ready-made ``train/``, ``val/`` or ``test/`` folder; none without such folders.
        targets: values of a table: 0 or 1 for each label, or one number. Empty for classification.
        group: key of the group. All images of a group stay in one split. Empty for an image without a group.
        levels: smallest and largest value of an image with more than 8 bits per channel; none for other images.
        facts: size, brightness, perceptual hash and more; none for a sample that no scan made.
        synthetic: defect that is drawn on the image after it is decoded (``edgetl.data.anomalies.defects``).
    """

    path: Path
    label: int
    content: str
    part: Part | None = None
    targets: tuple[float, ...] = ()
    group: str = ""
    levels: Levels | None = None
    facts: ImageFacts | None = None
    synthetic: SyntheticDefect | None = None


@dataclass(frozen=True, slots=True)
class BrokenImage:
    """Image file that cannot be decoded, with the reason."""

    path: Path
    reason: str


@dataclass(frozen=True)
class ImageFolder:
    """Result of a scan.

    Attributes:
        root: scanned folder.
        labels: class names in sorted order, or names of the label columns of a table.
        samples: readable images, sorted by path.
        broken: images that cannot be decoded.
        task: task of the labels.
        notes: scan notes.
        grouping: column or pattern that defines the groups; empty for images without groups.
    """

    root: Path
    labels: tuple[str, ...]
    samples: tuple[Sample, ...]
    broken: tuple[BrokenImage, ...]
    task: Task = "classification"
    notes: tuple[ScanNote, ...] = ()
    grouping: str = ""

    def counts(self) -> dict[str, int]:
        """Count the readable images of each label. In a regression or ordinal data set each image counts."""
        if self.task in CLASS_TASKS:
            found = Counter(sample.label for sample in self.samples)
            return {label: found[index] for index, label in enumerate(self.labels)}
        numbers = self.task != "multi-label"
        return {label: sum(numbers or sample.targets[index] > 0 for sample in self.samples) for index, label in enumerate(self.labels)}

    def truth(self, sample: Sample) -> str:
        """Return the true label of ``sample`` as text: its class, its labels, or its number."""
        return describe_truth(OutputDecoding(self.task, self.labels), sample.label, sample.targets)

    def fingerprint(self) -> str:
        """Return the SHA-256 (hex) of all image contents and labels. It does not depend on paths or order."""
        lines = sorted(f"{sample.content} {self.truth(sample)}" for sample in self.samples)
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def scan(
    root: str | Path, *, known_labels: Sequence[str] | None = None, selection: Selection = NO_SELECTION, progress: Progress = silent
) -> ImageFolder:
    """Scan the class folders in ``root``, or in its ``train/``, ``val/`` and ``test/`` folders.

    Every image is decoded once. The results are cached for later scans.

    Args:
        root: data folder. Images may be in nested and linked folders.
        known_labels: labels of a trained model, for its evaluation. Their order is kept. Classes may be absent; other classes are an
            error.
        selection: patterns of files to use or to leave out.
        progress: called after each decoded file.

    Raises:
        DataError: ``root`` is not a folder, the layout is ambiguous, a class is unknown, a class name cannot be exported, or more than
            10 % of the images cannot be decoded. Without ``known_labels`` also: too few classes or images.
    """
    found, classes = _scan(root, known_labels, selection, progress)
    check_broken(found)
    if known_labels is None:
        _check_classes(found, classes)
    return found


def scan_without_limits(root: str | Path, *, selection: Selection = NO_SELECTION, progress: Progress = silent) -> ImageFolder:
    """Scan a folder for a report on its images, as ``scan`` does. Broken images and small classes are no errors.

    Raises:
        DataError: as ``scan``, except for these limits.
    """
    return _scan(root, None, selection, progress)[0]


def scan_anomalies(root: Path, find: FindClasses, *, selection: Selection = NO_SELECTION, progress: Progress = silent) -> ImageFolder:
    """Scan normal images and anomalies for anomaly detection. ``find`` returns their folders for the tree of ``root``.

    Raises:
        DataError: as ``scan``, or as ``find``.
    """
    found, _ = _scan(root, ANOMALY_LABELS, selection, progress, find=find)
    check_broken(found)
    return replace(found, task="anomaly")


def scan_unlabeled(root: Path, *, progress: Progress = silent) -> tuple[Sample, ...]:
    """Scan the images below ``root`` in any arrangement, sorted by path, without labels: each has the label 0.

    Files that are no images or cannot be decoded are logged and left out.

    Args:
        root: folder of images.
        progress: called after each decoded file.

    Raises:
        DataError: ``root`` is not a folder.
    """
    check_folder(root, holds="images, in any arrangement")
    files = find_images(root)
    checked = check_images(files, root, progress=progress)
    samples = tuple(
        Sample(file, 0, result.content, levels=result.levels, facts=result.facts)
        for file in files
        if (result := checked[file]).content is not None
    )
    if broken := [BrokenImage(file, checked[file].reason) for file in files if checked[file].content is None]:
        _log.warning(
            "%s: %s and are left out. First reason: %s", printable(root), _cannot_decode(broken, len(files), root), broken[0].reason
        )
    return samples


def _cannot_decode(broken: Sequence[BrokenImage], total: int, root: Path) -> str:
    """Return the number of images that cannot be decoded, with some of their names."""
    names = ", ".join(printable(item.path.relative_to(root)) for item in broken[:5])
    return f"{len(broken)} of {total} images cannot be decoded ({names}{', …' if len(broken) > 5 else ''})"


def _scan(
    root: str | Path, known: Sequence[str] | None, selection: Selection, progress: Progress, *, find: FindClasses | None = None
) -> tuple[ImageFolder, Sequence[ClassFolder]]:
    folder, notes = check_folder(Path(root)), Notes()
    tree = list_images(folder, selection, notes)
    classes = find_classes(tree, notes, known_labels=known) if find is None else find(tree, notes)
    labels = _labels(folder, classes, known, notes)
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
            label = labels.index(item.label)
            samples.append(Sample(path, label, result.content, item.part, levels=result.levels, facts=result.facts))
            _note_name(path, folder, notes)
    found = ImageFolder(folder, labels, tuple(samples), tuple(broken), notes=notes.result())
    log_notes(found.notes)
    return found, classes


def check_folder(path: Path, *, option: str = "", holds: str = "one folder of images for each class") -> Path:
    """Return ``path`` if it is a folder.

    Args:
        path: path to check.
        option: command-line option for the error message, such as ``--data``.
        holds: expected content of the folder, for the error message.

    Raises:
        DataError: the path does not exist, is a file, or is not accessible.
    """
    try:
        if path.is_dir():
            return path
        problem = "is a file" if path.exists() else "does not exist"
    except OSError as error:
        problem = f"cannot be read: {error.strerror}"
    named = f"{option} {printable(path)}".lstrip()
    raise DataError(f"{named} {problem}. Give a folder with {holds}.")


def split_folders(root: Path) -> dict[str, Part]:
    """Return the split of each ready-made split folder in ``root``, by folder name. Empty without a training split."""
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
    """Return the names of the class folders, or the labels of a trained model.

    Raises:
        DataError: there is no image, the model does not have a class, or JSON, XML or a terminal cannot represent a name.
    """
    if not any(item.folder.count for item in classes):
        where, left_out = printable(root), " ".join(["", *(note.describe() for note in notes.result() if not note.used)])
        raise DataError(
            f"{where} has no images in class folders. Put JPEG, PNG, WebP, BMP or TIFF files into one folder for each class: "
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
                f"{printable(item.folder.path)}: the name of this class folder {problem}. Exported files cannot have it. Rename it."
            )
    return tuple(known or sorted(found))


def check_broken(folder: ImageFolder) -> None:
    """Check the ratio of images that cannot be decoded.

    Raises:
        DataError: the ratio is above ``MAX_BROKEN_RATIO``. The message lists some of the files.
    """
    total = len(folder.samples) + len(folder.broken)
    if len(folder.broken) > MAX_BROKEN_RATIO * total:
        raise DataError(
            f"{printable(folder.root)}: {_cannot_decode(folder.broken, total, folder.root)}. The limit is "
            f"{MAX_BROKEN_RATIO:.0%}. First reason: {folder.broken[0].reason} "
            f"Copy the folder again, convert these files to JPEG or PNG, or remove them."
        )


def _check_classes(folder: ImageFolder, classes: Sequence[ClassFolder]) -> None:
    where = printable(folder.root)
    if len(folder.labels) < 2:
        inside = f"{where}/{printable(classes[0].folder.path.relative_to(folder.root))}"
        more = f" If its folders are the classes, use {inside}." if len(classes[0].folder.folders) > 1 else ""
        raise DataError(f"{where} has one class ({folder.labels[0]}). A classifier needs at least 2 class folders.{more}")
    unread: Counter[str] = Counter()
    for item in classes:
        if suffixes := item.folder.all_unread():
            unread[item.label] += sum(suffixes.values())
    small = [label for label, count in folder.counts().items() if count < MIN_IMAGES_PER_CLASS]
    if small:
        named = [f"{label} ({folder.counts()[label]})" for label in small[:5]]
        others = [f"{label} has {unread[label]} files in unsupported formats" for label in small if unread[label]]
        raise DataError(
            f"{where}: too few readable images in {', '.join(named)}. Each class folder needs at least {MIN_IMAGES_PER_CLASS}. "
            f"{'; '.join(others)}{'. Convert them to JPEG or PNG. ' if others else ''}Add images, or leave the folder out with --exclude."
        )
