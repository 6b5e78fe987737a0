"""Capture of images that are worth labeling, within a disk budget, as a folder that ``edgetl train`` reads after labeling.

Layout of the folder::

    MODEL/images/2026-11-26-drift-1f8a3c5e9b7d2046.jpg     name: day, reason, content hash
    MODEL/labels.csv                                       one row per image, with empty label columns and the prediction
"""

from __future__ import annotations

import logging
import os
import re
from collections import Counter, deque
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from edgetl.core.files.atomic import STAGING_MARK, storage_error, write_bytes
from edgetl.core.images.file_types import HEADER_BYTES, image_format
from edgetl.core.results import Prediction
from edgetl.core.tasks import CLASS_TASKS, OutputDecoding
from edgetl.data.table.captured import IMAGES_NAME, TABLE_NAME
from edgetl.device.monitoring.label_table import LabelTable
from edgetl.errors import StorageError

logger = logging.getLogger("edgetl.monitor")

Reason: TypeAlias = Literal["drift", "uncertain", "sample"]
REASONS: tuple[Reason, ...] = get_args(Reason)
# Distance of a score from its threshold, at which a multi-label prediction is uncertain.
NEAR_THRESHOLD = 0.1
FACTS = ("predicted", "score", "reason", "captured", "release", "source")
# When the budget is used up, images are deleted until this ratio of it is used. The table is rewritten once for all of them.
_KEPT_RATIO = 0.9
_BLOCK_BYTES = 4096
_EXTENSIONS = {"JPEG": ".jpg", "PNG": ".png", "WebP": ".webp", "BMP": ".bmp", "TIFF": ".tif"}
_NAME = re.compile(rf"\d{{4}}-\d\d-\d\d-({'|'.join(REASONS)})-[0-9a-f]{{16}}\.[a-z]{{3,4}}")


def is_uncertain(prediction: Prediction, decoding: OutputDecoding, below: float) -> bool:
    """Return true if a person should look at the prediction.

    Classification: the image is unknown, or the highest score is less than ``below``. Multi-label: a score is within 0.1 of its
    threshold, in anomaly detection that of the anomaly. Numbers have no measure of uncertainty.
    """
    if decoding.task == "classification":
        return prediction.label is None or prediction.score < below
    scores = prediction.scores if decoding.task == "multi-label" else (prediction.score,)
    near = zip(scores, decoding.decision_rule.thresholds, strict=False)
    return any(abs(score - threshold) < NEAR_THRESHOLD for score, threshold in near)


@dataclass(frozen=True)
class Captured:
    """Facts about an image to capture.

    Attributes:
        prediction: prediction of the image.
        reason: reason of the capture.
        time: time of the capture, ISO 8601.
        release: release of the model.
        source: origin of the image, such as a file name or a camera.
    """

    prediction: Prediction
    reason: Reason
    time: str
    release: int
    source: str = ""


@dataclass(frozen=True)
class _Image:
    """Captured image: name, size on the disk (bytes), and reason."""

    name: str
    size_bytes: int
    reason: str

    @property
    def digest(self) -> str:
        """Content hash in the name."""
        return self.name.rpartition("-")[2].partition(".")[0]


