"""What may be asked of a ranking of backbones, and its answer."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator

from edgetl.core.config import StrictModel
from edgetl.core.licenses import Policy
from edgetl.core.options import option_field, words
from edgetl.core.results import Proportion
from edgetl.data.scan_notes import ScanNote

MIN_IMAGES = 20


class RankConfig(StrictModel):
    """Options of ``rank``."""

    candidates: Annotated[tuple[str, ...], BeforeValidator(words)] = option_field(
        (), "Backbones, separated by commas; random:NAME is a control with random weights (default: all of `edgetl models --offline`)."
    )
    images: int = option_field(500, "Images to compare on, at most; the classes in turn.", ge=MIN_IMAGES, le=5000)
    max_params_m: float | None = option_field(None, "Leave out larger backbones, millions of parameters.", option="max_params", gt=0)
    max_latency_ms: float | None = option_field(None, "Leave out slower backbones, ms for one image on one thread in torch.", gt=0)
    confirm: int = option_field(0, "Number of the best backbones to fine-tune for about 100 steps and to order by accuracy.", ge=0, le=10)
    include: tuple[str, ...] = option_field((), "Glob pattern of files to use although the scan leaves them out. May be repeated.")
    exclude: tuple[str, ...] = option_field((), "Glob pattern of files and folders to leave out. May be repeated.")
    weights_dir: str | None = option_field(None, "A local folder of weights, searched first.")
    license_policy: Policy = option_field("any", "any, or commercial: refuse weights that forbid it or do not say.")
    seed: int = option_field(0, "Random seed of splits, folds, batches and augmentation.", ge=0, lt=2**31)


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
