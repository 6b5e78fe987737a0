"""Backbone ranking: score frozen features for a folder of images without training, then confirm the best by short fine-tuning.

Candidates are ordered by their mean rank over four scores: leave-one-out k-NN accuracy, leave-one-out ridge accuracy, LogME, and
published ImageNet accuracy. No single score is reliable: on published benchmarks, ImageNet accuracy alone sometimes beats each of the
others. All candidates are compared on small images, and the best 40 % again at their own input size (successive halving). The best few
can be confirmed by fine-tuning.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from edgetl.core.files.names import printable
from edgetl.core.images.decode import load_image
from edgetl.core.images.intensity import FULL_RANGE, resolve_intensity
from edgetl.core.licenses import check_policy
from edgetl.core.preprocess import PreprocessSpec, normalize, to_pixels
from edgetl.core.progress import Progress, silent
from edgetl.core.results import Proportion
from edgetl.core.system.threads import map_ahead
from edgetl.data.folder import Sample, scan
from edgetl.data.loading import labels_of, stratified
from edgetl.data.selection import Selection
from edgetl.data.split import Splits, split
from edgetl.errors import BackboneError, ConfigError, DataError, LicenseError, first_line
from edgetl.train.artifacts.loading.build import fixed_size
from edgetl.train.artifacts.loading.catalogue import Listed, list_backbones
from edgetl.train.artifacts.loading.load import load_backbone
from edgetl.train.config.options import BackboneConfig, TrainConfig
from edgetl.train.config.ranking import MIN_IMAGES, LeftOut, RankConfig, Ranked, Ranking
from edgetl.train.config.weights_dir import SUFFIXES
from edgetl.train.heads.transferability import Score, knn_score, logme_score, ridge_score
from edgetl.train.networks.backbone import TORCHVISION, Backbone, feature_extractor
from edgetl.train.workflows.finetune import fine_tune

# Prefix of a candidate with random weights.
RANDOM = "random:"
# Height and width of the images in the first round, px.
FIRST_SIDE = 128
# Fraction and smallest number of candidates in the second round, at their own input size.
KEPT_FRACTION = 0.4
MIN_KEPT = 3
LATENCY_CALLS = 9
BOOTSTRAPS = 500
# Approximate number of steps, and largest number of training images, of the fine-tuning that confirms a candidate.
CONFIRM_STEPS = 100
CONFIRM_IMAGES = 1600
BATCH = 32
NO_SCORE = Score(0.0, np.zeros(0))


@dataclass
class _Candidate:
    name: str
    backbone: Backbone
    top1: float | None
    latency_ms: float
    stage: Literal["small", "native", "confirmed"] = "small"
    knn: Score = NO_SCORE
    ridge: Score = NO_SCORE
    logme: float = 0.0
    rank: float = 0.0
    place: int = 0
    confirmed: Proportion | None = None


def rank(data: Path, config: RankConfig, *, progress: Progress = silent) -> Ranking:
    """Rank backbones for the images in ``data``.

    Args:
        data: image folder.
        config: candidates, limits and number of fine-tuned candidates.
        progress: called for each candidate.

    Returns:
        All candidates in the order of the ranking, and the reason for each candidate that is left out.

    Raises:
        DataError: the folder has too few images or classes.
        ConfigError: no candidate is left.
    """
    started = time.monotonic()
    splits, samples = _draw(data, config, progress)
    classes = len(splits.folder.labels)
    candidates, left_out = _load(config, classes, progress)
    images = _DecodedImages(samples)
    candidates, failed = _score(candidates, images, FIRST_SIDE, progress)
    best = candidates[: max(MIN_KEPT, round(len(candidates) * KEPT_FRACTION))]
    for item in best:
        item.stage = "native"
    best, failed_later = _score(best, images, None, progress)
    left_out += [*failed, *failed_later]
    if not best:
        raise ConfigError(f"no candidate could be scored ({left_out[-1].name}: {left_out[-1].reason}). Give others with --candidates.")
    best[: config.confirm] = _confirm(best[: config.confirm], splits, config, progress)
    ordered = [*best, *(item for item in candidates if item.stage == "small")]
    _number(ordered, config.seed)
    return Ranking(
        data=printable(data),
        images=len(samples),
        classes=classes,
        ranked=tuple(_ranked(item) for item in ordered),
        left_out=tuple(left_out),
        seconds=round(time.monotonic() - started, 1),
        notes=splits.notes,
    )


def _draw(data: Path, config: RankConfig, progress: Progress) -> tuple[Splits, list[Sample]]:
    """Scan and split the images, and draw the sample on which candidates are compared."""
    splits = split(scan(data, selection=Selection(config.include, config.exclude), progress=progress), seed=config.seed)
    # Without the test images, because choosing a backbone is a selection.
    samples = stratified([*splits.train, *splits.val], config.images)
    if len(samples) < MIN_IMAGES or len({sample.label for sample in samples}) < 2:
        raise DataError(
            f"{data} has {len(samples)} images for the comparison. At least {MIN_IMAGES} images of two classes are needed. Add images."
        )
    return splits, samples


def _load(config: RankConfig, classes: int, progress: Progress) -> tuple[list[_Candidate], list[LeftOut]]:
    """Build every candidate and measure its latency. Also return the candidates that are left out, with the reason."""
    folder = Path(config.weights_dir) if config.weights_dir else None
    listed = {item.entry.name: item for item in list_backbones(weights_dir=folder).backbones}
    names = config.candidates or tuple(listed)
    found: list[_Candidate] = []
    left_out: list[LeftOut] = []
    for index, name in enumerate(names):
        progress("loading candidates", index, len(names))
        try:
            if not config.candidates and not listed[name].offline:
                raise BackboneError("its weights are not on this machine")
            found.append(_candidate(name, config, classes, listed.values()))
        except (BackboneError, LicenseError) as error:
            left_out.append(LeftOut(name=name, reason=str(error)))
    if not found:
        reasons = "; ".join(f"{item.name}: {item.reason}" for item in left_out[:3])
        raise ConfigError(
            f"no candidate is left to rank ({reasons}). Give other candidates with --candidates, or local weights with --weights-dir."
        )
    return found, left_out


def _candidate(name: str, config: RankConfig, classes: int, listed: Iterable[Listed]) -> _Candidate:
    random = name.startswith(RANDOM)
    torch.manual_seed(config.seed)
    wanted = BackboneConfig(name=name.removeprefix(RANDOM), pretrained=not random, weights_dir=config.weights_dir)
    backbone = load_backbone(wanted, classes)
    if not random:
        check_policy(backbone.license, config.license_policy, name=name)
    params_m, latency_ms = _params_m(backbone), _latency_ms(backbone)
    if config.max_params_m is not None and params_m > config.max_params_m:
        raise BackboneError(f"{params_m:.2f} million parameters, above the limit of {config.max_params_m:g}")
    if config.max_latency_ms is not None and latency_ms > config.max_latency_ms:
        raise BackboneError(f"{latency_ms:.1f} ms per image, above the limit of {config.max_latency_ms:g}")
    return _Candidate(name, backbone, _prior(backbone, listed), latency_ms)


def _prior(backbone: Backbone, listed: Iterable[Listed]) -> float | None:
    """Return the published ImageNet accuracy, percent, if the loaded weights are those of a catalogue entry."""
    if not backbone.parents or backbone.parents[-1].kind != "weights":
        return None
    loaded = Path(backbone.parents[-1].name)
    name = loaded.stem if loaded.suffix in SUFFIXES else loaded.name
    for item in listed:
        entry = item.entry
        if name in (entry.name, f"{entry.name.removeprefix(TORCHVISION)}.{entry.tag}"):
            return entry.top1
    return None


def _latency_ms(backbone: Backbone) -> float:
    """Return the median latency for one image at the backbone's own input size on one thread, ms."""
    threads = torch.get_num_threads()
    extract = feature_extractor(backbone.model, backbone.head_name)
    image = torch.zeros(1, 3, *backbone.spec.input_size)
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            extract(image)
            times = []
            for _ in range(LATENCY_CALLS):
                begin = time.perf_counter()
                extract(image)
                times.append((time.perf_counter() - begin) * 1e3)
    finally:
        torch.set_num_threads(threads)
    return statistics.median(times)


