"""Options of a model update (``edgetl update``)."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from edgetl.core.config import StrictModel
from edgetl.core.options import COMMON, option_field
from edgetl.train.config.update.result import MemoryKind

_common = partial(option_field, panel=COMMON)
_memory = partial(option_field, panel="Replay memory")
_gate = partial(option_field, panel="Promotion gate")


class UpdateConfig(StrictModel):
    """Options of ``edgetl update``."""

    labels: str | None = _common(
        None,
        "Label table (CSV) of the new images instead of class folders. Default for a folder of --capture: its labels.csv.",
        metavar="PATH",
    )
    columns: str | None = _common(None, "Label column of --labels. Default: label for a folder of --capture.", metavar="NAME")
    exclude: tuple[str, ...] = _common(
        (), "Glob pattern of new files or folders to leave out, such as '*_mask.png'. May be repeated.", metavar="PATTERN"
    )
    val: float = _common(0.15, "Fraction of the new images of each class for validation, above 0, at most 0.5.", gt=0.0, le=0.5)
    seed: int = _common(0, "Random seed of the split and of the folds.", ge=0, lt=2**31)
    data: Path | None = _memory(None, "Folder of the images that the run was trained on. Default: its original path.")
    keep: MemoryKind | None = _memory(
        None,
        "Replay memory of the new run. images: copies of the images. features: outputs of the backbone, where images may not be kept. "
        "Default: images, or features if RUN has only features.",
    )
    replay_per_class: int = _memory(
        20, "Training images of each class in the replay memory. The most typical ones are selected. 0: no replay, for comparison.", ge=0
    )
    max_drop: float = _gate(
        0.02, "Largest accuracy drop on the previous validation images, among the previous classes, 0..1.", ge=0.0, le=1.0
    )
    max_contradicted: float = _gate(
        0.12,
        "Largest fraction of new labels with a probability below 2 % to heads that were fitted without the image, 0..1. 1 turns the check "
        "off.",
        ge=0.0,
        le=1.0,
    )
    release: int | None = option_field(
        None,
        "Release number of the bundles of the new run. Default: one more than that of RUN.",
        panel=COMMON,
        metavar="INT",
        ge=1,
        lt=2**53,
    )
