"""Batches of preprocessed images. Threads decode ahead: Pillow and NumPy release the interpreter lock."""

from __future__ import annotations

import copy
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgetl.core.preprocess import PreprocessSpec, normalize, to_pixels
from edgetl.core.system.threads import map_ahead
from edgetl.data.anomalies.defects import read_pixels, read_sample
from edgetl.data.folder import Sample
from edgetl.errors import ConfigError

Prepare: TypeAlias = Callable[[Sample, PreprocessSpec], NDArray[np.float32]]
# Largest size of the pixels that a set of images keeps in memory. Larger sets are decoded each time.
MAX_KEPT_BYTES = 800_000_000
# Images of such a set that are decoded in advance.
_AHEAD = 64
# Least ratio of an image's area that a random crop keeps.
LEAST_CROP = 0.35
# True label of an image: class index, or float32 ``[labels]``.
Target: TypeAlias = int | NDArray[np.float32]


def batches(
    samples: Sequence[Sample], spec: PreprocessSpec, *, batch_size: int = 32, prepare: Prepare | None = None
) -> Iterator[NDArray[np.float32]]:
    """Yield batches of normalized images, float32 ``[batch, 3, H, W]``, in the order of ``samples``. The last batch may be smaller.

    Args:
        samples: images to load.
        spec: preprocessing settings.
        batch_size: images per batch.
        prepare: replaces the preprocessing of evaluation, for training views. It is called in several threads.

    Raises:
        ImageError: an image cannot be read any more.
    """
    yield from _stacked(samples, spec, batch_size, prepare or _evaluation_view)


def pixel_batches(samples: Sequence[Sample], spec: PreprocessSpec, *, batch_size: int = 32) -> Iterator[NDArray[np.uint8]]:
    """Yield batches of resized and cropped pixels, uint8 ``[batch, H, W, 3]``, RGB, as ``batches`` does."""
    yield from _stacked(samples, spec, batch_size, read_pixels)


def _stacked(
    samples: Sequence[Sample], spec: PreprocessSpec, batch_size: int, make: Callable[[Sample, PreprocessSpec], NDArray[Any]]
) -> Iterator[NDArray[Any]]:
    if batch_size < 1:
        raise ConfigError(f"the batch size {batch_size} is not possible. Use 1 or more.")
    rows: list[NDArray[Any]] = []
    for row in map_ahead(lambda sample: make(sample, spec), samples, ahead=2 * batch_size):
        rows.append(row)
        if len(rows) == batch_size:
            yield np.stack(rows)
            rows = []
    if rows:
        yield np.stack(rows)


def _evaluation_view(sample: Sample, spec: PreprocessSpec) -> NDArray[np.float32]:
    out = np.empty((3, *spec.input_size), np.float32)
    normalize(read_pixels(sample, spec), spec, out)
    return out


