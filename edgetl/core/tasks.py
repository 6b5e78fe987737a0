"""Tasks (classification, multi-label, regression, ordinal, anomaly), their decision rules, k-NN heads, and output decoding."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from edgetl.core.config import StrictModel

Task: TypeAlias = Literal["classification", "multi-label", "regression", "ordinal", "anomaly"]

# Tasks with exactly one class for each image. The true label is the index of the class.
CLASS_TASKS: frozenset[Task] = frozenset({"classification", "anomaly"})
# Classes of anomaly detection.
NORMAL, ANOMALY = ANOMALY_LABELS = ("normal", "anomaly")
MAX_LEVELS = 100
MAX_MAP_SIDE = 256
# Smallest vote weight of a k-NN head, relative to the nearest neighbor. It avoids a division by zero if all neighbors are equally near.
LEAST_WEIGHT = 1e-6
# Task metric: the accuracy gate limits it, and a bundle records it (``Evaluation.score``).
SCORE_NAMES: dict[Task, str] = {
    "classification": "accuracy",
    "multi-label": "mean average precision",
    "regression": "R²",
    "ordinal": "accuracy",
    "anomaly": "AUROC",
}


MapSide = Annotated[int, Field(ge=1, le=MAX_MAP_SIDE)]


class DecisionRule(StrictModel):
    """Decision rule: parameters that turn outputs into scores and predictions.

    Attributes:
        temperature: divisor of the outputs before the softmax or sigmoid: temperature scaling (Guo et al. 2017, arXiv:1706.04599). 1
            without calibration. Classification and multi-label only.
        reject_below: smallest highest score of a known image, 0..1. An image with a lower one has no label ("unknown"). 0 rejects no image.
            Classification only.
        thresholds: score from which each label is present, 0..1. They are chosen on validation images. Multi-label only. Anomaly
            detection: one threshold, from which an image is an anomaly.
        spread: standard deviation of the training images' values, in their unit. Tolerances for numbers are relative to it. Regression and
            ordinal only.
        tolerance: largest error of a correct prediction, in the unit of the values. Regression and ordinal only.
        ordinal_levels: lowest and highest level. Ordinal only.
        heat_map: height and width of the heat map, whose values are the outputs of the network. Anomaly detection only.
    """

    temperature: float = Field(default=1.0, ge=0.01, le=100.0)
    reject_below: float = Field(default=0.0, ge=0.0, le=1.0)
    thresholds: tuple[Annotated[float, Field(ge=0.0, le=1.0)], ...] = ()
    spread: float = Field(default=1.0, gt=0.0)
    tolerance: float = Field(default=0.0, ge=0.0)
    ordinal_levels: tuple[int, int] | None = None
    heat_map: tuple[MapSide, MapSide] | None = None

    def with_temperature(self, temperature: float) -> DecisionRule:
        """Return the rule with another temperature. Thresholds are converted, so that the labels stay the same."""
        factor = self.temperature / temperature
        thresholds = self.thresholds if factor == 1 else tuple(_power(value, factor) for value in self.thresholds)
        return self.model_copy(update={"temperature": temperature, "thresholds": thresholds})

    def describe_scores(self) -> str:
        """Return the temperature and the threshold of unknown images as text; empty if neither is set."""
        parts = [f"temperature {self.temperature:.4g}"] if self.temperature != 1 else []
        return ", ".join(parts + ([f"unknown below {self.reject_below:.4g}"] if self.reject_below else []))

    def problem(self, task: Task, outputs: int) -> str | None:
        """Return the reason why the rule is invalid for ``task`` and ``outputs`` labels, or none."""
        if len(self.thresholds) != {"multi-label": outputs, "anomaly": 1}.get(task, 0):
            return f"{len(self.thresholds)} thresholds for {outputs} labels of a {task} model"
        if self.temperature != 1.0 and task in ("regression", "ordinal", "anomaly"):
            return f"a {task} model has the temperature {self.temperature:g}, but its outputs are not scores"
        if self.reject_below and task != "classification":
            return f"a {task} model rejects images (reject_below is {self.reject_below:g}), but only a classification can"
        if task in ("regression", "ordinal") and outputs != 1:
            return f"a {task} model has {outputs} outputs, but needs one"
        if (self.heat_map is not None) != (task == "anomaly") or (task == "anomaly" and outputs != len(ANOMALY_LABELS)):
            return f"a {task} model has {outputs} labels and {'a' if self.heat_map else 'no'} heat map"
        if (self.ordinal_levels is not None) != (task == "ordinal"):
            return f"a {task} model has ordinal levels" if self.ordinal_levels else "an ordinal model has no levels"
        if self.ordinal_levels is not None and not 0 < self.ordinal_levels[1] - self.ordinal_levels[0] < MAX_LEVELS:
            return f"levels from {self.ordinal_levels[0]} to {self.ordinal_levels[1]} are not possible (2 to {MAX_LEVELS} levels)"
        return None


def _power(score: float, factor: float) -> float:
    """Return the sigmoid of ``factor`` times the log-odds of a score."""
    if score in (0.0, 1.0):
        return score
    log_odds = factor * (math.log(score) - math.log1p(-score))
    return 1 / (1 + math.exp(min(-log_odds, 700.0)))  # math.exp fails above 709


class KnnHead(StrictModel):
    """k-NN head of a bundle, for a gallery: names of its outputs, and parameters of its votes.

    Attributes:
        features: name of the output float32 ``[batch, width]``: features, centered and of length 1.
        similarities: name of the output float32 ``[batch, neighbors + 1]``: cosine similarities of the nearest training images, the largest
            first.
        votes: name of the output float32 ``[batch, neighbors, labels]``: votes of the nearest training images: the weight of the class in
            its column.
        width: number of features.
        neighbors: number of neighbors that vote.
        temperature: temperature of the votes. The vote weight of a neighbor is ``exp(similarity / temperature)``.
        scale: factor between the fractions of the votes and the logits.
        weights: weight of a vote for each label.
    """

    features: str = "features"
    similarities: str = "similarities"
    votes: str = "votes"
    width: int = Field(ge=1, le=65_536)
    neighbors: int = Field(ge=1, le=10_000)
    temperature: float = Field(gt=0.0)
    scale: float = Field(gt=0.0)
    weights: tuple[float, ...]

    def outputs(self, labels: int) -> dict[str, tuple[int | None, ...]]:
        """Return the shapes of the outputs besides the logits, by name, for a network with ``labels`` labels. None is the batch."""
        return {
            self.features: (None, self.width),
            self.similarities: (None, self.neighbors + 1),
            self.votes: (None, self.neighbors, labels),
        }


@dataclass(frozen=True)
class OutputDecoding:
    """Output decoding: parameters that turn a network's outputs ``[n, labels]`` into predictions.

    Attributes:
        task: task of the model.
        labels: classes, labels, or one column of values. They name the outputs, except in anomaly detection.
        decision_rule: temperature, thresholds, tolerance and levels.
    """

    task: Task = "classification"
    labels: tuple[str, ...] = ()
    decision_rule: DecisionRule = field(default_factory=DecisionRule)

    @property
    def uncalibrated(self) -> OutputDecoding:
        """Decoding with the temperature 1 and the same labels. Golden scores do not depend on the calibration."""
        return replace(self, decision_rule=self.decision_rule.with_temperature(1.0))

    @property
    def has_scores(self) -> bool:
        """True if the labels have scores of 0..1; false if the outputs are numbers."""
        return self.task not in ("regression", "ordinal")

    @property
    def outputs(self) -> int:
        """Number of outputs of the network: one for each label, or one for each position of the heat map."""
        height, width = self.decision_rule.heat_map or (len(self.labels), 1)
        return height * width

    @property
    def level_names(self) -> tuple[str, ...]:
        """Levels of an ordinal model as text, the lowest first."""
        least, most = self.decision_rule.ordinal_levels or (0, -1)
        return tuple(str(level) for level in range(least, most + 1))
