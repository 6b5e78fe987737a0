"""Candidate of a ranking: load a backbone, measure it, score its frozen features, and fine-tune it; in this process or in a task."""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from edgetl.core.images.decode import load_image
from edgetl.core.images.intensity import FULL_RANGE, resolve_intensity
from edgetl.core.licenses import check_policy
from edgetl.core.preprocess import PreprocessSpec, normalize, to_pixels
from edgetl.core.progress import Progress, silent
from edgetl.core.results import Proportion
from edgetl.core.system.threads import map_ahead
from edgetl.data.folder import Sample
from edgetl.data.loading import labels_of
from edgetl.data.split import Splits
from edgetl.errors import BackboneError, LicenseError, TrainingError, first_line
from edgetl.train.artifacts.loading.build import fixed_size
from edgetl.train.artifacts.loading.load import load_backbone
from edgetl.train.config.options import BackboneConfig, TrainConfig
from edgetl.train.config.ranking import LeftOut, RankConfig
from edgetl.train.config.weights_dir import SUFFIXES
from edgetl.train.heads.transferability import Score, knn_score, logme_score, ridge_score
from edgetl.train.loop.processes import use_threads
from edgetl.train.networks.backbone import Backbone, feature_extractor
from edgetl.train.workflows.finetune import fine_tune

# Prefix of a candidate with random weights.
RANDOM = "random:"
# Height and width of the images in the first round, px.
FIRST_SIDE = 128
LATENCY_CALLS = 9
# Approximate number of steps of the fine-tuning that confirms a candidate.
CONFIRM_STEPS = 100
BATCH = 32
NO_SCORE = Score(0.0, np.zeros(0))


@dataclass
class Candidate:
    """Candidate of a ranking, with its figures so far. The fields are those of ``Ranked``; a score also has its value for each image."""

    name: str
    top1: float | None
    latency_ms: float
    params_m: float
    input: tuple[int, int]
    license: str | None
    stage: Literal["small", "native", "confirmed"] = "small"
    knn: Score = NO_SCORE
    ridge: Score = NO_SCORE
    logme: float = 0.0
    rank: float = 0.0
    place: int = 0
    confirmed: Proportion | None = None


@dataclass(frozen=True)
class Comparison:
    """Images and options that all candidates share.

    Attributes:
        config: options of the ranking.
        samples: images of the comparison.
        classes: number of classes.
        published: published ImageNet accuracy, percent, by the names of weights.
        threads: threads of a task; none for a ranking in one process.
    """

    config: RankConfig
    samples: tuple[Sample, ...]
    classes: int
    published: Mapping[str, float | None] = field(default_factory=dict)
    threads: int | None = None


@dataclass(frozen=True)
class ScoringTask:
    """Task that scores a candidate: its name in the first round, on small images, or the candidate, at its own input size."""

    given: str | Candidate
    comparison: Comparison


@dataclass(frozen=True)
class ConfirmationTask:
    """Task that fine-tunes a candidate."""

    candidate: Candidate
    splits: Splits
    config: RankConfig
    threads: int


def score_in_task(task: ScoringTask) -> Candidate | LeftOut:
    """Score a candidate in a process of its own. Arguments as of ``score``."""
    use_threads(task.comparison.threads)
    return score(task.given, task.comparison, DecodedImages(task.comparison.samples))


def confirm_in_task(task: ConfirmationTask) -> Candidate | LeftOut:
    """Fine-tune a candidate in a process of its own. Arguments as of ``confirm``."""
    use_threads(task.threads)
    return confirm(task.candidate, task.splits, task.config)


def score(given: str | Candidate, comparison: Comparison, images: DecodedImages) -> Candidate | LeftOut:
    """Score a candidate.

    Args:
        given: name of a candidate for the first round, on images of ``FIRST_SIDE``; or a candidate of the first round, for its own size.
        comparison: options of the ranking.
        images: images of the comparison.

    Returns:
        The candidate with its scores, or the reason why it is left out.
    """
    name = given if isinstance(given, str) else given.name
    try:
        backbone = _load(name, comparison)
        candidate = _measure(name, backbone, comparison) if isinstance(given, str) else replace(given, stage="native")
    except (BackboneError, LicenseError) as error:
        return LeftOut(name=name, reason=str(error))
    try:
        features = _features(backbone, images, FIRST_SIDE if isinstance(given, str) else None)
    except (RuntimeError, AssertionError) as error:
        return LeftOut(name=name, reason=f"the network fails on the images: {first_line(error)}")
    if not np.isfinite(features).all() or not features.std(axis=0).any():
        return LeftOut(name=name, reason="its features are not finite, or equal for all images")
    labels = labels_of(images.samples)
    return replace(candidate, knn=knn_score(features, labels), ridge=ridge_score(features, labels), logme=logme_score(features, labels))


