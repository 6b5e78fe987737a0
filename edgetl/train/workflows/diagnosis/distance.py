"""Domain distance (``edgetl distance``): two sets of images compared by the features and the scores of a network."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from edgetl.core.bundle import hash_prefix, is_run
from edgetl.core.files.names import printable
from edgetl.core.licenses import check_policy
from edgetl.core.output_decoding import scores_of, softmax
from edgetl.core.progress import Progress, silent
from edgetl.data.folder import Sample, check_folder, scan, scan_unlabeled
from edgetl.data.loading import labels_of
from edgetl.errors import DataError
from edgetl.train.artifacts.loading.load import load_backbone
from edgetl.train.artifacts.run import Run, open_run
from edgetl.train.config.diagnosis.distance import FEW_IMAGES, MIN_IMAGES, DistanceConfig, DistanceReport, ScoreShift
from edgetl.train.config.options import TrainConfig
from edgetl.train.heads.linear import fit_logistic
from edgetl.train.heads.modules import LabeledFeatures
from edgetl.train.inputs.features import features_of
from edgetl.train.networks.backbone import Backbone, with_intensity
from edgetl.train.workflows.diagnosis.two_sample import classify_domains, mmd_test, score_shifts
from edgetl.train.workflows.finetune import choose_device

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Domain:
    """Images of a domain.

    Attributes:
        path: folder or run.
        samples: images. Those of a run have not trained it.
        labels: class names; empty for a folder without class folders.
        problem: reason why there are no class names.
        run: the run; none for a folder.
    """

    path: Path
    samples: tuple[Sample, ...]
    labels: tuple[str, ...] = ()
    problem: str = ""
    run: Run | None = None


def distance(a: Path, b: Path, config: TrainConfig, options: DistanceConfig, *, progress: Progress = silent) -> DistanceReport:
    """Compare two sets of images: proxy-A distance and MMD of their features, and shift of a classifier's scores.

    A run stands for its validation and test images, because a network has other features and scores on images that it was trained on.

    Args:
        a: folder of images, or run. The reference.
        b: folder of images, or run.
        config: backbone that computes the features, if neither is a run.
        options: number of images and of permutations, and significance level.
        progress: called for each batch.

    Raises:
        DataError: a folder has too few images.
        BackboneError: the backbone cannot be found or loaded.
        RunError: a run is damaged.
    """
    started = time.monotonic()
    domains, run = _read_both(a, b, progress)
    drawn = _draw(domains, options.images, config.run.seed)
    backbone = run.backbone() if run else _load(config, drawn[0])
    extract = features_of(backbone, device=choose_device(config.run.device), images=2 * len(drawn[0]))
    first, second = (extract(samples, progress=progress) for samples in drawn)
    mmd = mmd_test(first, second, permutations=options.permutations, seed=config.run.seed)
    level = options.alpha / 2  # two tests
    scores = _run_scores(run, backbone, first, second, level) if run else _probe_scores(domains[0], drawn[0], first, second, level)
    return DistanceReport(
        a=printable(a),
        b=printable(b),
        backbone=backbone.name,
        images=len(drawn[0]),
        common=len({sample.content for sample in drawn[0]} & {sample.content for sample in drawn[1]}),
        shift=mmd.p < level or (scores is not None and scores.p < level),
        alpha=options.alpha,
        domains=classify_domains(first, second, seed=config.run.seed),
        mmd=mmd,
        scores=scores,
        scores_note="" if scores else domains[0].problem or "the drawn images of the first folder have one class",
        seconds=round(time.monotonic() - started, 1),
    )


def _read_both(a: Path, b: Path, progress: Progress) -> tuple[list[_Domain], Run | None]:
    """List the images of both domains. If one is a run, also return it, and leave out images that trained it."""
    domains = [_read(path, progress) for path in (a, b)]
    run = next((domain.run for domain in domains if domain.run), None)
    return ([_without_trained(domain, run) for domain in domains], run) if run else (domains, None)


def _read(path: Path, progress: Progress) -> _Domain:
    """List the images of a folder or of a run."""
    if is_run(path):
        run = open_run(path)
        return _Domain(path, (*run.samples("val"), *run.samples("test")), run=run)
    check_folder(path, holds="images, or a run")
    try:
        folder = scan(path, progress=progress)
        return _Domain(path, folder.samples, folder.labels)
    except DataError as error:  # a folder without class folders has images, but no labels
        return _Domain(path, scan_unlabeled(path, progress=progress), problem=f"the first folder has no class labels: {error}")


def _without_trained(domain: _Domain, run: Run) -> _Domain:
    """Leave out images that trained the run, because its network has other features and scores on them."""
    trained = run.seen_images().trained
    samples = tuple(sample for sample in domain.samples if hash_prefix(sample.content) not in trained)
    if count := len(domain.samples) - len(samples):
        _log.warning("%s: %d images are left out, because they trained the run %s", printable(domain.path), count, printable(run.path))
    return dataclasses.replace(domain, samples=samples)


def _draw(domains: Sequence[_Domain], images: int, seed: int) -> list[list[Sample]]:
    """Draw the same number of images of each domain at random, so that a domain classifier without information has an error of 0.5."""
    count = min(images, *(len(domain.samples) for domain in domains))
    if count < MIN_IMAGES:
        few = min(domains, key=lambda domain: len(domain.samples))
        raise DataError(f"{printable(few.path)} has {len(few.samples)} images to compare. At least {MIN_IMAGES} are needed. Add images.")
    if count < FEW_IMAGES:
        _log.warning("%d images of each domain are compared. Fewer than %d detect only large shifts.", count, FEW_IMAGES)
    rng = np.random.default_rng(seed)
    return [[domain.samples[index] for index in rng.permutation(len(domain.samples))[:count]] for domain in domains]


def _load(config: TrainConfig, samples: Sequence[Sample]) -> Backbone:
    backbone = with_intensity(load_backbone(config.backbone, 2), config.data.intensity, samples)
    if backbone.parents:  # random weights have no license
        check_policy(backbone.license, config.backbone.license_policy, name=backbone.name)
    return backbone


def _run_scores(run: Run, backbone: Backbone, first: NDArray[np.float32], second: NDArray[np.float32], alpha: float) -> ScoreShift:
    with torch.no_grad():
        a, b = (scores_of(run.record.decoding, backbone.head(torch.from_numpy(rows)).numpy()) for rows in (first, second))
    p, classes = score_shifts(run.record.labels, a, b, alpha=alpha)
    return ScoreShift(classifier=f"the run {printable(run.path)}", n_a=len(a), n_b=len(b), p=p, classes=classes)


def _probe_scores(
    domain: _Domain, samples: Sequence[Sample], first: NDArray[np.float32], second: NDArray[np.float32], alpha: float
) -> ScoreShift | None:
    """Fit a linear probe on half of the first domain, and compare its scores on the other half with those on the second domain.

    Return none if the half has images of one class only.
    """
    if len({sample.label for sample in samples[::2]}) < 2:
        return None
    head = fit_logistic(LabeledFeatures(first[::2], labels_of(samples[::2])), len(domain.labels), seed=0)
    a, b = (softmax(rows @ head.weight.T + head.bias) for rows in (first[1::2], second))
    p, classes = score_shifts(domain.labels, a, b, alpha=alpha)
    return ScoreShift(classifier="linear probe on half of the first folder", n_a=len(a), n_b=len(b), p=p, classes=classes)