class PixelSet:
    """Set of images that several networks read: decoded and resized once, normalized for every batch.

    ``crops`` above 0 replaces each image by that number of random crops. They are the same in every process.
    """

    def __init__(self, samples: Sequence[Sample], spec: PreprocessSpec, *, crops: int = 0) -> None:
        self.samples = samples
        self.spec = spec
        self.crops = crops
        self._keep = len(self) * 3 * spec.input_size[0] * spec.input_size[1] <= MAX_KEPT_BYTES
        self._pixels: list[NDArray[np.uint8]] | None = None

    def __len__(self) -> int:
        return len(self.samples) * max(1, self.crops)

    def batches(self, batch_size: int = 32) -> Iterator[NDArray[np.float32]]:
        """Yield batches of normalized images, float32 ``[batch, 3, H, W]``, in the order of the samples.

        Raises:
            ImageError: an image cannot be read any more.
        """
        if not self._keep and not self.crops:
            yield from batches(self.samples, self.spec, batch_size=batch_size)
            return
        for start in range(0, len(self), batch_size):
            yield self.rows(range(start, min(start + batch_size, len(self))))

    def rows(self, indices: Iterable[int]) -> NDArray[np.float32]:
        """Return the normalized images at ``indices``, float32 ``[n, 3, H, W]``."""
        if self._keep and self._pixels is None:
            self._pixels = [pixels for views in map_ahead(self._decode, self.samples, ahead=_AHEAD) for pixels in views]
        if self._pixels is None:
            views = max(1, self.crops)
            chosen = [self._decode(self.samples[index // views])[index % views] for index in indices]
        else:
            chosen = [self._pixels[index] for index in indices]
        out = np.empty((len(chosen), 3, *self.spec.input_size), np.float32)
        for row, pixels in zip(out, chosen, strict=True):
            normalize(pixels, self.spec, row)
        return out

    def with_labels(self, labels: Iterable[int]) -> PixelSet:
        """Return the same images with other labels. Both sets share the decoded pixels."""
        other = copy.copy(self)
        other.samples = [replace(sample, label=label) for sample, label in zip(self.samples, labels, strict=True)]
        return other

    def _decode(self, sample: Sample) -> list[NDArray[np.uint8]]:
        """Return the pixels of an image, or of its random crops."""
        if not self.crops:
            return [read_pixels(sample, self.spec)]
        image = read_sample(sample, self.spec)
        random = np.random.default_rng(int(sample.content[:16], 16))
        return [np.asarray(to_pixels(_random_crop(image, random), self.spec)) for _ in range(self.crops)]


def _random_crop(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """Return a random crop with the aspect ratio of ``image`` and 35 to 100 % of its area."""
    side = math.sqrt(random.uniform(LEAST_CROP, 1.0))
    width, height = max(1, round(image.width * side)), max(1, round(image.height * side))
    left, top = (int(random.integers(0, free + 1)) for free in (image.width - width, image.height - height))
    return image.crop((left, top, left + width, top + height))


def labels_of(samples: Sequence[Sample]) -> NDArray[np.int64]:
    """Return the label (or stratum) indices, int64 ``[n]``."""
    return np.array([sample.label for sample in samples], dtype=np.int64)


def groups_of(samples: Sequence[Sample], copies: Mapping[str, str] | None = None) -> NDArray[np.int64] | None:
    """Return group numbers, int64 ``[n]``; none if no image has a group or a copy in ``copies``.

    Images of a group and copies of an image have equal numbers. ``copies`` has the set of an image's changed copies by its content.
    """
    if not any(sample.group for sample in samples) and not copies:
        return None
    sets = copies or {}
    keys = [("group", sample.group) if sample.group else ("content", sets.get(sample.content, sample.content)) for sample in samples]
    numbers = {key: index for index, key in enumerate(dict.fromkeys(keys))}
    return np.array([numbers[key] for key in keys], dtype=np.int64)


def truth_of(samples: Sequence[Sample]) -> NDArray[Any]:
    """Return the true labels: class indices int64 ``[n]``, or the targets of a table float64 ``[n, labels]``."""
    if any(sample.targets for sample in samples):
        return np.array([sample.targets for sample in samples], dtype=np.float64)
    return labels_of(samples)


def target_of(sample: Sample) -> Target:
    """Return the true label of an image in the form that training batches use."""
    return np.array(sample.targets, np.float32) if sample.targets else sample.label


def stratified(samples: Sequence[Sample], count: int) -> list[Sample]:
    """Select at most ``count`` samples, balanced over the classes.

    The selection is deterministic: classes take turns, and a class is taken in the order of the content hashes.
    """
    queues: dict[int, deque[Sample]] = {}
    for sample in sorted(samples, key=lambda item: item.content):
        queues.setdefault(sample.label, deque()).append(sample)
    chosen: list[Sample] = []
    while len(chosen) < count and any(queues.values()):
        for _, queue in sorted(queues.items()):
            if queue and len(chosen) < count:
                chosen.append(queue.popleft())
    return chosen
