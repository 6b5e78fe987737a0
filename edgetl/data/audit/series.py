"""Series: images that were probably taken together, by camera and time (EXIF), file names, or the given groups."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

from edgetl.core.files.names import printable
from edgetl.data.audit.result import ImageSeries
from edgetl.data.folder import ImageFolder, Sample

# Longest time between two photos of a burst, s.
BURST_SECONDS = 3.0
# Name of a frame: the name of the series, a separator or a word such as frame, and a number.
_FRAME = re.compile(r"(?P<series>.*?[^\W\d_].*?|.*?\d.*?)[-_. ]+(?:frame|img|image|f|no)?[-_. ]?\d+", re.IGNORECASE)
# A data set with fewer series, or one with nearly all images, has plain numbered names.
_LEAST_SERIES, _MOST_IN_ONE = 3, 0.5


def find_series(folder: ImageFolder) -> list[ImageSeries]:
    """Return the series of two or more images: given groups, bursts of a camera, and numbered file names.

    File names count only if their beginnings form at least three series, and differ from the names of the classes.
    """
    samples = folder.samples
    groups: dict[str, list[int]] = defaultdict(list)
    for index, sample in enumerate(samples):
        if sample.group:
            groups[sample.group].append(index)
    found = [_series(folder, "group", name, members) for name, members in sorted(groups.items()) if len(members) > 1]
    found += [_series(folder, "burst", name, members) for name, members in _bursts(samples)]
    found += [_series(folder, "file names", name, members) for name, members in _frames(folder)]
    return found


def _series(folder: ImageFolder, source: str, name: str, members: Iterable[int]) -> ImageSeries:
    samples = [folder.samples[index] for index in members]
    return ImageSeries.model_validate(
        {
            "source": source,
            "name": printable(name),
            "files": tuple(printable(sample.path.relative_to(folder.root).as_posix()) for sample in samples),
            "parts": tuple(sorted({sample.part for sample in samples if sample.part})),
        }
    )


def _bursts(samples: Sequence[Sample]) -> list[tuple[str, list[int]]]:
    """Return the bursts: photos of one camera, each at most ``BURST_SECONDS`` after another."""
    cameras: dict[str, list[tuple[float, int]]] = defaultdict(list)
    for index, sample in enumerate(samples):
        if sample.facts and sample.facts.capture:
            cameras[sample.facts.capture.camera].append((sample.facts.capture.taken, index))
    found: list[tuple[str, list[int]]] = []
    for camera, shots in sorted(cameras.items()):
        last = float("-inf")
        for taken, index in sorted(shots):
            if taken - last > BURST_SECONDS:
                found.append((camera or "camera not stated", []))
            found[-1][1].append(index)
            last = taken
    return [burst for burst in found if len(burst[1]) > 1]


def _frames(folder: ImageFolder) -> list[tuple[str, list[int]]]:
    """Return the images with a common beginning of their file names, if the names describe series."""
    labels = {re.sub(r"\W|_", "", label.casefold()) for label in folder.labels}
    frames: dict[str, list[int]] = defaultdict(list)
    for index, sample in enumerate(folder.samples):
        stem = PurePosixPath(sample.path.name).stem
        if (match := _FRAME.fullmatch(stem)) and re.sub(r"\W|_", "", match["series"].casefold()) not in labels:
            frames[match["series"]].append(index)
    series = {name: members for name, members in frames.items() if len(members) > 1}
    if len(series) < _LEAST_SERIES or max(map(len, series.values())) > _MOST_IN_ONE * len(folder.samples):
        return []
    return sorted(series.items())
