"""What may be asked of a ranking of backbones, and its answer."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from edgetl.core.config import StrictModel
from edgetl.core.licenses import Policy
from edgetl.core.results import Proportion
from edgetl.data.notes import ScanNote

MIN_IMAGES = 20


class RankConfig(StrictModel):
    """Options of ``rank``.

    Attributes:
        candidates: names as ``edgetl train --backbone`` takes them; ``random:NAME`` is a control with random weights. None means every
            backbone of ``edgetl models`` whose weights are on this machine.
        images: largest number of images, the classes in turn.
        max_params_m, max_latency_ms: leave out larger or slower candidates.
        include, exclude: patterns of files, as in ``edgetl.data.selection.Selection``.
        confirm: number of the best that are fine-tuned for about 100 steps and ordered by their validation accuracy.
    """

    candidates: tuple[str, ...] = ()
    weights_dir: str | None = None
    license_policy: Policy = "any"
    images: int = Field(default=500, ge=MIN_IMAGES, le=5000)
    max_params_m: float | None = Field(default=None, gt=0)
    max_latency_ms: float | None = Field(default=None, gt=0)
    confirm: int = Field(default=0, ge=0, le=10)
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    seed: int = Field(default=0, ge=0, lt=2**31)


class Ranked(StrictModel):
    """One candidate's figures.

    Attributes:
        place: from 1; candidates that the images cannot tell apart (within one bootstrap standard error) share it.
        rank: mean of the scorers' ranks among the candidates of the same stage, from 1.
        stage: ``small`` was compared on small images only; ``native`` again at its own input size; ``confirmed`` was fine-tuned.
        knn, ridge: leave-one-out accuracies; ``logme`` log evidence per image.
        top1: published ImageNet accuracy, percent.
        latency_ms: median of one image at its own input size on one thread, torch on this CPU: for comparison, not a promise.
        params_m: without a head.
        confirmed: validation accuracy after the short fine-tuning.
    """

    name: str
    place: int
    rank: float
    stage: Literal["small", "native", "confirmed"]
    knn: float
    ridge: float
    logme: float
    top1: float | None
    latency_ms: float
    params_m: float
    input: tuple[int, int]
    license: str | None
    confirmed: Proportion | None = None


class LeftOut(StrictModel):
    """A candidate that was not ranked, and why."""

    name: str
    reason: str


class Ranking(StrictModel):
    """Result of ``rank``, the best first; ``notes`` are those of the scan."""

    schema_version: Literal[1] = 1
    data: str
    images: int
    classes: int
    ranked: tuple[Ranked, ...]
    left_out: tuple[LeftOut, ...]
    seconds: float
    notes: tuple[ScanNote, ...] = ()