def confirm(candidate: Candidate, splits: Splits, config: RankConfig, progress: Progress = silent) -> Candidate | LeftOut:
    """Fine-tune a candidate for about 100 steps on the training images of ``splits``.

    Returns:
        The candidate with its validation accuracy, or the reason why it is left out.
    """
    name = candidate.name.removeprefix(RANDOM)
    epochs = math.ceil(CONFIRM_STEPS / math.ceil(len(splits.train) / BATCH))
    wanted = TrainConfig.from_options(
        backbone=name,
        pretrained=name == candidate.name,
        weights_dir=config.weights_dir,
        strategy="full",
        augmented_views=1,
        seed=config.seed,
        epochs=epochs,
        patience=epochs,
        batch_size=BATCH,
    )
    with tempfile.TemporaryDirectory() as work:
        try:
            run = fine_tune(splits, wanted, Path(work) / "run", progress=progress)
        except TrainingError as error:
            return LeftOut(name=candidate.name, reason=f"its fine-tuning failed: {error}")
    return replace(candidate, confirmed=run.record.validation.accuracy, stage="confirmed")


def _load(name: str, comparison: Comparison) -> Backbone:
    config, random = comparison.config, name.startswith(RANDOM)
    torch.manual_seed(config.seed)
    wanted = BackboneConfig(name=name.removeprefix(RANDOM), pretrained=not random, weights_dir=config.weights_dir)
    backbone = load_backbone(wanted, comparison.classes)
    if not random:
        check_policy(backbone.license, config.license_policy, name=name)
    return backbone


def _measure(name: str, backbone: Backbone, comparison: Comparison) -> Candidate:
    """Return the candidate without scores.

    Raises:
        BackboneError: it exceeds a limit of the ranking.
    """
    config, params_m, latency_ms = comparison.config, _params_m(backbone), _latency_ms(backbone)
    if config.max_params_m is not None and params_m > config.max_params_m:
        raise BackboneError(f"{params_m:.2f} million parameters, above the limit of {config.max_params_m:g}")
    if config.max_latency_ms is not None and latency_ms > config.max_latency_ms:
        raise BackboneError(f"{latency_ms:.1f} ms per image, above the limit of {config.max_latency_ms:g}")
    top1 = _top1(backbone, comparison.published)
    return Candidate(name, top1, latency_ms, params_m, backbone.spec.input_size, backbone.license)


def _top1(backbone: Backbone, published: Mapping[str, float | None]) -> float | None:
    """Return the published ImageNet accuracy, percent, if the loaded weights are those of a catalogue entry."""
    if not backbone.parents or backbone.parents[-1].kind != "weights":
        return None
    loaded = Path(backbone.parents[-1].name)
    return published.get(loaded.stem if loaded.suffix in SUFFIXES else loaded.name)


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


def _params_m(backbone: Backbone) -> float:
    head = sum(parameter.numel() for parameter in backbone.head.parameters())
    return round((sum(parameter.numel() for parameter in backbone.model.parameters()) - head) / 1e6, 3)


def _features(backbone: Backbone, images: DecodedImages, side: int | None) -> NDArray[np.float32]:
    """Return the pooled features, float32 ``[n, width]``. Conversion to a faster engine would take longer than it saves here."""
    spec = backbone.spec
    if side is not None and min(spec.input_size) > side and not fixed_size(backbone.model):
        spec = spec.model_copy(update={"input_size": (side, side)})
    extract = feature_extractor(backbone.model, backbone.head_name).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        rows = [extract(batch.contiguous(memory_format=torch.channels_last)).float().numpy() for batch in images.batches(spec)]
    return np.concatenate(rows)


class DecodedImages:
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
