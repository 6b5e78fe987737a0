"""Layout of a folder for anomaly detection: normal images, and anomalies for the test where they exist."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from edgetl.core.files.names import printable
from edgetl.core.progress import Progress, silent
from edgetl.core.tasks import ANOMALY, NORMAL
from edgetl.data.folder import ImageFolder, Sample
from edgetl.data.layout import PARTS, ClassFolder, Part, parts_of, refuse_unreadable
from edgetl.data.listing import Folder
from edgetl.data.scan_notes import Notes
from edgetl.data.split import Splits, split
from edgetl.errors import DataError

_log = logging.getLogger(__name__)

# Names of folders of normal images. ``good`` is that of MVTec AD (Bergmann et al. 2021, doi:10.1007/s11263-020-01400-4).
NORMAL_NAMES = frozenset({"good", "normal", "ok"})
# Segmentation masks of MVTec AD.
MASKS_NAME = "ground_truth"


def find_normal(root: Folder, notes: Notes) -> list[ClassFolder]:
    """Find the folders of normal images and of anomalies below ``root``.

    - ``train/good``, ``test/good`` and ``test/DEFECT`` as in MVTec AD. The masks in ``ground_truth`` are left out.
    - ``good`` or ``normal``, and other folders of anomalies.
    - One folder of normal images, with any name or none. ``val`` and ``test`` may have a folder of the same name.

    Raises:
        DataError: it is not clear whether images are normal: several folders, and none has the name of normal images; images beside
            folders, or directly in ``test``; splits beside or inside classes; normal images that cannot be read. Also if there are no
            images.
    """
    folders = _with_images(root, root, notes)
    parts = parts_of(folder.path.name for folder in folders)
    splits = sorted((item for item in folders if item.path.name in parts), key=lambda item: PARTS.index(parts[item.path.name]))
    others = [item for item in folders if item.path.name not in parts]
    if splits and others and "train" not in parts.values():
        where, one, other = (printable(item.path.name) for item in (root, splits[0], others[0]))
        raise DataError(
            f"{where}: {one}/ looks like a split, and {other}/ like a class. Move {other}/ into {where}/train/, or rename {one}/ if it has "
            f"anomalies."
        )
    found: list[ClassFolder] = [] if splits else _classes(root, None, root, notes)
    for folder in splits:  # training comes first: the name of its normal images holds for the other splits
        part = parts[folder.path.name]
        if folder.path.name.lower() != part:
            notes.add("splits", f"{folder.path.name}/ as {part}")
        known = {item.folder.name.casefold() for item in found if item.part == "train"}
        found += _classes(folder, part, root, notes, normal=NORMAL_NAMES | known)
    for folder in others if splits else ():
        notes.add("sibling", folder.path.name, count=folder.count, by=f"{folder.path.name}/")
    if splits and root.images:
        notes.add("loose", root.images[0].name, count=len(root.images))
    for item in found:
        _refuse_splits(item.folder)
    if not any(item.folder.count for item in found):
        where = printable(root.path)
        raise DataError(f"{where} has no images. Put normal images (JPEG, PNG, WebP, BMP or TIFF) into it.{_left_out(notes)}")
    return found


def _classes(folder: Folder, part: Part | None, root: Folder, notes: Notes, *, normal: frozenset[str] = NORMAL_NAMES) -> list[ClassFolder]:
    """Return the folders of normal images and of anomalies in ``folder``.

    Args:
        folder: ``root``, or one of its splits.
        part: split; none for ``root``.
        root: data folder.
        notes: receives the folders that are read in an unusual way.
        normal: names of folders of normal images.
    """
    inner = _with_images(folder, root, notes if part else Notes())
    trains = part in (None, "train")
    if not inner and part != "test":
        if part is None and root.images:
            notes.add("normal", root.path.name)
        return [ClassFolder(NORMAL, part, replace(folder, folders=[]))]
    if folder.images:
        raise _unclear(folder, f"beside {printable(inner[0].path.name)}/" if inner else "in no folder")
    if trains and len(inner) == 1 and inner[0].name.casefold() not in normal:
        notes.add("normal", inner[0].path.relative_to(root.path))
        return [ClassFolder(NORMAL, part, inner[0])]
    found = [ClassFolder(*((NORMAL, part) if item.name.casefold() in normal else (ANOMALY, "test")), item) for item in inner]
    if trains and all(item.label == ANOMALY for item in found):
        raise DataError(
            f"{printable(folder.path)} has the folders {_listed(inner)}, and none of them is named good/, normal/ or ok/. Rename the "
            f"folder of normal images to good/. If each folder is a data set of its own, give one of them, such as "
            f"{printable(inner[0].path)}."
        )
    for item in inner if part in ("train", "val") else ():
        if item.name.casefold() not in normal:
            name = item.path.relative_to(root.path).as_posix()
            notes.add("anomaly", name, count=item.count, by=f"{name}/")
    return found


def _with_images(folder: Folder, root: Folder, notes: Notes) -> list[Folder]:
    """Return the folders in ``folder`` that have images, without masks.

    Raises:
        DataError: a folder cannot be listed; or a folder of normal images has none, and the others would be taken for it.
    """
    refuse_unreadable(folder.folders)
    found = []
    for item in folder.folders:
        name = item.path.relative_to(root.path).as_posix()
        if item.name.casefold() == MASKS_NAME:
            notes.add("ground-truth", name, count=item.count, by=f"{name}/")
        elif item.count:
            found.append(item)
        elif item.name.casefold() in NORMAL_NAMES:
            reasons = _left_out(notes)
            raise DataError(f"{printable(item.path)} has no images that are read. Put normal images there, or remove the folder.{reasons}")
    return found


def _refuse_splits(folder: Folder) -> None:
    """Refuse splits and folders of normal images inside a class: their images would be mixed.

    Raises:
        DataError: ``folder``, or a folder below it, has such folders.
    """
    inner = [item for item in folder.folders if item.count]
    parts = parts_of(item.path.name for item in inner)
    named = folder.name.casefold() not in NORMAL_NAMES and any(item.name.casefold() in NORMAL_NAMES for item in inner)
    if named or "train" in parts.values() or len(parts) > 1:
        where = printable(folder.path)
        raise DataError(
            f"{where} is read as one class, and has the folders {_listed(inner)}, which look like splits or classes. Give {where} as "
            f"folder of images, or put the splits above the classes: train/good instead of good/train."
        )
    for item in inner:
        _refuse_splits(item)


def _left_out(notes: Notes) -> str:
    """Return the notes on files that were left out as sentences, after a space."""
    return "".join(f" {note.describe()}" for note in notes.result() if not note.used)


def _unclear(folder: Folder, where: str) -> DataError:
    path = printable(folder.path)
    return DataError(
        f"{path} has {len(folder.images)} images {where}, so it is not clear whether they are normal. Move normal images into {path}/good, "
        f"and anomalies into {path}/DEFECT."
    )


def _listed(folders: Sequence[Folder]) -> str:
    return ", ".join(f"{printable(folder.path.name)}/" for folder in folders[:5])


def split_normal(folder: ImageFolder, *, seed: int, val: float, test: float, together: bool, progress: Progress = silent) -> Splits:
    """Split the normal images as ``split`` does, and add all anomalies to the test split.

    Ready-made splits without normal test images are not kept, because the test needs normal images.
    """
    normal = tuple(sample for sample in folder.samples if sample.label == 0)
    anomalies = tuple(sample for sample in folder.samples if sample.label == 1)
    if not any(sample.part == "test" for sample in normal):
        if any(sample.part for sample in normal):
            _log.info("the test split has no normal images: all normal images are divided again")
        normal = tuple(replace(sample, part=None) for sample in normal)
    splits = split(replace(folder, samples=normal), seed=seed, val=val, test=test, together=together, progress=progress)
    return replace(splits, folder=folder, test=_sorted((*splits.test, *anomalies)))


def _sorted(samples: Sequence[Sample]) -> tuple[Sample, ...]:
    return tuple(sorted(samples, key=lambda sample: sample.path))
