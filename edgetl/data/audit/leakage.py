"""Leakage: evaluation images of ready-made splits that training images, or the images of an earlier run, reveal."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence

from edgetl.data.audit.copies import Joined
from edgetl.data.audit.result import ImageSeries, Leakage
from edgetl.data.folder import Part, Sample

EVALUATION: tuple[Part, ...] = ("val", "test")


def find_leakage(samples: Sequence[Sample], joined: Joined, series: Sequence[Sequence[int]], seen: Collection[int] = ()) -> list[Leakage]:
    """Count the leaked images of each ready-made split, each at its lowest level (``Leakage``).

    Args:
        samples: images with their splits.
        joined: sets of copies and near-duplicates.
        series: indices of the images of each series.
        seen: indices of images that an earlier run used.
    """
    train = {index for index, sample in enumerate(samples) if sample.part == "train"}
    contents = {samples[index].content for index in train}
    roots = {joined.root(index) for index in train}
    grouped = {index for members in series if not train.isdisjoint(members) for index in members}
    found = []
    for part in EVALUATION:
        counts: dict[str, int] = defaultdict(int)
        images = [index for index, sample in enumerate(samples) if sample.part == part]
        for index in images:
            if samples[index].content in contents:
                counts["identical"] += 1
            elif joined.root(index) in roots:
                counts["near_duplicates"] += 1
            elif index in grouped:
                counts["same_group"] += 1
            elif index in seen:
                counts["earlier_run"] += 1
        if images:
            found.append(Leakage(part=part, images=len(images), **counts))
    return found


def places_of(series: Sequence[ImageSeries], files: Sequence[str]) -> list[list[int]]:
    """Return the indices of the images of each series. ``files`` are the paths of all images."""
    index = {file: place for place, file in enumerate(files)}
    return [[index[file] for file in item.files] for item in series]
