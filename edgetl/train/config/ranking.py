"""Backbone ranking (``edgetl rank``): its options and its result."""

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
    """Scores of one ranked backbone.

    Attributes:
        name: Name of the backbone.
        place: Place in the ranking, from 1. Backbones within one bootstrap standard error of each other share a place.
        rank: Mean of the ranks by the single scores, among the backbones of the same stage, from 1.
        stage: Last stage of the comparison. ``small`` used small images only, ``native`` used the backbone's own input size, and
            ``confirmed`` fine-tuned the backbone.
        knn: Leave-one-out accuracy of k-NN, 0..1.
        ridge: Leave-one-out accuracy of ridge regression, 0..1.
        logme: LogME score: log evidence per image.
        top1: Published ImageNet accuracy, percent.
        latency_ms: Median latency of one image at the backbone's own input size, in torch on one thread of this CPU. Use it to compare
            backbones only: an exported model has another latency.
        params_m: Parameters without the head, millions.
        input: Input size (height, width), px.
        license: SPDX identifier of the weights' license, or None if unknown.
        confirmed: Validation accuracy after the short fine-tuning, or None.
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
    """Backbone that was not ranked, and the reason."""

    name: str
    reason: str


class Ranking(StrictModel):
    """Result of ``rank``.

    Attributes:
        data: Folder of the images.
        images: Number of images that were compared on.
        classes: Number of classes.
        ranked: Ranked backbones, the best first.
        left_out: Backbones that were not ranked.
        seconds: Duration, s.
        notes: Notes of the scan of the image folder.
    """

    schema_version: Literal[1] = 1
    data: str
    images: int
    classes: int
    ranked: tuple[Ranked, ...]
    left_out: tuple[LeftOut, ...]
    seconds: float
    notes: tuple[ScanNote, ...] = ()
