"""Active learning (``edgetl label``): its options and its result."""

from __future__ import annotations

from functools import partial
from typing import Literal

from edgetl.core.config import StrictModel
from edgetl.core.options import COMMON, option_field

_common = partial(option_field, panel=COMMON)


class LabelingConfig(StrictModel):
    """Options of ``label`` that are not options of the backbone."""

    count: int = _common(50, "Images to choose, 1..1000.", ge=1, le=1000)
    labels: str | None = _common(
        None,
        "Table (CSV) of the labels so far, with the columns `file` and `label`. Rows without a label are ignored. Without it, the images "
        "are chosen by diversity alone.",
        metavar="FILE",
    )


class ChosenImage(StrictModel):
    """Image to label next.

    Attributes:
        file: path in the data folder.
        suggested: most probable class; empty without labels.
        margin: difference of the two largest scores, 0..1; none without labels. A small margin means an uncertain prediction.
    """

    file: str
    suggested: str = ""
    margin: float | None = None


class LabelingReport(StrictModel):
    """Result of ``label``.

    Attributes:
        data: folder of the images.
        backbone: network that computes the features.
        images: number of readable images.
        labeled: number of images with a label.
        rule: how the images were chosen.
        chosen: images to label, the most useful first.
        seconds: duration, s.
    """

    schema_version: Literal[1] = 1
    data: str
    backbone: str
    images: int
    labeled: int
    rule: Literal["diversity", "uncertainty and diversity"]
    chosen: tuple[ChosenImage, ...]
    seconds: float
