"""More than 100,000 images that are unlike those of the pretraining: a small comparison says whether pretrained weights help at all.

Where the classes are no easier to tell apart on pretrained features than on those of random weights, what was learned before does not
fit the pictures (Raghu et al. 2019, arXiv:1902.07208, on medical images), and so many images can teach a network alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from edgetl.core.progress import Progress, silent
from edgetl.data.loading import labels_of, stratified
from edgetl.data.split import Splits
from edgetl.train.artifacts.run import Compared, Run
from edgetl.train.artifacts.sources.load import load_backbone
from edgetl.train.config.options import TrainConfig
from edgetl.train.config.plan import FULL_UP_TO
from edgetl.train.config.recipe import with_recipe
from edgetl.train.heads.linear import fit_head
from edgetl.train.networks.backbone import with_intensity
from edgetl.train.workflows.finetune import choose_device
from edgetl.train.workflows.learning import make_extractor

_log = logging.getLogger(__name__)

# Of the training images, those that the pilot trains on.
PILOT_SHARE = 0.1
# Images of the probe that says how far the pictures are, and the gain in its accuracy below which they are far: what a pretrained
# network has to be worth before this project calls its features useful (models/edgetl_small.md).
PROBED = 2_000
LEAST_GAIN = 0.10

Train = Callable[[Splits, TrainConfig, Path], Run]


def wants_pilot(splits: Splits, config: TrainConfig) -> bool:
    """Whether ``auto`` has so many images that training from random weights may be the better way."""
    many = len({sample.content for sample in splits.train}) > FULL_UP_TO
    plain = splits.folder.task == "classification" and config.backbone.pretrained
    return many and plain and with_recipe(config)[0].optim.strategy == "auto"


def gain_of_pretraining(splits: Splits, config: TrainConfig, *, progress: Progress = silent) -> float:
    """How much more accurate a linear probe is on pretrained features than on those of random weights, 0..1, by cross-validation."""
    samples = stratified(splits.train, PROBED)
    found = []
    for pretrained in (True, False):
        torch.manual_seed(config.run.seed)
        given = config if pretrained else config.with_options(pretrained=False, weights=None)
        backbone = with_intensity(load_backbone(given.backbone, len(splits.folder.labels)), config.data.intensity, splits.train)
        extract = make_extractor(backbone, config, choose_device(config.run.device), len(samples))
        features = extract(samples, progress=progress)
        head = fit_head(features, labels_of(samples), len(splits.folder.labels), seed=config.run.seed, progress=progress)
        found.append(max(head.folds, default=0.0))
    return found[0] - found[1]


def run_pilot(
    splits: Splits, config: TrainConfig, work: Path, train: Train, compared: Callable[[Run], Compared]
) -> tuple[tuple[Compared, Compared], str]:
    """Train ``full`` and ``scratch`` for the same steps on a tenth of the images.

    Args:
        splits: of the whole training.
        config: of the whole training.
        work: folder of the two runs; one that is finished there is not repeated.
        train: makes a run, or opens it where it is finished.
        compared: a run's row.

    Returns:
        The rows, ``full`` first, and a sentence on them.
    """
    few = stratified(splits.train, max(1, round(PILOT_SHARE * len(splits.train))))
    small = replace(splits, train=tuple(few))
    runs = [train(small, config.with_options(strategy=name), work / name) for name in ("full", "scratch")]
    full, scratch = (compared(run) for run in runs)
    told = (
        f"a pilot on {len(few):,} of {len(splits.train):,} training images: full {full.validation.value:.4f}, "
        f"scratch {scratch.validation.value:.4f} on validation images"
    )
    return (full, scratch), told