class CaptureFolder:
    """Folder of captured images of one model, with their label table. One process at a time may write it.

    The budget includes the table. If it is used up, the oldest images of the reason with the most bytes are deleted. Images with a label
    stay. Images and rows that a crash left without each other are repaired when the folder is opened.

    Args:
        root: folder of ``--capture``. The model has a subfolder with its name. If a table there has other label columns, the subfolder
            gets a number.
        name: name of the model.
        decoding: task and labels of the model.
        max_bytes: disk budget, bytes.

    Attributes:
        path: folder of the model.
        deleted: number of images that were deleted to keep the budget.
    """

    def __init__(self, root: Path, name: str, decoding: OutputDecoding, *, max_bytes: int) -> None:
        """
        Raises:
            StorageError: the folder cannot be written.
        """
        self.deleted, self._max_bytes, self._task = 0, max_bytes, decoding.task
        labels = ("label",) if decoding.task in CLASS_TASKS else decoding.labels
        number = 1
        while True:
            self.path = root / (name if number == 1 else f"{name}-{number}")
            self._table = LabelTable(self.path / TABLE_NAME, labels, FACTS)
            if self._table.fits():
                break
            number += 1
        self._folder = self.path / IMAGES_NAME
        self._images: dict[str, deque[_Image]] = {reason: deque() for reason in REASONS}  # the oldest first
        self._used: Counter[str] = Counter()
        self._digests: set[str] = set()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            for image in self._find_images():
                self._add(image)
            self._repair_table()
        except OSError as error:
            raise storage_error(self.path, error) from error

    @property
    def used_bytes(self) -> int:
        """Used part of the budget, bytes."""
        return self._used.total() + _on_disk(self._table.size_bytes)

    def save(self, data: bytes, facts: Captured) -> bool:
        """Save an encoded image with a row of the table. Return false if it is already there, or its format is unknown.

        Raises:
            StorageError: the disk is full, or the budget has no space for the image.
        """
        extension = _EXTENSIONS.get(image_format(data[:HEADER_BYTES]) or "")
        digest = sha256(data).hexdigest()[:16]
        if extension is None or digest in self._digests:
            return False
        image = _Image(f"{facts.time[:10]}-{facts.reason}-{digest}{extension}", _on_disk(len(data)), facts.reason)
        self._make_room(image.size_bytes + _BLOCK_BYTES)
        write_bytes(self._folder / image.name, data)
        try:
            self._table.append(self._row(image, facts))
        except StorageError:
            (self._folder / image.name).unlink()
            raise
        self._add(image)
        return True

    def _add(self, image: _Image) -> None:
        self._images[image.reason].append(image)
        self._used[image.reason] += image.size_bytes
        self._digests.add(image.digest)

    def _row(self, image: _Image, facts: Captured) -> dict[str, str]:
        prediction = facts.prediction
        predicted = prediction.label or "" if prediction.value is None else f"{prediction.value:.6g}"
        return {
            "file": image.name,
            "predicted": " ".join(prediction.labels) if self._task == "multi-label" else predicted,
            "score": f"{prediction.score:.4f}",
            "reason": facts.reason,
            "captured": facts.time,
            "release": str(facts.release),
            "source": facts.source,
        }

    def _find_images(self) -> list[_Image]:
        """Return the images of earlier processes, the oldest first, and delete unfinished files."""
        found = []
        for entry in os.scandir(self._folder):
            if entry.name.startswith(STAGING_MARK):
                Path(entry.path).unlink()
            elif match := _NAME.fullmatch(entry.name):
                status = entry.stat(follow_symlinks=False)
                found.append((status.st_mtime_ns, _Image(entry.name, _on_disk(status.st_size), match[1])))
        return [image for _, image in sorted(found, key=lambda item: (item[0], item[1].name))]

    def _repair_table(self) -> None:
        """Remove a torn line and rows without an image, and add rows for images without one."""
        self._table.remove_torn_line()
        rows = self._table.rows()
        kept = [row for row in rows if self._table.is_labeled(row) or (self._folder / row["file"]).is_file()]
        listed = {row["file"] for row in kept}
        every = [image for images in self._images.values() for image in images]
        missing = [{"file": image.name, "reason": image.reason} for image in every if image.name not in listed]
        if missing or len(kept) < len(rows):
            try:
                self._table.rewrite([*kept, *missing])
            except StorageError as error:
                # The next start repairs the table, when the disk is no longer full.
                logger.warning("%s", error)

    def _make_room(self, size_bytes: int) -> None:
        """Delete images until ``size_bytes`` fit into the budget.

        Raises:
            StorageError: all remaining images are labeled, or the budget is too small.
        """
        if self.used_bytes + size_bytes <= self._max_bytes:
            return
        rows = self._table.rows()
        labeled = {row["file"] for row in rows if self._table.is_labeled(row)}
        candidates = {reason: deque(image for image in images if image.name not in labeled) for reason, images in self._images.items()}
        goal = min(_KEPT_RATIO * self._max_bytes, self._max_bytes - size_bytes)
        doomed: set[str] = set()
        while self.used_bytes > goal and (left := [reason for reason in REASONS if candidates[reason]]):
            image = candidates[max(left, key=lambda reason: self._used[reason])].popleft()
            (self._folder / image.name).unlink(missing_ok=True)
            self._images[image.reason].remove(image)
            self._used[image.reason] -= image.size_bytes
            self._digests.discard(image.digest)
            doomed.add(image.name)
        self.deleted += len(doomed)
        if doomed:
            self._table.rewrite([row for row in rows if row["file"] not in doomed])
        if self.used_bytes + size_bytes > self._max_bytes:
            raise StorageError(f"the images in {self.path} have labels and use up the budget. Move them away, or raise --capture-mb.")


def _on_disk(size_bytes: int) -> int:
    """Return the size in whole blocks, bytes."""
    return -(-size_bytes // _BLOCK_BYTES) * _BLOCK_BYTES
