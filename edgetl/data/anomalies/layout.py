"""Layout of a folder for anomaly detection: normal images, and anomalies for the test where they exist."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from edgetl.core.files.names import printable
from edgetl.core.progress import Progress, silent
from edgetl.core.tasks import ANOMALY, NORMAL
from edgetl.data.folder import ImageFolder, Sample
from edgetl.data.layout import ClassFolder, Part, parts_of
from edgetl.data.listing import Folder
from edgetl.data.scan_notes import Notes
from edgetl.data.split import Splits, split
from edgetl.errors import DataError

# Names of folders of normal images. ``good`` is that of MVTec AD (Bergmann et al. 2021, doi:10.1007/s11263-020-01400-4).
NORMAL_NAMES = frozenset({"good", "normal", "ok"})
# Segmentation masks of MVTec AD.
MASKS_NAME = "ground_truth"


def find_normal(root: Folder, notes: Notes) -> list[ClassFolder]:
    """Find the folders of normal images and of anomalies below ``root``.

    - ``train/good``, ``test/good`` and ``test/DEFECT`` as in MVTec AD. The masks in ``ground_truth`` are left out.
    - ``good`` or ``normal``, and other folders of anomalies.
    - One folder of normal images, with any name or none.

    Raises:
        DataError: there are several folders, and none has the name of normal images.
    """
    folders = [folder for folder in root.folders if folder.count and folder.name.casefold() != MASKS_NAME]
    for folder in root.folders:
        if folder.name.casefold() == MASKS_NAME:
            notes.add("mask", folder.path.name, count=folder.count, by=f"{folder.path.name}/")
    parts = parts_of(folder.path.name for folder in folders)
    if "train" in parts.values() or (parts and len(parts) == len(folders)):
        found = [item for folder in folders if folder.path.name in parts for item in _classes(folder, parts[folder.path.name], root)]
        for folder in folders:
            if folder.path.name not in parts:
                notes.add("sibling", folder.path.name, count=folder.count, by=f"{folder.path.name}/")
        return found
    return _classes(replace(root, folders=folders), None, root)


def _classes(folder: Folder, part: Part | None, root: Folder) -> list[ClassFolder]:
    """Return the folders of normal images and of anomalies in ``folder``, which is ``root`` or one of its splits."""
    inner = [item for item in folder.folders if item.count]
    if len(inner) + bool(folder.images) <= 1 and (part != "test" or not inner or _is_normal(inner[0])):
        return [ClassFolder(NORMAL, part, folder)]
    if not folder.images and (any(map(_is_normal, inner)) or part == "test"):
        # Anomalies are never trained on, and need no split.
        return [ClassFolder(*((NORMAL, part) if _is_normal(item) else (ANOMALY, "test")), item) for item in inner]
    where, names = printable(folder.path), [f"{printable(item.path.name)}/" for item in inner]
    mixed = f"images beside the folders {', '.join(names[:5])}" if folder.images else f"the folders {', '.join(names[:5])}"
    raise DataError(
        f"{where} has {mixed}, and none of them is named good/ or normal/. Anomaly detection learns from normal images only. Give a "
        f"folder of normal images, such as {printable(inner[0].path)}, or the layout {printable(root.path)}/train/good, test/good and "
        f"test/DEFECT."
    )


def _is_normal(folder: Folder) -> bool:
    return folder.name.casefold() in NORMAL_NAMES


def split_normal(folder: ImageFolder, *, seed: int, val: float, test: float, together: bool, progress: Progress = silent) -> Splits:
    """Split the normal images as ``split`` does, and add all anomalies to the test split.

    Ready-made splits without normal test images are not kept, because the test needs normal images.
    """
    normal = tuple(sample for sample in folder.samples if sample.label == 0)
    anomalies = tuple(sample for sample in folder.samples if sample.label == 1)
    if not any(sample.part == "test" for sample in normal):
        normal = tuple(replace(sample, part=None) for sample in normal)
    splits = split(replace(folder, samples=normal), seed=seed, val=val, test=test, together=together, progress=progress)
    return replace(splits, folder=folder, test=_sorted((*splits.test, *anomalies)))


def _sorted(samples: Sequence[Sample]) -> tuple[Sample, ...]:
    return tuple(sorted(samples, key=lambda sample: sample.path))
