"""Backbone ranking: score frozen features for a folder of images without training, then confirm the best by short fine-tuning.

Candidates are ordered by their mean rank over four scores: leave-one-out k-NN accuracy, leave-one-out ridge accuracy, LogME, and
published ImageNet accuracy. No single score is reliable: on published benchmarks, ImageNet accuracy alone sometimes beats each of the
others. All candidates are compared on small images, and the best 40 % again at their own input size (successive halving). The best few
can be confirmed by fine-tuning.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edgetl.core.files.names import printable
from edgetl.core.progress import Progress, silent
from edgetl.data.folder import Sample, scan
from edgetl.data.loading import stratified
from edgetl.data.selection import Selection
from edgetl.data.split import Splits, split
from edgetl.errors import ConfigError, DataError, EngineError
from edgetl.executors.tasks import Tasks
from edgetl.train.artifacts.loading.catalogue import Listed, list_backbones
from edgetl.train.config.ranking import MIN_IMAGES, LeftOut, RankConfig, Ranked, Ranking
from edgetl.train.networks.backbone import TORCHVISION
from edgetl.train.workflows.candidates import (
    FIRST_SIDE,
    Candidate,
    Comparison,
    ConfirmationTask,
    DecodedImages,
    ScoringTask,
    confirm,
    confirm_in_task,
    score,
    score_in_task,
)

# Fraction and smallest number of candidates in the second round, at their own input size.
KEPT_FRACTION = 0.4
MIN_KEPT = 3
BOOTSTRAPS = 500
# Largest number of training images of the fine-tuning that confirms a candidate.
CONFIRM_IMAGES = 1600


def rank(data: Path, config: RankConfig, *, tasks: Tasks | None = None, progress: Progress = silent) -> Ranking:
    """Rank backbones for the images in ``data``.

    Args:
        data: image folder.
        config: candidates, limits and number of fine-tuned candidates.
        tasks: execution of the candidates as tasks; none for this process. With the same number of threads, the ranking is the same.
        progress: called for each candidate.

    Returns:
        All candidates in the order of the ranking, and the reason for each candidate that is left out.

    Raises:
        DataError: the folder has too few images or classes.
        ConfigError: no candidate is left.
    """
    started = time.monotonic()
    splits, samples = _draw(data, config, progress)
    listed = list_backbones(weights_dir=Path(config.weights_dir) if config.weights_dir else None).backbones
    names, left_out = _offered(config, listed)
    comparison = Comparison(config, tuple(samples), len(splits.folder.labels), _published(listed), tasks.threads if tasks else None)
    scoring = _Scoring(comparison, DecodedImages(samples), tasks, progress)
    ordered = _order(names, splits, scoring, left_out)
    _number(ordered, config.seed)
    return Ranking(
        data=printable(data),
        images=len(samples),
        classes=comparison.classes,
        ranked=tuple(_ranked(item) for item in ordered),
        left_out=tuple(left_out),
        seconds=round(time.monotonic() - started, 1),
        notes=splits.notes,
    )


def _draw(data: Path, config: RankConfig, progress: Progress) -> tuple[Splits, list[Sample]]:
    """Scan and split the images, and draw the sample on which candidates are compared."""
    folder = scan(data, selection=Selection(config.include, config.exclude), progress=progress)
    splits = split(folder, seed=config.seed, progress=progress)
    # Without the test images, because choosing a backbone is a selection.
    samples = stratified([*splits.train, *splits.val], config.images)
    if len(samples) < MIN_IMAGES or len({sample.label for sample in samples}) < 2:
        raise DataError(
            f"{data} has {len(samples)} images for the comparison. At least {MIN_IMAGES} images of two classes are needed. Add images."
        )
    return splits, samples


def _offered(config: RankConfig, listed: Sequence[Listed]) -> tuple[list[str], list[LeftOut]]:
    """Return the names of the candidates, and the backbones of the catalogue that have no weights on this machine."""
    if config.candidates:
        return list(config.candidates), []
    missing = [LeftOut(name=item.entry.name, reason="its weights are not on this machine") for item in listed if not item.offline]
    return [item.entry.name for item in listed if item.offline], missing


def _published(listed: Sequence[Listed]) -> dict[str, float | None]:
    """Return the published ImageNet accuracy, percent, of the weights of the catalogue, by both names of their files."""
    found: dict[str, float | None] = {}
    for entry in (item.entry for item in listed):
        for name in (entry.name, f"{entry.name.removeprefix(TORCHVISION)}.{entry.tag}"):
            found.setdefault(name, entry.top1)
    return found


@dataclass(frozen=True)
class _Scoring:
    """Scoring of candidates, in this process or in tasks."""

    comparison: Comparison
    images: DecodedImages
    tasks: Tasks | None
    progress: Progress

    def run(self, stage: str, given: Sequence[str | Candidate]) -> tuple[list[Candidate], list[LeftOut]]:
        """Score the candidates.

        Returns:
            The scored candidates in the order of their mean rank, and the candidates that could not be scored.
        """
        found: list[Candidate | LeftOut] = []
        if self.tasks:
            items = [ScoringTask(item, self.comparison) for item in given]
            found = self.tasks.run(stage, score_in_task, items, failed=lambda item, error: _lost(item.given, error))
        else:
            for index, item in enumerate(given):
                self.progress(stage, index, len(given))
                found.append(score(item, self.comparison, self.images))
        scored = [item for item in found if isinstance(item, Candidate)]
        _rank_all(scored)
        return sorted(scored, key=lambda item: item.rank), [item for item in found if isinstance(item, LeftOut)]


def _order(names: Sequence[str], splits: Splits, scoring: _Scoring, left_out: list[LeftOut]) -> list[Candidate]:
    """Return the candidates in order: the fine-tuned ones, those of the second round, those of the first. Extend ``left_out``.

    Raises:
        ConfigError: no candidate is left.
    """
    candidates, failed = scoring.run(f"scoring at {FIRST_SIDE} px", names)
    left_out += failed
    if not candidates:
        reasons = "; ".join(f"{item.name}: {item.reason}" for item in left_out[:3])
        raise ConfigError(
            f"no candidate is left to rank ({reasons}). Give other candidates with --candidates, or local weights with --weights-dir."
        )
    kept, tuned = max(MIN_KEPT, round(len(candidates) * KEPT_FRACTION)), scoring.comparison.config.confirm
    best, failed = scoring.run("scoring at full size", candidates[:kept])
    left_out += failed
    if not best:
        raise ConfigError(f"no candidate could be scored ({left_out[-1].name}: {left_out[-1].reason}). Give others with --candidates.")
    confirmed, failed = _confirm(best[:tuned], splits, scoring)
    left_out += failed
    ordered = [*confirmed, *best[tuned:], *candidates[kept:]]
    if not ordered:
        raise ConfigError(f"no candidate could be fine-tuned ({left_out[-1].name}: {left_out[-1].reason}). Lower --confirm.")
    return ordered


def _lost(given: str | Candidate, error: EngineError) -> LeftOut:
    return LeftOut(name=given if isinstance(given, str) else given.name, reason=str(error))


def _confirm(best: list[Candidate], splits: Splits, scoring: _Scoring) -> tuple[list[Candidate], list[LeftOut]]:
    """Fine-tune the candidates, and order them by validation accuracy. Also return the candidates whose fine-tuning failed."""
    few = tuple(stratified(splits.train, CONFIRM_IMAGES))
    # Only these images, because tasks receive them.
    splits = replace(splits, train=few, test=(), folder=replace(splits.folder, samples=(*few, *splits.val)))
    tasks, config = scoring.tasks, scoring.comparison.config
    if tasks and best:
        items = [ConfirmationTask(item, splits, config, tasks.threads) for item in best]
        found = tasks.run("fine-tuning", confirm_in_task, items, failed=lambda item, error: _lost(item.candidate, error))
    else:
        found = [confirm(item, splits, config, scoring.progress) for item in best]
    confirmed = [item for item in found if isinstance(item, Candidate)]
    confirmed.sort(key=lambda item: -(item.confirmed.value if item.confirmed else 0.0))
    return confirmed, [item for item in found if isinstance(item, LeftOut)]


def _rank_all(candidates: list[Candidate]) -> None:
    """Set the mean rank of each candidate over the scores."""
    columns = list(zip(*((item.knn.value, item.ridge.value, item.logme) for item in candidates), strict=True))
    for index, item in enumerate(candidates):
        ranks = [_rank_in(column, column[index]) for column in columns]
        if item.top1 is not None:
            known = [other.top1 for other in candidates if other.top1 is not None]
            # Only some candidates have a published accuracy. Their ranks are scaled to the range of the other ranks.
            ranks.append(1 + (_rank_in(known, item.top1) - 1) * (len(candidates) - 1) / max(1, len(known) - 1))
        item.rank = statistics.mean(ranks)


def _rank_in(column: Sequence[float], value: float) -> float:
    """Return the rank of ``value``: 1 for the largest. Equal values share the mean of their ranks."""
    return 1 + sum(other > value for other in column) + (sum(other == value for other in column) - 1) / 2


def _number(ordered: list[Candidate], seed: int) -> None:
    """Number the candidates. A candidate that is tied with the first one of a place has the same place."""
    first = ordered[0]
    for index, item in enumerate(ordered):
        same_stage = item.stage == first.stage
        if index == 0 or not same_stage or not _tied(first, item, seed):
            first = item
            item.place = index + 1
        else:
            item.place = first.place


def _tied(one: Candidate, other: Candidate, seed: int) -> bool:
    """Return True if two candidates differ by at most one standard error.

    The standard error is that of the confirmed accuracies if both exist. Otherwise it is a bootstrap estimate over the same images.
    """
    if one.confirmed and other.confirmed:
        accuracies = (one.confirmed.value, other.confirmed.value)
        error = math.sqrt(sum(accuracy * (1 - accuracy) for accuracy in accuracies) / one.confirmed.n)
        return abs(accuracies[0] - accuracies[1]) <= error
    difference = (one.knn.rows - other.knn.rows + one.ridge.rows - other.ridge.rows) / 2  # per image
    rng = np.random.default_rng(seed)
    drawn = difference[rng.integers(0, len(difference), (BOOTSTRAPS, len(difference)))].mean(axis=1)
    return bool(abs(difference.mean()) <= drawn.std())


def _ranked(item: Candidate) -> Ranked:
    return Ranked(
        name=item.name,
        place=item.place,
        rank=round(item.rank, 2),
        stage=item.stage,
        knn=item.knn.value,
        ridge=item.ridge.value,
        logme=item.logme,
        top1=item.top1,
        latency_ms=round(item.latency_ms, 2),
        params_m=item.params_m,
        input=item.input,
        license=item.license,
        confirmed=item.confirmed,
    )
