"""Replay memory of an updated run: typical images or their features, and statistics of the features of each class.

Copies of images are in the folder ``memory`` of the run. They are the images of its ``splits.json``, with their content hashes, so that
exports and later updates need no other folder. Statistics and features are in ``memory.tensors``.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray

from edgetl.core.files.atomic import storage_error
from edgetl.data.folder import Part, Sample
from edgetl.errors import RunError
from edgetl.train.artifacts.run import Run
from edgetl.train.artifacts.splits_record import SplitEntry

FOLDER_NAME = "memory"
# A safetensors file with another suffix, because timm loads the first .safetensors file of a folder as the weights.
TENSORS_NAME = "memory.tensors"
# Principal directions of the features of a class.
DIRECTIONS = 32
_SUFFIX = re.compile(r"\.[a-z]{3,4}")


@dataclass(frozen=True, eq=False)
class Remembered:
    """Features of images: float32 ``[n, width]``, with their classes, int64 ``[n]``.

    ``samples`` has the images. It is empty if only features were kept.
    """

    features: NDArray[np.float32]
    labels: NDArray[np.int64]
    samples: tuple[Sample, ...] = ()

    def rows(self, indices: Sequence[int] | NDArray[np.int64]) -> Remembered:
        """Return the images at ``indices``."""
        chosen = np.asarray(indices, np.int64)
        samples = tuple(self.samples[index] for index in chosen) if self.samples else ()
        return Remembered(self.features[chosen], self.labels[chosen], samples)


@dataclass(frozen=True, eq=False)
class ClassStatistics:
    """Normal distribution of the features of each class: mean, principal directions, and variance in the other directions.

    Attributes:
        counts: number of images, int64 ``[classes]``.
        means: float32 ``[classes, width]``.
        directions: principal directions, each as long as its standard deviation, float32 ``[classes, DIRECTIONS, width]``.
        rest: standard deviation of each feature in the other directions, float32 ``[classes, width]``.
    """

    counts: NDArray[np.int64]
    means: NDArray[np.float32]
    directions: NDArray[np.float32]
    rest: NDArray[np.float32]

    def draw(self, counts: NDArray[np.int64], rng: np.random.Generator) -> Remembered:
        """Draw ``counts[label]`` features of each class."""
        labels = np.repeat(np.arange(len(counts)), counts)
        found = [
            self.means[label]
            + rng.standard_normal((count, DIRECTIONS), np.float32) @ self.directions[label]
            + rng.standard_normal((count, len(self.rest[label])), np.float32) * self.rest[label]
            for label, count in enumerate(counts.tolist())
        ]
        return Remembered(np.concatenate(found), labels)


@dataclass(frozen=True)
class Memory:
    """Replay memory.

    Attributes:
        train: training images, which are replayed.
        val: validation images, which the promotion gate compares.
        statistics: features of all training images of each class.
    """

    train: Remembered
    val: Remembered
    statistics: ClassStatistics


def measure_statistics(images: Remembered, classes: int) -> ClassStatistics:
    """Measure the statistics of the features of each class. A class without images has zeros."""
    width = images.features.shape[1]
    counts = np.bincount(images.labels, minlength=classes).astype(np.int64)
    means, rest = np.zeros((classes, width), np.float32), np.zeros((classes, width), np.float32)
    directions = np.zeros((classes, DIRECTIONS, width), np.float32)
    for label in np.flatnonzero(counts):
        rows = images.features[images.labels == label]
        means[label] = rows.mean(axis=0)
        residuals = (rows - means[label]) / np.sqrt(max(len(rows) - 1, 1))
        _, sizes, found = np.linalg.svd(residuals, full_matrices=False)
        kept = min(DIRECTIONS, len(sizes))
        directions[label, :kept] = sizes[:kept, None] * found[:kept]
        rest[label] = np.sqrt(np.maximum((residuals**2).sum(axis=0) - (directions[label] ** 2).sum(axis=0), 0))
    return ClassStatistics(counts, means, directions, rest)


def join(first: Remembered, second: Remembered) -> Remembered:
    """Return the images of both, or their features if one has only features."""
    samples = (*first.samples, *second.samples)
    labels = np.concatenate([first.labels, second.labels])
    return Remembered(np.concatenate([first.features, second.features]), labels, samples if len(samples) == len(labels) else ())


def copy_images(folder: Path, memory: Memory) -> tuple[SplitEntry, ...]:
    """Copy the images of ``memory`` into the folder ``memory`` of a run, and return their entries for ``splits.json``.

    Raises:
        StorageError: the images cannot be written.
    """
    entries: dict[str, SplitEntry] = {}
    parts: tuple[tuple[Part, Remembered], ...] = (("train", memory.train), ("val", memory.val))
    try:
        (folder / FOLDER_NAME).mkdir()
        for part, images in parts:
            for sample in images.samples:
                suffix = sample.path.suffix.lower()
                name = f"{sample.content[:16]}{suffix if _SUFFIX.fullmatch(suffix) else '.img'}"
                if sample.content not in entries:  # an image with two labels is in the training images twice
                    shutil.copyfile(sample.path, folder / FOLDER_NAME / name)
                    entries[sample.content] = SplitEntry(
                        path=name, label=sample.label, content=sample.content, part=part, group=sample.group
                    )
    except OSError as error:
        raise storage_error(folder / FOLDER_NAME, error) from error
    return tuple(entries.values())


def write_tensors(folder: Path, memory: Memory, *, features: bool) -> None:
    """Write the statistics of ``memory`` into the run folder. ``features`` also writes the features of its images."""
    arrays = {f"statistics.{name}": value for name, value in vars(memory.statistics).items()}
    for part, images in (("train", memory.train), ("val", memory.val)) if features else ():
        arrays |= {f"{part}.features": images.features, f"{part}.labels": images.labels}
    tensors = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in arrays.items()}
    (folder / TENSORS_NAME).write_bytes(safetensors.torch.save(tensors))


def read_statistics(run: Run) -> ClassStatistics:
    """Read the statistics that an update has written.

    Raises:
        RunError: the file is damaged.
    """
    classes, width = len(run.record.labels), run.backbone().head.in_features
    shapes = {"counts": (classes,), "means": (classes, width), "directions": (classes, DIRECTIONS, width), "rest": (classes, width)}
    tensors = _tensors(run)
    found = {name: tensors.get(f"statistics.{name}", torch.empty(0)) for name in shapes}
    if any(tuple(found[name].shape) != shape for name, shape in shapes.items()):
        raise _damaged(run)
    return ClassStatistics(**{name: value.numpy() for name, value in found.items()})


def read_features(run: Run) -> tuple[Remembered, Remembered]:
    """Read the features of the training and the validation images that an update has kept in place of images.

    Raises:
        RunError: the file is damaged.
    """
    tensors, width, classes = _tensors(run), run.backbone().head.in_features, len(run.record.labels)
    found = []
    for part in ("train", "val"):
        features, labels = (tensors.get(f"{part}.{name}", torch.empty(0)) for name in ("features", "labels"))
        fits = tuple(features.shape) == (len(labels), width) and labels.ndim == 1
        if not fits or (len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes):
            raise _damaged(run)
        found.append(Remembered(features.numpy(), labels.numpy()))
    return found[0], found[1]


def _tensors(run: Run) -> dict[str, torch.Tensor]:
    tensors = run.read_tensors(TENSORS_NAME)
    for name, value in tensors.items():
        numbers = torch.int64 if name.endswith((".counts", ".labels")) else torch.float32
        if value.dtype != numbers or not bool(value.isfinite().all()):
            raise _damaged(run)
    return tensors


def _damaged(run: Run) -> RunError:
    return RunError(f"{run.path / TENSORS_NAME} does not fit the network of the run. The run is damaged; update again.")
