"""Tasks (classification, multi-label, regression, ordinal), their decision rules, and output decoding."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from edgetl.core.config import StrictModel

Task: TypeAlias = Literal["classification", "multi-label", "regression", "ordinal"]

MAX_LEVELS = 100
# The one figure of each task that the export gate judges and a bundle carries (``Evaluation.score``).
SCORE_NAMES: dict[Task, str] = {
    "classification": "accuracy",
    "multi-label": "mean average precision",
    "regression": "R²",
    "ordinal": "accuracy",
}


class DecisionRule(StrictModel):
    """Decision rule: parameters that turn scores into predictions; empty for classification.

    Attributes:
        thresholds: multi-label: the least score at which each label is present, 0..1, chosen on validation images.
        spread: regression, ordinal: standard deviation of the training images' values, in their unit; differences are judged by it.
        tolerance: regression, ordinal: largest error of a right prediction, in the values' unit.
        ordinal_levels: ordinal: the lowest and the highest level.
    """

    thresholds: tuple[Annotated[float, Field(ge=0.0, le=1.0)], ...] = ()
    spread: float = Field(default=1.0, gt=0.0)
    tolerance: float = Field(default=0.0, ge=0.0)
    ordinal_levels: tuple[int, int] | None = None

    def problem(self, task: Task, outputs: int) -> str | None:
        """Reason why this is no rule of ``task`` for a network with ``outputs`` outputs; none if it can."""
        if len(self.thresholds) != (outputs if task == "multi-label" else 0):
            return f"{len(self.thresholds)} thresholds for {outputs} labels of a {task} model"
        if task in ("regression", "ordinal") and outputs != 1:
            return f"a {task} model with {outputs} outputs, where one is possible"
        if (self.ordinal_levels is not None) != (task == "ordinal"):
            return f"ordinal levels in a {task} model" if self.ordinal_levels else "an ordinal model without levels"
        if self.ordinal_levels is not None and not 0 < self.ordinal_levels[1] - self.ordinal_levels[0] < MAX_LEVELS:
            return f"levels from {self.ordinal_levels[0]} to {self.ordinal_levels[1]}; 2 to {MAX_LEVELS} levels are possible"
        return None


@dataclass(frozen=True)
class OutputDecoding:
    """Decoding of a network's outputs ``[n, labels]``.

    Attributes:
        task: kind of the predictions.
        labels: names of the outputs: classes, labels, or the one column of values.
        decision_rule: thresholds, tolerance and levels.
    """

    task: Task = "classification"
    labels: tuple[str, ...] = ()
    decision_rule: DecisionRule = field(default_factory=DecisionRule)

    @property
    def level_names(self) -> tuple[str, ...]:
        """Levels of an ordinal model as labels, the lowest first."""
        least, most = self.decision_rule.ordinal_levels or (0, -1)
        return tuple(str(level) for level in range(least, most + 1))