def _score(
    candidates: list[_Candidate], images: _DecodedImages, side: int | None, progress: Progress
) -> tuple[list[_Candidate], list[LeftOut]]:
    """Score the candidates at ``side`` px, or at their own input size if ``side`` is ``None``.

    Returns:
        The scored candidates in the order of their mean rank, and the candidates that could not be scored.
    """
    labels = labels_of(images.samples)
    scored: list[_Candidate] = []
    left_out: list[LeftOut] = []
    for index, item in enumerate(candidates):
        progress(f"scoring at {side} px" if side else "scoring at full size", index, len(candidates))
        try:
            features = _features(item.backbone, images, side)
        except (RuntimeError, AssertionError) as error:
            left_out.append(LeftOut(name=item.name, reason=f"the network fails on the images: {first_line(error)}"))
            continue
        if not np.isfinite(features).all() or not features.std(axis=0).any():
            left_out.append(LeftOut(name=item.name, reason="its features are not finite, or equal for all images"))
            continue
        item.knn, item.ridge, item.logme = knn_score(features, labels), ridge_score(features, labels), logme_score(features, labels)
        scored.append(item)
    _rank_all(scored)
    return sorted(scored, key=lambda item: item.rank), left_out


def _rank_all(candidates: list[_Candidate]) -> None:
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


