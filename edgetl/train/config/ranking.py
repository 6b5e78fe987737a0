"""Options and result of a ranking of backbones."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal

from pydantic import BeforeValidator

from edgetl.core.config import StrictModel
from edgetl.core.licenses import Policy
from edgetl.core.options import COMMON, option_field, words
from edgetl.core.results import Proportion
from edgetl.data.scan_notes import ScanNote

MIN_IMAGES = 20

_common = partial(option_field, panel=COMMON)
_backbones = partial(option_field, panel="Candidates")
_images = partial(option_field, panel="Images and labels")


class RankConfig(StrictModel):
    """Options of ``rank``."""

    candidates: Annotated[tuple[str, ...], BeforeValidator(words)] = _common(
        (),
        "Backbones to compare, separated by commas. random:NAME adds the same network with random weights. Default: all of "
        "`edgetl models --offline`.",
        metavar="NAMES",
    )
    confirm: int = _common(0, "Best backbones to fine-tune for about 100 steps and to order by their accuracy, 0..10.", ge=0, le=10)
    max_params_m: float | None = _backbones(None, "Largest number of parameters of a candidate, millions.", option="max_params", gt=0)
    max_latency_ms: float | None = _backbones(
        None, "Largest latency of a candidate, ms: one image on one thread in torch on this host.", gt=0
    )
    weights_dir: str | None = _backbones(None, "Local folder with weight files. It is searched before the network is used.", metavar="PATH")
    license_policy: Policy = _backbones(
        "any", "License policy for the weights. commercial leaves out weights that forbid commercial use or state no license."
    )
    images: int = _images(500, "Largest number of images for the comparison, 20..5000, from all classes in turn.", ge=MIN_IMAGES, le=5000)
    include: tuple[str, ...] = _images(
        (), "Glob pattern of files to use that the scan leaves out (masks, thumbnails, hidden files). May be repeated.", metavar="PATTERN"
    )
    exclude: tuple[str, ...] = _images(
        (), "Glob pattern of files or folders to leave out, such as '*_mask.png'. May be repeated.", metavar="PATTERN"
    )
    seed: int = _common(0, "Random seed of splits, batches and augmentation.", ge=0, lt=2**31)


class Ranked(StrictModel):
    """Scores of a candidate.

    Attributes:
        place: from 1. Candidates within one bootstrap standard error of each other share a place.
        rank: mean rank over the scores among the candidates of the same stage, from 1.
        stage: ``small``: compared on small images only. ``native``: also at its own input size. ``confirmed``: also fine-tuned.
        knn, ridge: leave-one-out accuracies, 0..1.
        logme: log evidence per image.
        top1: published ImageNet accuracy, percent.
        latency_ms: median of one image at its own input size, on one thread in torch on this CPU.
        params_m: parameters without a head, millions.
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
    """Candidate that was not ranked, and the reason."""

    name: str
    reason: str


class Ranking(StrictModel):
    """Result of ``rank``, the best first. ``notes`` are those of the scan."""

    schema_version: Literal[1] = 1
    data: str
    images: int
    classes: int
    ranked: tuple[Ranked, ...]
    left_out: tuple[LeftOut, ...]
    seconds: float
    notes: tuple[ScanNote, ...] = ()
