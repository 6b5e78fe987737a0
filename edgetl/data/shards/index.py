"""Set of shards: files, classes, the rule of the splits, and counts. The images themselves are not listed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from edgetl.core.config import StrictModel, read_json
from edgetl.core.lineage import Sha256
from edgetl.core.output.ownership import SHARD_INDEX_NAME
from edgetl.data.layout import Part
from edgetl.data.shards.members import Annotation
from edgetl.errors import DataError

Count = Annotated[int, Field(ge=0)]
PARTS: tuple[Part, ...] = ("train", "val", "test")


class ShardFile(StrictModel):
    """Shard that `edgetl pack` wrote: its file name, number of images, size and SHA-256."""

    name: str
    images: Count
    size_bytes: Count
    sha256: Sha256


class ShardIndex(StrictModel):
    """Index of shards: the content of ``shards.json``, beside the shards.

    Attributes:
        labels: class names, in the order of the indices in the ``.cls`` members.
        counts: number of images of each class.
        shards: shards in their order.
    """

    schema_version: Literal[1] = 1
    labels: tuple[str, ...]
    counts: dict[str, Count]
    shards: tuple[ShardFile, ...]


def read_index(folder: Path) -> ShardIndex | None:
    """Read the index of the shards in ``folder``; none without one.

    Raises:
        DataError: the index is not valid.
    """
    path = folder / SHARD_INDEX_NAME
    return read_json(path, ShardIndex, DataError) if path.is_file() else None


class SplitRule(StrictModel):
    """Rule of the splits: the hash of the seed and of an image's group, or its key, selects the split.

    The hash is the first 8 bytes of the SHA-256 of ``SEED GROUP`` as a fraction of 2^64. An image below ``test`` is a test image, below
    ``test + val`` a validation image, and otherwise a training image. A split in the JSON of an image has priority.

    Attributes:
        seed: seed of the hash.
        val, test: fractions of the images.
    """

    seed: int
    val: float = Field(ge=0.0, le=0.5)
    test: float = Field(ge=0.0, le=0.5)

    def part_of(self, key: str, annotation: Annotation) -> Part:
        """Return the split of an image."""
        if annotation.part:
            return annotation.part
        place = fraction(f"{self.seed} {annotation.group or key}")
        return "test" if place < self.test else "val" if place < self.test + self.val else "train"


def fraction(text: str) -> float:
    """Return the hash of ``text`` as a number, at least 0 and below 1."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()[:8], "big") / 2**64


class ShardsRecord(StrictModel):
    """Record of the shards of a run, in ``splits.json``. It does not list the images, but the rule that gives their splits.

    Attributes:
        pattern: pattern of the shards, as an absolute path.
        shards: number of shards.
        rule: rule of the splits.
        images: number of images in each split.
        listed: number of images of each split that ``splits.json`` lists.
        digest: SHA-256 over names and sizes of the shards, and keys, labels and sizes of the images.
        unreadable: keys of training images that cannot be decoded, at most 100.
    """

    pattern: str
    shards: Count
    rule: SplitRule
    images: dict[Part, Count]
    listed: dict[Part, Count]
    digest: Sha256
    unreadable: tuple[str, ...] = ()


@dataclass(frozen=True)
class ShardSet:
    """Scanned shards of a training.

    Attributes:
        pattern: pattern of the shards, as an absolute path.
        files: shards in their order.
        labels: class names.
        classes: index of each class by the text of a label.
        rule: rule of the splits.
        train_counts: number of training images of each shard.
        class_counts: number of training images of each class.
        counts: number of images in each split.
        digest: SHA-256 over names and sizes of the shards, and keys, labels and sizes of the images.
        table: class of each key, if a label table replaces the ``.cls`` members.
    """

    pattern: str
    files: tuple[Path, ...]
    labels: tuple[str, ...]
    classes: Mapping[str, int]
    rule: SplitRule
    train_counts: tuple[int, ...]
    class_counts: tuple[int, ...]
    counts: dict[Part, int]
    digest: str
    table: Mapping[str, str] | None = None

    def record(self, listed: dict[Part, int], unreadable: tuple[str, ...] = ()) -> ShardsRecord:
        """Return the record of these shards."""
        return ShardsRecord(
            pattern=self.pattern,
            shards=len(self.files),
            rule=self.rule,
            images=self.counts,
            listed=listed,
            digest=self.digest,
            unreadable=unreadable[:100],
        )