def _features(backbone: Backbone, images: _DecodedImages, side: int | None) -> NDArray[np.float32]:
    """Return the pooled features, float32 ``[n, width]``. Conversion to a faster engine would take longer than it saves here."""
    spec = backbone.spec
    if side is not None and min(spec.input_size) > side and not fixed_size(backbone.model):
        spec = spec.model_copy(update={"input_size": (side, side)})
    extract = feature_extractor(backbone.model, backbone.head_name).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        rows = [extract(batch.contiguous(memory_format=torch.channels_last)).float().numpy() for batch in images.batches(spec)]
    return np.concatenate(rows)


class _DecodedImages:
    """Images of the comparison, decoded and resized once for all candidates with the same preprocessing."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = samples
        self._intensity = resolve_intensity("auto", FULL_RANGE, [item.levels for item in samples if item.levels])
        self._pixels: dict[PreprocessSpec, list[Image.Image]] = {}

    def batches(self, spec: PreprocessSpec) -> Iterator[torch.Tensor]:
        """Yield batches of normalized images, float32 ``[BATCH, 3, H, W]``."""
        key = spec.model_copy(update={"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "intensity": self._intensity})
        if key not in self._pixels:
            decoded = map_ahead(lambda sample: to_pixels(load_image(sample.path, intensity=key.intensity), key), self.samples, ahead=BATCH)
            self._pixels[key] = list(decoded)
        pixels = self._pixels[key]
        for start in range(0, len(pixels), BATCH):
            rows = pixels[start : start + BATCH]
            out = np.empty((len(rows), 3, *spec.input_size), np.float32)
            for row, target in zip(rows, out, strict=True):
                normalize(row, spec, target)
            yield torch.from_numpy(out)


def _confirm(best: list[_Candidate], splits: Splits, config: RankConfig, progress: Progress) -> list[_Candidate]:
    """Fine-tune each candidate for about 100 steps, and order the candidates by validation accuracy."""
    few = tuple(stratified(splits.train, CONFIRM_IMAGES))
    epochs = math.ceil(CONFIRM_STEPS / math.ceil(len(few) / BATCH))
    for item in best:
        name = item.name.removeprefix(RANDOM)
        wanted = TrainConfig.from_options(
            backbone=name,
            pretrained=name == item.name,
            weights_dir=config.weights_dir,
            strategy="full",
            augmented_views=1,
            seed=config.seed,
            epochs=epochs,
            patience=epochs,
            batch_size=BATCH,
        )
        with tempfile.TemporaryDirectory() as work:
            run = fine_tune(dataclasses.replace(splits, train=few, test=()), wanted, Path(work) / "run", progress=progress)
            item.confirmed = run.record.validation.accuracy
        item.stage = "confirmed"
    return sorted(best, key=lambda item: -(item.confirmed.value if item.confirmed else 0.0))


def _number(ordered: list[_Candidate], seed: int) -> None:
    """Number the candidates. A candidate that is tied with the first one of a place has the same place."""
    first = ordered[0]
    for index, item in enumerate(ordered):
        same_stage = item.stage == first.stage
        if index == 0 or not same_stage or not _tied(first, item, seed):
            first = item
            item.place = index + 1
        else:
            item.place = first.place


def _tied(one: _Candidate, other: _Candidate, seed: int) -> bool:
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


def _params_m(backbone: Backbone) -> float:
    head = sum(parameter.numel() for parameter in backbone.head.parameters())
    return round((sum(parameter.numel() for parameter in backbone.model.parameters()) - head) / 1e6, 3)


def _ranked(item: _Candidate) -> Ranked:
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
        params_m=_params_m(item.backbone),
        input=item.backbone.spec.input_size,
        license=item.backbone.license,
        confirmed=item.confirmed,
    )
