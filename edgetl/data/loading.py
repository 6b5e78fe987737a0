"""Batches of preprocessed images, decoded ahead in threads: Pillow and NumPy release the interpreter while they work."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgetl.core.images.decode import load_image
from edgetl.core.preprocess import PreprocessSpec, normalize, preprocess, to_pixels
from edgetl.core.system.host import available_cores
from edgetl.data.folder import Sample
from edgetl.errors import ConfigError

Prepare: TypeAlias = Callable[[Sample, PreprocessSpec], NDArray[np.float32]]
# Kept pixels of one set of images; beyond that they are decoded each time.
MAX_KEPT_BYTES = 800_000_000
# Share of an image's area that a random crop keeps at least.
LEAST_CROP = 0.35
# One image's truth: a class index, or float32 ``[labels]``.
Target: TypeAlias = int | NDArray[np.float32]


def batches(
    samples: Sequence[Sample], spec: PreprocessSpec, *, batch_size: int = 32, prepare: Prepare | None = None
) -> Iterator[NDArray[np.float32]]:
    """Yield float32 ``[batch, 3, H, W]`` in the order of ``samples``; the last batch may be smaller.

    ``prepare`` replaces the evaluation's preprocessing, for training views; it is called in threads.

    Raises:
        ImageError: an image became unreadable since the scan.
    """
    yield from _stacked(samples, spec, batch_size, prepare or _evaluation_view)


def pixel_batches(samples: Sequence[Sample], spec: PreprocessSpec, *, batch_size: int = 32) -> Iterator[NDArray[np.uint8]]:
    """As ``batches``, before the pixels are normalised: uint8 ``[batch, H, W, 3]``."""
    yield from _stacked(samples, spec, batch_size, _evaluation_pixels)


def _stacked(
    samples: Sequence[Sample], spec: PreprocessSpec, batch_size: int, make: Callable[[Sample, PreprocessSpec], NDArray[Any]]
) -> Iterator[NDArray[Any]]:
    if batch_size < 1:
        raise ConfigError(f"a batch of {batch_size} images is not possible; give 1 or more.")
    ahead = 2 * batch_size
    with ThreadPoolExecutor(max_workers=available_cores()) as pool:
        pending: deque[Future[NDArray[Any]]] = deque(pool.submit(make, sample, spec) for sample in samples[:ahead])
        following = iter(samples[ahead:])
        while pending:
            rows: list[NDArray[Any]] = []
            while pending and len(rows) < batch_size:
                rows.append(pending.popleft().result())
                if (sample := next(following, None)) is not None:
                    pending.append(pool.submit(make, sample, spec))
            yield np.stack(rows)


def _evaluation_view(sample: Sample, spec: PreprocessSpec) -> NDArray[np.float32]:
    return preprocess(sample.path, spec)


def _evaluation_pixels(sample: Sample, spec: PreprocessSpec) -> NDArray[np.uint8]:
    return np.asarray(to_pixels(load_image(sample.path, intensity=spec.intensity), spec))


class PixelSet:
    """Images for several networks: decoded and resized once, normalized for every batch.

    ``crops`` above 0 replaces each image by that number of random crops, the same in every process.
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
        """Yield float32 ``[batch, 3, H, W]`` in the order of the samples, as the function ``batches`` does.

        Raises:
            ImageError: an image became unreadable since the scan.
        """
        if not self._keep and not self.crops:
            yield from batches(self.samples, self.spec, batch_size=batch_size)
            return
        for start in range(0, len(self), batch_size):
            yield self.rows(range(start, min(start + batch_size, len(self))))

    def rows(self, indices: Iterable[int]) -> NDArray[np.float32]:
        """The images at ``indices``, float32 ``[n, 3, H, W]``."""
        if self._keep and self._pixels is None:
            with ThreadPoolExecutor(max_workers=available_cores()) as pool:
                self._pixels = [pixels for views in pool.map(self._decode, self.samples) for pixels in views]
        if self._pixels is None:
            views = max(1, self.crops)
            chosen = [self._decode(self.samples[index // views])[index % views] for index in indices]
        else:
            chosen = [self._pixels[index] for index in indices]
        out = np.empty((len(chosen), 3, *self.spec.input_size), np.float32)
        for row, pixels in zip(out, chosen, strict=True):
            normalize(pixels, self.spec, row)
        return out

    def _decode(self, sample: Sample) -> list[NDArray[np.uint8]]:
        """Pixels of an image as in evaluation, or of its crops."""
        if not self.crops:
            return [_evaluation_pixels(sample, self.spec)]
        image = load_image(sample.path, intensity=self.spec.intensity)
        random = np.random.default_rng(int(sample.content[:16], 16))
        return [np.asarray(to_pixels(_random_crop(image, random), self.spec)) for _ in range(self.crops)]


def _random_crop(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """A part of ``image`` of its own shape and 35 to 100 % of its area."""
    side = math.sqrt(random.uniform(LEAST_CROP, 1.0))
    width, height = max(1, round(image.width * side)), max(1, round(image.height * side))
    left, top = (int(random.integers(0, free + 1)) for free in (image.width - width, image.height - height))
    return image.crop((left, top, left + width, top + height))


def labels_of(samples: Sequence[Sample]) -> NDArray[np.int64]:
    """The label (or stratum) indices, int64 ``[n]``."""
    return np.array([sample.label for sample in samples], dtype=np.int64)


def groups_of(samples: Sequence[Sample]) -> NDArray[np.int64] | None:
    """Group numbers, int64 ``[n]``, equal for images of one group and for copies of an image; none where no image has a group."""
    if not any(sample.group for sample in samples):
        return None
    keys = [("group", sample.group) if sample.group else ("content", sample.content) for sample in samples]
    numbers = {key: index for index, key in enumerate(dict.fromkeys(keys))}
    return np.array([numbers[key] for key in keys], dtype=np.int64)


def truth_of(samples: Sequence[Sample]) -> NDArray[Any]:
    """The truth: class indices int64 ``[n]``, or from a table float64 ``[n, labels]``."""
    if any(sample.targets for sample in samples):
        return np.array([sample.targets for sample in samples], dtype=np.float64)
    return labels_of(samples)


def target_of(sample: Sample) -> Target:
    """One image's truth, as batches of a training take it."""
    return np.array(sample.targets, np.float32) if sample.targets else sample.label


def stratified(samples: Sequence[Sample], count: int) -> list[Sample]:
    """At most ``count`` samples, the classes taken in turn and each class in the order of its content hash: the same for every call."""
    queues: dict[int, deque[Sample]] = {}
    for sample in sorted(samples, key=lambda item: item.content):
        queues.setdefault(sample.label, deque()).append(sample)
    chosen: list[Sample] = []
    while len(chosen) < count and any(queues.values()):
        for _, queue in sorted(queues.items()):
            if queue and len(chosen) < count:
                chosen.append(queue.popleft())
    return chosen
