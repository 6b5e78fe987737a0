"""Seen images: images that trained or selected a network, as the first 8 bytes of their content hash and as perceptual hashes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from edgetl.core.bundle import hash_prefix, pack_prefixes
from edgetl.data.audit.copies import has_details
from edgetl.data.folder import Sample

TRAINED_NAME = "trained-images.bin"
SELECTED_NAME = "selected-images.bin"
PERCEPTUAL_NAME = "perceptual-hashes.bin"


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
