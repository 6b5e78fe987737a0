"""Copies of an image: re-encoded, resized, mirrored or rotated. Perceptual hashes find candidates; their pixels decide."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgetl.core.images.decode import load_image
from edgetl.core.progress import Progress, silent
from edgetl.core.system.host import available_cores
from edgetl.data.content.perceptual_hash import ORIENTATIONS, distances, near_pairs, orient
from edgetl.data.content.registration import SIDE, Details, Thumbnail, color_difference, correlate, find_details, make_thumbnail
from edgetl.data.folder import Sample

Kind: TypeAlias = Literal["identical", "copy", "near-duplicate"]

# Largest number of different bits of the hashes of two candidates. 126 photos that were re-encoded (JPEG quality 40 to 90) and resized (0.5
# to 1) differ in at most 7 bits; 99 % in at most 6. See bench/audit.py.
MOST_BITS = 8
# Candidates that each image is compared with, the nearest first.
MOST_CANDIDATES = 10
# Least correlation of the details of a copy. Re-encoded and resized photos have 0.97 or more. Images that are smaller than a thumbnail have
# few details, and similar ones (handwritten digits) reach 0.97.
LEAST_CORRELATION, LEAST_OF_SMALL = 0.95, 0.98
# Largest difference of the mean colors. Signs and caps of two colors can have equal details.
MOST_COLOR_DIFFERENCE = 0.06
# Smaller or flatter images have too few details for a comparison.
MIN_SIDE, MIN_CONTRAST = 24, 0.02
# Candidates whose thumbnails are decoded at once, and the least side of the decoded image relative to a thumbnail.
_BLOCK, _DECODED = 512, 4
# Images of a block whose details are kept (300 kB each).
_KEPT = 100


@dataclass(frozen=True)
class Pair:
    """Two images that show the same photo.

    Attributes:
        first, second: indices of the images.
        kind: identical pixels; a copy (re-encoded, resized, mirrored or rotated); or a near-duplicate (cropped or edited).
        score: correlation of the details, 0..1.
    """

    first: int
    second: int
    kind: Kind
    score: float


def find_identical(samples: Sequence[Sample]) -> list[Pair]:
    """Return a pair for each image with the pixels of an earlier one.

    Uniform images with different labels are no pair: they show nothing, so that their labels are no conflict.
    """
    first: dict[tuple[str, int], int] = {}
    keys = ((sample.content, sample.label if sample.facts and sample.facts.uniform else -1) for sample in samples)
    found = ((first.setdefault(key, index), index) for index, key in enumerate(keys))
    return [Pair(start, index, "identical", 1.0) for start, index in found if start != index]


def find_copies(samples: Sequence[Sample], *, progress: Progress = silent) -> list[Pair]:
    """Return pairs of images that are copies with other pixels. The pairs connect all copies of an image; some are left out.

    Args:
        samples: images of a scan, with their facts. Images without facts are not compared.
        progress: called after each search by hashes, and after each block of candidates.
    """
    places = np.array(
        list({sample.content: index for index, sample in reversed(list(enumerate(samples))) if has_details(sample)}.values()), int
    )
    places.sort()
    hashes = np.array([facts.hash for index in places if (facts := samples[index].facts)], np.uint64)
    candidates = _nearest(hashes, progress)
    joined = Joined(len(samples))
    found = []
    for start in range(0, len(candidates), _BLOCK):
        block = [
            (places[first], places[second], orientation)
            for first, second, orientation in candidates[start : start + _BLOCK].tolist()
            if not joined.connected(places[first], places[second])
        ]
        compare = _Comparison(load_thumbnails({index: samples[index].path for pair in block for index in pair[:2]}))
        for first, second, orientation in block:
            if not joined.connected(first, second):
                score = compare(first, second, orientation)
                small = _is_small(samples[first]) or _is_small(samples[second])
                if score >= (LEAST_OF_SMALL if small else LEAST_CORRELATION):
                    joined.connect(first, second)
                    found.append(Pair(int(first), int(second), "copy", score))
        progress("comparing copies", min(start + _BLOCK, len(candidates)), len(candidates))
    return found


def copy_sets(samples: Sequence[Sample], *, progress: Progress = silent) -> dict[str, str]:
    """Return the set of each image that has changed copies: a mapping from its content to the smallest content of the set.

    The arguments are those of ``find_copies``.
    """
    joined = Joined(len(samples), find_copies(samples, progress=progress))
    sets = ([samples[index].content for index in group] for group in joined.sets())
    return {content: min(group) for group in sets for content in group}


class Joined:
    """Union-find structure over ``count`` images: sets of images that are connected by pairs."""

    def __init__(self, count: int, pairs: Iterable[Pair] = ()) -> None:
        self._parent = list(range(count))
        for pair in pairs:
            self.connect(pair.first, pair.second)

    def root(self, index: int) -> int:
        """Return the smallest index of the set of ``index``."""
        parent = self._parent
        while parent[index] != index:
            parent[index] = index = parent[parent[index]]
        return index

    def connected(self, first: int, second: int) -> bool:
        """Return true if two images are in one set."""
        return self.root(first) == self.root(second)

    def connect(self, first: int, second: int) -> None:
        """Merge the sets of two images."""
        low, high = sorted((self.root(first), self.root(second)))
        self._parent[high] = low

    def sets(self) -> list[list[int]]:
        """Return the sets of two or more images, each in ascending order."""
        members: dict[int, list[int]] = {}
        for index in range(len(self._parent)):
            members.setdefault(self.root(index), []).append(index)
        return [group for group in members.values() if len(group) > 1]


def has_details(sample: Sample) -> bool:
    """Return true for an image that is large and varied enough for a comparison."""
    facts = sample.facts
    return facts is not None and min(facts.width, facts.height) >= MIN_SIDE and facts.contrast >= MIN_CONTRAST


def load_thumbnails(paths: dict[int, Path]) -> dict[int, Thumbnail]:
    """Decode images in parallel, and return their thumbnails by the same keys.

    Raises:
        ImageError: an image cannot be read any more.
    """
    with ThreadPoolExecutor(available_cores()) as pool:
        return dict(zip(paths, pool.map(lambda path: make_thumbnail(load_image(path, scale=_scale)), paths.values()), strict=True))


def _scale(width: int, height: int) -> int:
    """Return the factor of the scaled decoding of a JPEG file: a thumbnail does not need all pixels of a photo."""
    return next((factor for factor in (8, 4, 2) if min(width, height) >= factor * _DECODED * SIDE), 1)


def _is_small(sample: Sample) -> bool:
    facts = sample.facts
    return facts is not None and min(facts.width, facts.height) < SIDE


def _nearest(hashes: NDArray[np.uint64], progress: Progress) -> NDArray[np.int64]:
    """Return the candidates, int64 ``[n, 3]``: two indices and the orientation of the second image. The nearest of each image only."""
    rows, bits = [np.zeros((0, 3), np.int64)], [np.zeros(0, np.uint8)]
    for orientation in range(ORIENTATIONS):
        pairs = near_pairs(hashes, MOST_BITS, orientation=orientation)
        rows.append(np.column_stack([pairs, np.full(len(pairs), orientation)]))
        bits.append(distances(hashes[pairs[:, 0]], orient(hashes, orientation)[pairs[:, 1]]))
        progress("searching copies", orientation + 1, ORIENTATIONS)
    found, differing = np.concatenate(rows), np.concatenate(bits)
    order = np.lexsort((differing, found[:, 0]))
    found = found[order]
    starts = np.searchsorted(found[:, 0], found[:, 0])
    return found[np.arange(len(found)) - starts < MOST_CANDIDATES]


class _Comparison:
    """Comparison of the images of a block by their thumbnails. The details of the last images are kept."""

    def __init__(self, thumbnails: dict[int, Thumbnail]) -> None:
        self._thumbnails = thumbnails
        self._details = lru_cache(_KEPT)(partial(_find_details, thumbnails))

    def __call__(self, first: int, second: int, orientation: int) -> float:
        """Return the correlation of two images, 0..1. The second one is turned. Images of other colors have 0."""
        if color_difference(self._thumbnails[first], self._thumbnails[second].oriented(orientation)) > MOST_COLOR_DIFFERENCE:
            return 0.0
        return correlate(self._details(first, 0), self._details(second, orientation))


def _find_details(thumbnails: dict[int, Thumbnail], index: int, orientation: int) -> Details:
    return find_details(thumbnails[index].oriented(orientation))
