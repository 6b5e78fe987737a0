"""Negative transfer (``edgetl diagnose``): accuracy of pretrained weights against random weights, with the same images and steps.

Transfer is negative if a network without the knowledge of the source task is better (Wang et al. 2019, arXiv:1811.09751).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgetl.core.files.names import printable
from edgetl.core.progress import Progress, silent
from edgetl.core.results import Forgetting
from edgetl.train.config.diagnosis.transfer import (
    PROBE_REPEATS,
    TRAINING_REPEATS,
    Arm,
    Comparison,
    Transfer,
    TransferConfig,
    TransferReport,
)
from edgetl.train.config.options import TrainConfig
from edgetl.train.networks.backbone import Backbone
from edgetl.train.workflows.diagnosis.forgetting import measure_source
from edgetl.train.workflows.diagnosis.resampling import accuracy_of, interval, resample
from edgetl.train.workflows.diagnosis.trials import (
    Division,
    announce_trainings,
    divide,
    frozen_features,
    pixel_features,
    plan_training,
    probe,
    train_network,
    training_config,
)

PROBE, TUNED, RANDOM, PIXELS = "probe", "fine-tuned", "random weights", "pixels"
# Arms without pretraining.
CONTROLS = (RANDOM, PIXELS)


@dataclass(frozen=True)
class _Trial:
    """Predictions of an arm. ``correct`` is bool ``[repeats, n]``, true where a held-out image is predicted correctly."""

    name: str
    correct: NDArray[np.bool_]
    steps: int = 0


def diagnose(data: Path, config: TrainConfig, options: TransferConfig, *, progress: Progress = silent) -> TransferReport:
    """Compare pretrained weights with random weights and with a linear probe on pixels, on the same held-out images.

    By default the compared models are linear probes on frozen features. With ``options.fine_tune`` they are trained networks.

    Args:
        data: image folder.
        config: training options.
        options: kind and number of the trials, and images of the source task.
        progress: called for each step of long operations.

    Raises:
        ConfigError: options conflict, or the task is not classification.
        DataError: the folder cannot be used.
        BackboneError: the backbone cannot be found or loaded.
        LicenseError: the license of its weights does not fit ``license_policy``.
        TrainingError: a training diverged.
    """
    started = time.monotonic()
    division = divide(data, config, images=None if options.fine_tune else options.images, progress=progress)
    trials, forgetting, note = (_trainings if options.fine_tune else _probes)(division, config, options, progress)
    draws = resample([trial.correct for trial in trials], seed=config.run.seed)
    comparisons = tuple(_compare(trials, draws, index) for index in range(1, len(trials)))
    transfer, reason = evaluate_transfer(comparisons)
    return TransferReport(
        data=printable(data),
        backbone=config.backbone.name,
        transfer=transfer,
        reason=reason,
        train_images=len(division.train),
        held_out=len(division.held_out),
        arms=tuple(_arm(trial, draws[:, index]) for index, trial in enumerate(trials)),
        comparisons=comparisons,
        forgetting=forgetting,
        forgetting_note=note,
        seconds=round(time.monotonic() - started, 1),
        notes=division.splits.notes,
    )


# Trials, forgetting of the source task, and the reason if it was not measured.
_Measured: TypeAlias = tuple[list[_Trial], Forgetting | None, str]


def _probes(division: Division, config: TrainConfig, options: TransferConfig, progress: Progress) -> _Measured:
    """Fit linear probes on the features of pretrained weights and of random weights, and on pixels."""
    rows = np.arange(len(division.train))
    features = frozen_features(division, config, pretrained=True, seed=config.run.seed, progress=progress)
    trials = [_Trial(PROBE, probe(division, features, rows)[None])]
    random = []
    for seed in range(config.run.seed, config.run.seed + (options.repeats or PROBE_REPEATS)):
        drawn = frozen_features(division, config, pretrained=False, seed=seed, progress=progress)
        random.append(probe(division, drawn, rows))
    pixels = probe(division, pixel_features(division, features.spec), rows)
    trials += [_Trial(RANDOM, np.stack(random)), _Trial(PIXELS, pixels[None])]
    return trials, None, "a probe does not change the weights (--fine-tune trains them)"


def _trainings(division: Division, config: TrainConfig, options: TransferConfig, progress: Progress) -> _Measured:
    """Train from pretrained and from random weights with equal steps, fit the probes, and measure the forgetting of the source task."""
    repeats = options.repeats or TRAINING_REPEATS
    rows = np.arange(len(division.train))
    plans = plan_training(division.splits, config)
    announce_trainings(division, config, plans, trainings=repeats)
    networks: list[Backbone] = []
    correct: dict[str, list[NDArray[np.bool_]]] = {TUNED: [], RANDOM: []}
    for seed in range(config.run.seed, config.run.seed + repeats):
        for name, plan in zip((TUNED, RANDOM), plans, strict=True):
            chosen = training_config(config, pretrained=name == TUNED, seed=seed)
            network, found = train_network(division, rows, chosen, plan, progress=progress)
            networks.append(network)
            correct[name].append(found)
    features = frozen_features(division, config, pretrained=True, seed=config.run.seed, progress=progress)
    pixels = pixel_features(division, features.spec)
    trials = [_Trial(name, np.stack(found), plans[0].steps) for name, found in correct.items()]
    trials += [_Trial(PROBE, probe(division, features, rows)[None]), _Trial(PIXELS, probe(division, pixels, rows)[None])]
    forgetting, note = measure_source(division, config, networks[0], options.source, progress=progress)
    return trials, forgetting, note


def _arm(trial: _Trial, draws: NDArray[np.float64]) -> Arm:
    return Arm(
        name=trial.name,
        pretrained=trial.name not in CONTROLS,
        steps=trial.steps,
        repeats=len(trial.correct),
        accuracy=accuracy_of(trial.correct, draws),
    )


def _compare(trials: list[_Trial], draws: NDArray[np.float64], second: int) -> Comparison:
    low, high = interval(draws[:, 0] - draws[:, second])
    difference = float(trials[0].correct.mean() - trials[second].correct.mean())
    return Comparison(first=trials[0].name, second=trials[second].name, difference=difference, low=low, high=high)


def evaluate_transfer(comparisons: Sequence[Comparison]) -> tuple[Transfer, str]:
    """Return the kind of a transfer, and the comparison that decides as a sentence.

    The error rate of ``positive`` and of ``negative`` is at most 5 %: the first needs every control, and the second has two controls with
    2.5 % each.

    Args:
        comparisons: differences of the pretrained network. Those from models without pretraining count.
    """
    controls = [item for item in comparisons if item.second in CONTROLS]
    worst = min(controls, key=lambda item: item.high)
    if worst.high < 0:
        return "negative", f"{worst.second} without pretraining are better: {worst.describe()}"
    closest = min(controls, key=lambda item: item.low)
    if closest.low > 0:
        return "positive", f"every control without pretraining is worse: {closest.describe()}"
    return "undecided", f"the interval contains 0: {closest.describe()}"
