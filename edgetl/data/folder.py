"""Scan a folder of labelled images: every file is really decoded, broken ones are named and left out."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from edgetl.core.answers import describe_truth
from edgetl.core.images import EXTENSIONS
from edgetl.core.progress import Progress, silent
from edgetl.core.tasks import Reading, Task
from edgetl.data.integrity import check_images
from edgetl.errors import DataError

Part: TypeAlias = Literal["train", "val", "test"]

MAX_BROKEN_SHARE = 0.10
MIN_IMAGES_PER_CLASS = 2
PART_NAMES: dict[str, Part] = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test",
}  # fmt: skip


@dataclass(frozen=True)
class Sample:
    """One readable image.

    Attributes:
        path: the file.
        label: index into the folder's labels; of images from a table the stratum that splits keep in proportion.
        content: SHA-256 (hex) of the upright RGB pixels, equal for copies of a picture.
        part: the split that a ready-made ``train/ val/ test/`` folder puts it in.
        targets: from a table: 0 or 1 for each label, or the one number; empty for a class.
    """

    path: Path
    label: int
    content: str
    part: Part | None = None
    targets: tuple[float, ...] = ()


@dataclass(frozen=True)
class BrokenImage:
    """One file that looks like an image and cannot be decoded."""

    path: Path
    reason: str


@dataclass(frozen=True)
class ImageFolder:
    """The result of a scan: sorted labels, samples sorted by path, what was left out, and what the labels ask for."""

    root: Path
    labels: tuple[str, ...]
    samples: tuple[Sample, ...]
    broken: tuple[BrokenImage, ...]
    task: Task = "classification"

    def counts(self) -> dict[str, int]:
        """Readable images of each label; of a column of numbers, those that have one."""
        if self.task == "classification":
            found = Counter(sample.label for sample in self.samples)
            return {label: found[index] for index, label in enumerate(self.labels)}
        numbers = self.task != "multi-label"
        return {label: sum(numbers or sample.targets[index] > 0 for sample in self.samples) for index, label in enumerate(self.labels)}

    def truth(self, sample: Sample) -> str:
        """What is known of ``sample``, for people: its class, its labels, or its number."""
        return describe_truth(Reading(self.task, self.labels), sample.label, sample.targets)

    def fingerprint(self) -> str:
        """SHA-256 (hex) of the labelled contents: independent of paths and order."""
        lines = sorted(f"{sample.content} {self.truth(sample)}" for sample in self.samples)
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def scan(root: str | os.PathLike[str], *, known_labels: Sequence[str] | None = None, progress: Progress = silent) -> ImageFolder:
    """Scan class folders below ``root``, or class folders below ``train/``, ``val/`` and ``test/`` there.

    A class is a folder's name; images may lie in nested folders. JPEG, PNG, WebP and BMP files are decoded once and remembered by
    size and time of change. Hidden files and folders, other files, and links to folders are skipped.

    Args:
        root: the folder.
        known_labels: the labels of a trained model, to evaluate it: their order is kept, classes may be absent, others are refused.
        progress: told after each decoded file.

    Raises:
        DataError: not a folder, unknown classes, more than 10 % broken, and without ``known_labels`` too few classes or images.
    """
    folder = Path(root)
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise DataError(f"{folder} {what}; give a folder that holds one folder of images for each class.")
    entries = list(_labelled_files(folder))
    if not entries:
        raise DataError(
            f"{folder} holds no images. Put JPEG, PNG, WebP or BMP files into one folder for each class: {folder}/cat, {folder}/dog."
        )
    found_labels = {label for _, label, _ in entries}
    if known_labels is not None:
        _check_known(folder, found_labels, known_labels)
    labels = tuple(known_labels or sorted(found_labels | set(_empty_classes(folder))))
    contents = check_images([path for path, _, _ in entries], folder, progress=progress)
    samples, broken = [], []
    for path, label, part in entries:
        result = contents[path]
        if result.content is None:
            broken.append(BrokenImage(path, result.reason))
        else:
            samples.append(Sample(path, labels.index(label), result.content, part))
    found = ImageFolder(folder, labels, tuple(samples), tuple(broken))
    check_broken(found)
    if known_labels is None:
        _check_classes(found)
    return found


def has_parts(root: Path) -> bool:
    """Whether ``root`` is a ready-made data set: all its folders are called train, val or test, and train is there."""
    names = [path.name.lower() for path in _visible_folders(root)]
    parts = {PART_NAMES.get(name) for name in names}
    return "train" in parts and None not in parts and len(parts) == len(names)


def _labelled_files(root: Path) -> Iterator[tuple[Path, str, Part | None]]:
    if has_parts(root):
        for folder in _visible_folders(root):
            for class_folder in _visible_folders(folder):
                label = unicodedata.normalize("NFC", class_folder.name)
                yield from ((path, label, PART_NAMES[folder.name.lower()]) for path in images_below(class_folder))
    else:
        for class_folder in _visible_folders(root):
            label = unicodedata.normalize("NFC", class_folder.name)
            yield from ((path, label, None) for path in images_below(class_folder))


def _empty_classes(root: Path) -> Iterator[str]:
    """Class folders without an image file count as classes, so that a typing error or a failed copy is noticed."""
    groups = _visible_folders(root) if has_parts(root) else [root]
    for group in groups:
        for folder in _visible_folders(group):
            if next(images_below(folder), None) is None and not any(True for _ in folder.iterdir()):
                yield unicodedata.normalize("NFC", folder.name)


def _visible_folders(root: Path) -> list[Path]:
    try:
        return sorted(path for path in root.iterdir() if path.is_dir() and not path.is_symlink() and not path.name.startswith("."))
    except OSError as error:
        raise DataError(f"{root} cannot be listed: {error.strerror}. Check its permissions.") from error


def images_below(folder: Path) -> Iterator[Path]:
    """Image files in ``folder`` and the folders in it, by their names; hidden ones are skipped."""
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and Path(name).suffix.lower() in EXTENSIONS:
                yield Path(parent, name)


def _check_known(root: Path, found: set[str], known: Sequence[str]) -> None:
    if unknown := sorted(found - set(known)):
        raise DataError(
            f"{root} has classes that the model does not know: {', '.join(unknown[:5])}. It knows {', '.join(known[:10])}. "
            f"Give a folder with class folders of these names."
        )


def check_broken(folder: ImageFolder) -> None:
    """Refuse a folder of which too much cannot be decoded.

    Raises:
        DataError: naming some of the files.
    """
    total = len(folder.samples) + len(folder.broken)
    if len(folder.broken) > MAX_BROKEN_SHARE * total:
        names = ", ".join(str(item.path.relative_to(folder.root)) for item in folder.broken[:5])
        raise DataError(
            f"{folder.root}: {len(folder.broken)} of {total} images cannot be decoded ({names}…); the limit is "
            f"{MAX_BROKEN_SHARE:.0%}. Copy the folder again, or remove the broken files."
        )


def _check_classes(folder: ImageFolder) -> None:
    if len(folder.labels) < 2:
        raise DataError(f"{folder.root} holds one class ({folder.labels[0]}); a classifier needs at least 2 class folders.")
    small = [f"{label} ({count})" for label, count in folder.counts().items() if count < MIN_IMAGES_PER_CLASS]
    if small:
        raise DataError(
            f"{folder.root}: too few readable images in {', '.join(small[:5])}; each class folder needs at least "
            f"{MIN_IMAGES_PER_CLASS}. Add images, or remove the folder."
        )
