"""What a network is asked: one class, any number of labels, a number, or a grade; and what turns its outputs into answers."""

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
    """What a device needs beside the labels to answer; empty for classification.

    Attributes:
        thresholds: multi-label: the least score at which each label is present, 0..1, chosen on validation images.
        spread: regression, ordinal: standard deviation of the training images' values, in their unit; differences are judged by it.
        tolerance: regression, ordinal: an answer this near to the truth counts as right, in the values' unit.
        grades: ordinal: the lowest and the highest grade.
    """

    thresholds: tuple[Annotated[float, Field(ge=0.0, le=1.0)], ...] = ()
    spread: float = Field(default=1.0, gt=0.0)
    tolerance: float = Field(default=0.0, ge=0.0)
    ordinal_levels: tuple[int, int] | None = None

    def problem(self, task: Task, outputs: int) -> str | None:
        """Why this cannot decide ``task`` for a network with ``outputs`` outputs; none if it can."""
        if len(self.thresholds) != (outputs if task == "multi-label" else 0):
            return f"{len(self.thresholds)} thresholds for {outputs} labels of a {task} model"
        if task in ("regression", "ordinal") and outputs != 1:
            return f"a {task} model with {outputs} outputs, where one is possible"
        if (self.ordinal_levels is not None) != (task == "ordinal"):
            return f"grades are for ordinal models, and this is {task}" if self.ordinal_levels else "an ordinal model without grades"
        if self.ordinal_levels is not None and not 0 < self.ordinal_levels[1] - self.ordinal_levels[0] < MAX_LEVELS:
            return f"grades from {self.ordinal_levels[0]} to {self.ordinal_levels[1]}; 2 to {MAX_LEVELS} grades are possible"
        return None


@dataclass(frozen=True)
class OutputDecoding:
    """How a network's outputs ``[n, labels]`` are read.

    Attributes:
        task: what was asked.
        labels: names of the outputs: classes, labels, or the one column of values.
        decision: see there.
    """

    task: Task = "classification"
    labels: tuple[str, ...] = ()
    decision_rule: DecisionRule = field(default_factory=DecisionRule)

    @property
    def level_names(self) -> tuple[str, ...]:
        """The grades of an ordinal model as labels, the lowest first."""
        least, most = self.decision_rule.ordinal_levels or (0, -1)
        return tuple(str(grade) for grade in range(least, most + 1))
