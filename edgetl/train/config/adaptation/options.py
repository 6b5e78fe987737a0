"""Domain adaptation (``edgetl adapt``): its options, and its record in ``run.json``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal, TypeAlias, assert_never

from pydantic import Field

from edgetl.core.config import StrictModel
from edgetl.core.lineage import Sha256
from edgetl.core.options import option_field
from edgetl.core.results import Proportion

Method: TypeAlias = Literal["auto", "mcc", "adabn", "shot"]
# Methods that need no images of the training.
SOURCE_FREE: tuple[Method, ...] = ("adabn", "shot")
SOURCE_ONLY = "source-only"
# Fewest labeled target images that select a network. Below, the 95 % interval of an accuracy is wider than 0.4.
MIN_LABELED = 20
# Fewest target images. BatchNorm statistics of fewer images are too noisy.
MIN_TARGET = 20
# Default length of the training.
PASSES, LEAST_STEPS, MOST_STEPS = 8, 100, 2000


class AdaptationConfig(StrictModel):
    """Options of ``edgetl adapt``."""

    method: Method = option_field(
        "auto",
        "Adaptation method. auto: mcc, and shot if the images of the training are missing; the result is never a network with a lower "
        "validation score than the run. mcc: minimum class confusion on target images, and cross-entropy on training images. adabn: "
        "BatchNorm statistics of the target images. shot: information maximization and pseudo-labels. adabn and shot need no images of the "
        "training.",
    )
    target_labels: Path | None = option_field(
        None,
        "Labeled target images that select the result: a folder with one folder per class, or a table (CSV) with the columns `file` and "
        f"label. At least {MIN_LABELED} images. Default: selection without labels.",
        metavar="PATH",
    )
    data: Path | None = option_field(None, "Folder of the images that the run was trained on. Default: its original path.", metavar="PATH")
    steps: int | None = option_field(
        None, "Optimizer steps, 1..100000. Default: 8 passes over the target images, but 100 to 2000 steps.", ge=1, le=100_000
    )
    batch_size: int = option_field(32, "Batch size: target images per step, 2..4096.", ge=2, le=4096)
    lr: float = option_field(2e-4, "Learning rate of the last stage. 0.0002 is typical.", gt=0.0)
    workers: int | None = option_field(
        None, "Processes that load images. 0 loads in the main process. Default: by the number of cores.", ge=0
    )
    device: Literal["auto", "cpu", "cuda"] = option_field("auto", "Device. auto: a GPU if torch finds one.")
    seed: int = option_field(0, "Random seed.", ge=0)


def default_steps(images: int, batch_size: int) -> int:
    """Return the default number of optimizer steps for ``images`` target images."""
    return min(MOST_STEPS, max(LEAST_STEPS, math.ceil(PASSES * images / batch_size)))


class Candidate(StrictModel):
    """Network that an adaptation compares.

    Attributes:
        name: method of the network, or ``source-only`` for the network of the run.
        information: label-free validation score on the target images, 0..1: mutual information of images and classes by the network's
            scores, relative to the logarithm of the number of classes.
        diversity: entropy of the mean scores, relative to the same logarithm, 0..1. Low if the network predicts few classes.
        collapsed: true if ``diversity`` is below the alarm's limit.
        changed: ratio of target images whose class differs from that of the run, 0..1.
        source: accuracy on validation images of the training; none if they were not read.
        labeled: accuracy on labeled target images; none without them.
    """

    name: str
    information: float
    diversity: float
    collapsed: bool
    changed: float
    source: Proportion | None = None
    labeled: Proportion | None = None


class AdaptationRecord(StrictModel):
    """Domain adaptation of a run, in ``run.json``.

    Attributes:
        requested: method that was requested.
        chosen: name of the candidate whose network the run has.
        selected_by: ``labels`` of target images, the label-free ``score``, or the requested ``method``.
        target: folder of the target images, as an absolute path. The export reads them there.
        labels: folder or table of the labeled target images, as an absolute path; none without them.
        images: number of target images.
        fingerprint: SHA-256 over the content of the target images.
        steps: optimizer steps of the trained candidates.
        candidates: compared networks, the network of the run first.
    """

    requested: Method
    chosen: str
    selected_by: Literal["labels", "score", "method"]
    target: str
    labels: str | None = None
    images: int = Field(ge=1)
    fingerprint: Sha256
    steps: int
    candidates: tuple[Candidate, ...]

    @property
    def chosen_by(self) -> str:
        """Measure that selected the network, as text."""
        match self.selected_by:
            case "labels":
                return "the accuracy on labeled target images"
            case "score":
                return "the information of its predictions, without labels"
            case "method":
                return f"--method {self.requested}"
            case _:
                assert_never(self.selected_by)
