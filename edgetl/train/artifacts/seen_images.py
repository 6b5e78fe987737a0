"""Seen images: images that trained or selected a network, as the first 8 bytes of their content hash and as perceptual hashes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgetl.core.bundle import hash_prefix, pack_prefixes
from edgetl.data.audit.copies import has_details
from edgetl.data.content.perceptual_hash import near_pairs
from edgetl.data.folder import Sample

TRAINED_NAME = "trained-images.bin"
SELECTED_NAME = "selected-images.bin"
PERCEPTUAL_NAME = "perceptual-hashes.bin"
# Largest number of different bits of a copy of a seen image. Its pixels cannot be compared, so the limit is below that of copies.
MOST_BITS = 2


@dataclass(frozen=True)
class SeenImages:
    """Images that trained or selected a run and its ancestors.

    Such images cannot measure the accuracy of the network on new images.

    Attributes:
        trained: hash prefixes of images that a gradient step or a fit used, replayed images included.
        selected: hash prefixes of validation images, which chose among networks.
        perceptual: perceptual hashes of both, to recognize copies without the images. Empty for runs of earlier versions.
    """

    trained: frozenset[int] = frozenset()
    selected: frozenset[int] = frozenset()
    perceptual: frozenset[int] = frozenset()

    @property
    def all(self) -> frozenset[int]:
        """Hash prefixes of both kinds."""
        return self.trained | self.selected

    def __or__(self, other: SeenImages) -> SeenImages:
        return SeenImages(self.trained | other.trained, self.selected | other.selected, self.perceptual | other.perceptual)

    def find(self, samples: Sequence[Sample], *, most_bits: int = MOST_BITS) -> list[int]:
        """Return the indices of images that are seen images by their content, or copies of them by nearly equal perceptual hashes."""
        same = {index for index, sample in enumerate(samples) if hash_prefix(sample.content) in self.all}
        places = [index for index, sample in enumerate(samples) if has_details(sample)]
        if not places or not self.perceptual:
            return sorted(same)
        own = np.array([facts.hash for index in places if (facts := samples[index].facts)], np.uint64)
        pairs = near_pairs(np.concatenate([own, np.array(sorted(self.perceptual), np.uint64)]), most_bits)
        crossing = pairs[(pairs[:, 0] < len(own)) & (pairs[:, 1] >= len(own)), 0]
        return sorted(same | {places[place] for place in crossing.tolist()})

    def write(self, folder: Path) -> None:
        """Write the run's three files of hashes into ``folder``. ``edgetl.core.bundle.unpack_hashes`` reads them."""
        (folder / TRAINED_NAME).write_bytes(pack_prefixes(self.trained))
        (folder / SELECTED_NAME).write_bytes(pack_prefixes(self.selected))
        (folder / PERCEPTUAL_NAME).write_bytes(pack_prefixes(self.perceptual))


def perceptual_hashes(samples: Iterable[Sample]) -> frozenset[int]:
    """Return the perceptual hashes of ``samples`` with enough details for a comparison."""
    return frozenset(sample.facts.hash for sample in samples if sample.facts and has_details(sample))


def prefixes(samples: Iterable[Sample]) -> frozenset[int]:
    """Return the hash prefixes of ``samples``."""
    return frozenset(hash_prefix(sample.content) for sample in samples)
