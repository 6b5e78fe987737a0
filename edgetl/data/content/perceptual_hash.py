"""Perceptual hash (pHash): signs of 63 low frequencies of an image. Re-encoded and resized copies have nearly equal hashes."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

# Side of the gray image that is transformed, and number of frequencies per axis that are kept (Zauner 2010, "Implementation and
# Benchmarking of Perceptual Image Hash Functions").
SIDE, KEPT = 32, 8
# Rotations and mirror images of an image.
ORIENTATIONS = 8
# Number of following entries that each entry of a bucket is compared with. It bounds the time for many nearly equal images, such as the
# frames of a fixed camera: they still form a chain.
_MOST_FOLLOWING = 100
# Number of ones of each value of 16 bits.
_ONES = np.unpackbits(np.arange(1 << 16, dtype=np.uint16).view(np.uint8)).reshape(-1, 16).sum(axis=1, dtype=np.uint8)


def _cosines() -> NDArray[np.float64]:
    """Return the first rows of the discrete cosine transform (DCT-II), ``[KEPT, SIDE]``."""
    positions = (2 * np.arange(SIDE) + 1) / (2 * SIDE)
    return np.cos(np.pi * np.arange(KEPT)[:, None] * positions)


_COSINES = _cosines()


def perceptual_hash(gray: NDArray[np.generic]) -> int:
    """Return the 64-bit hash of a gray image ``[SIDE, SIDE]``. The bit of a frequency is 1 if its coefficient is positive.

    The usual median is replaced by 0. Rotations and mirror images then change the bits in a fixed way (``orient``). The bit of the mean
    brightness is always 0.
    """
    coefficients = _COSINES @ gray.astype(np.float64) @ _COSINES.T
    coefficients[0, 0] = 0.0
    return int.from_bytes(np.packbits(coefficients > 0).tobytes(), "big")


def orient(hashes: NDArray[np.uint64], orientation: int) -> NDArray[np.uint64]:
    """Return the hashes of the same images in another orientation, uint64 ``[n]``.

    Args:
        hashes: uint64 ``[n]``.
        orientation: 0 to 7. Bit 0 mirrors left and right, bit 1 mirrors top and bottom, bit 2 then exchanges rows and columns.
    """
    bits = np.unpackbits(hashes.astype(">u8").view(np.uint8)).reshape(-1, KEPT, KEPT)
    odd = np.arange(KEPT) % 2
    # A mirror image changes the sign of the odd frequencies of its axis. The mean brightness (0, 0) has no sign.
    bits = bits ^ (odd * (orientation & 1) ^ odd[:, None] * (orientation >> 1 & 1)).astype(np.uint8)
    if orientation & 4:
        bits = bits.transpose(0, 2, 1)
    return np.packbits(bits.reshape(-1, KEPT * KEPT), axis=1).view(">u8")[:, 0].astype(np.uint64)


def orient_pixels(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Return an image ``[H, W, …]`` in another orientation, as ``orient`` does for its hash."""
    turned = pixels[:: -1 if orientation >> 1 & 1 else 1, :: -1 if orientation & 1 else 1]
    return turned.swapaxes(0, 1) if orientation & 4 else turned


def distances(left: NDArray[np.uint64], right: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """Return the number of different bits of each pair of hashes, uint8 ``[n]``."""
    ones = _ONES[(left ^ right).view(np.uint16)].reshape(-1, 4)
    counts: NDArray[np.uint8] = (ones[:, 0] + ones[:, 1]) + (ones[:, 2] + ones[:, 3])  # faster than a sum along the short axis
    return counts


def near_pairs(hashes: NDArray[np.uint64], most: int, *, orientation: int = 0) -> NDArray[np.int64]:
    """Return the pairs of images whose hashes differ in at most ``most`` bits, int64 ``[pairs, 2]``, sorted, the smaller index first.

    Two such hashes are equal in at least one of ``most + 1`` groups of bits. Only images with equal groups are compared (multi-index
    hashing; Norouzi et al. 2012, arXiv:1307.2982).

    Args:
        hashes: uint64 ``[n]``.
        most: largest number of different bits.
        orientation: orientation of the second image of a pair, as for ``orient``.
    """
    count = len(hashes)
    both = np.concatenate([hashes, orient(hashes, orientation)]) if orientation else hashes
    found = [np.zeros(0, np.int64)]
    for first, second in _near(both, most):
        pairs = np.sort(np.stack([first, second]), axis=0)
        # A pair of two images that are both turned, or both not, is found with orientation 0.
        wanted = (pairs[0] < count) & (pairs[1] >= count) & (pairs[1] - pairs[0] != count) if orientation else pairs[0] < count
        low, high = np.sort(pairs[:, wanted] % count, axis=0)
        found.append(low * count + high)
    return np.column_stack(np.divmod(np.unique(np.concatenate(found)), count))


def _near(hashes: NDArray[np.uint64], most: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield the indices of pairs with an equal group of bits, and at most ``most`` different bits."""
    edges = np.linspace(0, 64, most + 2).round().astype(int)
    for low, high in pairwise(edges.tolist()):
        keys = (hashes >> np.uint64(low)) & np.uint64((1 << (high - low)) - 1)
        order = np.lexsort((hashes, keys))
        ordered, groups = hashes[order], keys[order]
        for offset in range(1, _MOST_FOLLOWING + 1):
            equal = groups[offset:] == groups[:-offset]
            if not equal.any():
                break
            near = np.flatnonzero(equal & (distances(ordered[:-offset], ordered[offset:]) <= most))
            yield order[near], order[near + offset]
