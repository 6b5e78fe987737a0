"""Assignment of images to shards, in blocks of 16 images.

A unit is a tar shard, a Parquet file, or up to 16 consecutive image files. With at least as many units as shards, unit ``u`` belongs to
shard ``u`` modulo ``count``. Otherwise block ``b`` of unit ``u`` belongs to shard ``u + b`` modulo ``count``, and each process reads all
files. A block is a batch of the network, so the batches do not depend on the number of shards.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import NamedTuple, TypeAlias

from edgetl.data.inputs.item import Item, Wanted
from edgetl.data.inputs.parquet_files import read_parquet
from edgetl.data.inputs.sources import Source
from edgetl.data.inputs.tar_shards import read_tar
from edgetl.errors import ConfigError

BLOCK = 16
# Suffixes of non-images that are counted separately.
_MOST_SUFFIXES = 50

Unit: TypeAlias = tuple[Source, ...]


class Place(NamedTuple):
    """Position of a block: number of its unit, and number in the unit."""

    unit: int
    block: int


START = Place(0, 0)


@dataclass(frozen=True)
class Shard:
    """Shard ``index`` of ``count``, from 0."""

    index: int
    count: int

    def owns(self, number: int) -> bool:
        """Return true if the unit or block ``number`` belongs to this shard."""
        return number % self.count == self.index


@dataclass
class Block:
    """Block of images.

    Attributes:
        place: position of the block.
        images: images with their input files, in order, and the problems of files.
        left_out: number of files in tar shards that are no images, by suffix.
        read_bytes: bytes of the shard's input files that are read after this block.
    """

    place: Place
    images: list[tuple[Source, Item]] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    read_bytes: float = 0.0


class ShardInput:
    """Images of a shard.

    Args:
        sources: all input files, sorted.
        shard: shard to read.
        column: image column of Parquet files; none to find it.
    """

    def __init__(self, sources: Sequence[Source], shard: Shard, *, column: str | None = None) -> None:
        self._units, self._shard, self._column = list(units(sources)), shard, column
        self._whole = len(self._units) >= shard.count
        self.total_bytes = sum(source.size_bytes for number, unit in enumerate(self._units) for source in unit if self._reads(number))
        # Exact number of images; none with tar shards or Parquet files, whose number is not known before they are read.
        own = [unit for number, unit in enumerate(self._units) if self._reads(number)]
        self.total_images = sum(map(len, own)) if all(unit[0].kind == "image" for unit in own) else None

    def blocks(self, start: Place = START) -> Iterator[Block]:
        """Yield the blocks of the shard in order, from ``start`` on.

        Raises:
            DataError: a Parquet file has no image column.
            MissingExtraError: pyarrow is not installed.
        """
        before = 0.0
        for number, unit in enumerate(self._units):
            if not self._reads(number):
                continue
            size = sum(source.size_bytes for source in unit)
            if number >= start.unit:
                for block in self._blocks_of(number, start):
                    block.read_bytes = before + block.read_bytes * size
                    yield block
            before += size

    def _reads(self, number: int) -> bool:
        return self._owns(Place(number, 0)) or (not self._whole and self._units[number][0].kind != "image")

    def _owns(self, place: Place) -> bool:
        return self._shard.owns(place.unit if self._whole else place.unit + place.block)

    def _blocks_of(self, number: int, start: Place) -> Iterator[Block]:
        """Yield the blocks of a unit. ``read_bytes`` is a ratio of the unit here."""

        def wanted(image: int) -> bool:
            place = Place(number, image // BLOCK)
            return place >= start and self._owns(place)

        first, *_ = unit = self._units[number]
        if first.kind == "image":
            if wanted(0):
                yield Block(Place(number, 0), [(source, Item(0, content=source.path)) for source in unit], read_bytes=1.0)
            return
        for index, items in groupby(_items(first, wanted, self._column), lambda item: item.number // BLOCK):
            block = Block(Place(number, index))
            if wanted(index * BLOCK):
                for item in items:
                    _add(block, first, item)
                yield block


def _items(source: Source, wanted: Wanted, column: str | None) -> Iterator[Item]:
    return read_parquet(source.path, wanted, column) if source.kind == "parquet" else read_tar(source.path, wanted)


def _add(block: Block, source: Source, item: Item) -> None:
    block.read_bytes = item.read
    if not item.left_out:
        block.images.append((source, item))
        return
    known = item.left_out in block.left_out or len(block.left_out) < _MOST_SUFFIXES
    block.left_out[item.left_out if known else "others"] += 1


def units(sources: Sequence[Source]) -> Iterator[Unit]:
    """Yield the units of sorted input files. Images on both sides of a tar shard or Parquet file are in different units."""
    for is_image, group in groupby(sources, lambda source: source.kind == "image"):
        files = list(group)
        step = BLOCK if is_image else 1
        yield from (tuple(files[start : start + step]) for start in range(0, len(files), step))


def parse_shard(text: str) -> Shard:
    """Return the shard of a text such as ``3/64``.

    Raises:
        ConfigError: the text is not ``I/N`` with I from 0 to N - 1.
    """
    found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    if found is None or not int(found[1]) < int(found[2]):
        raise ConfigError(f"--shard {text} is not I/N, such as 0/64. I is the number of the shard from 0 to N - 1.")
    return Shard(int(found[1]), int(found[2]))
