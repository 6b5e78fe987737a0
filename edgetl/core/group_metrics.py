"""Group metrics: accuracy and error rates of groups of images, gaps between groups, and their bootstrap tests. NumPy only."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, assert_never

import numpy as np
from numpy.typing import NDArray

from edgetl.core.config import StrictModel
from edgetl.core.metrics import paired_drop
from edgetl.core.output_decoding import is_anomaly, nearest_levels, present_labels, scores_of
from edgetl.core.results import AccuracyDrop, Proportion, wilson
from edgetl.core.tasks import OutputDecoding

Finding: TypeAlias = Literal["alarm", "uncertain", "none", "not-compared"]

# Smaller groups are reported, but not compared: the 95 % interval of their accuracy is wider than 0.3.
LEAST_GROUP = 30
# Limits of a finding: accuracy gap, ratio of the lowest to the highest accuracy, and equalized-odds difference.
LARGE_GAP, LEAST_RATIO, LARGE_ODDS = 0.05, 0.8, 0.1
SIGNIFICANCE = 0.05
RESAMPLES = 1999


class LabelRates(StrictModel):
    """True-positive and false-positive rate of a label in a group: the label against all others.

    Attributes:
        label: name of the class or label.
        true_positive: recall: ratio of the images with the label that are predicted to have it.
        false_positive: ratio of the images without the label that are predicted to have it.
    """

    label: str
    true_positive: Proportion
    false_positive: Proportion


class GroupScore(StrictModel):
    """Metrics of one model on the images of one group.

    Attributes:
        group: value of the column, or values joined by a comma.
        compared: true if the group has at least ``LEAST_GROUP`` images. Other groups are left out of every comparison.
        accuracy: ratio of correct predictions, with Wilson's interval. Multi-label: exact match. Regression: within the tolerance.
        rates: rates of each label. Empty for regression and ordinal tasks.
        drop: paired accuracy drop from the reference model; none for the reference itself.
    """

    group: str
    compared: bool
    accuracy: Proportion
    rates: tuple[LabelRates, ...] = ()
    drop: AccuracyDrop | None = None


class Gap(StrictModel):
    """Largest difference of a rate between two groups.

    Attributes:
        value: difference, 0..1.
        p: probability of such a difference if all groups had equal rates (bootstrap), multiplied by the number of
            tests (Bonferroni): two for each column, or one without rates.
        rate: ``accuracy``, or ``TPR of LABEL`` or ``FPR of LABEL``.
        lowest: group with the lowest rate.
        highest: group with the highest rate.
    """

    value: float
    p: float
    rate: str
    lowest: str
    highest: str

    def describe(self) -> str:
        """Describe the gap from the disadvantaged group: the lowest accuracy or TPR, or the highest FPR."""
        worse, better = (self.highest, self.lowest) if self.rate.startswith("FPR") else (self.lowest, self.highest)
        return f"{self.rate} {100 * self.value:.1f} points {'higher' if worse is self.highest else 'lower'} for {worse} than for {better}"


class ModelGroups(StrictModel):
    """Comparison of the groups of one column for one model.

    Attributes:
        model: name of the variant, ``trained model``, or ``backbone probe`` (a linear probe on the untouched backbone).
        groups: metrics of each group, in the order of the values.
        gap: largest accuracy gap; none if fewer than two groups are compared.
        ratio: lowest accuracy divided by the highest; none without a gap.
        equalized_odds: equalized-odds difference: the largest gap of a TPR or FPR (Hardt et al. 2016, arXiv:1610.02413). None if no rate
            has ``LEAST_GROUP`` images in two groups.
        drop: paired accuracy drop of all images from the reference model; none for the reference itself.
        finding: ``alarm``: a large and significant difference. ``uncertain``: large, but it may be chance. ``none``: no large difference.
            ``not-compared``: fewer than two groups have ``LEAST_GROUP`` images.
        reason: reason of the finding.
    """

    model: str
    groups: tuple[GroupScore, ...]
    gap: Gap | None
    ratio: float | None
    equalized_odds: Gap | None
    drop: AccuracyDrop | None
    finding: Finding
    reason: str


class GroupTable(StrictModel):
    """Comparison of the groups of one column, or of a combination of columns, for several models.

    Attributes:
        by: column, or columns joined by a colon.
        images: number of images with a value.
        without: number of images without a value, which are left out.
        is_label: true if each group has images of one label only. The accuracy of a group is then the recall of its label.
        main: name of the evaluated model.
        reference: name of the model from which accuracy drops are computed; none without one.
        models: comparison for each model, on the same images.
    """

    by: str
    images: int
    without: int
    is_label: bool
    main: str
    reference: str | None
    models: tuple[ModelGroups, ...]

    @property
    def main_groups(self) -> ModelGroups:
        """Comparison for the evaluated model."""
        return next(model for model in self.models if model.model == self.main)

    def remarks(self) -> list[str]:
        """Return sentences about the groups and the images without a value."""
        found = (
            [f"Each group by {self.by} has one label only: the accuracy of a group is the recall of its label."] if self.is_label else []
        )
        return [*found, f"{self.without} images without a value of {self.by} are left out."] if self.without else found

    def drops(self) -> list[str]:
        """Return a sentence for each group whose accuracy is certainly lower than that of the reference model."""
        return [
            f"{model.model}, by {self.by}: accuracy of {group.group} {100 * group.drop.value:.1f} points lower than of {self.reference} "
            f"(95 % interval {100 * group.drop.low:.1f} to {100 * group.drop.high:.1f}); all images: {100 * model.drop.value:.1f} points."
            for model in self.models
            for group in model.groups
            if model.drop and group.drop and group.drop.low > 0 and group.compared
        ]


@dataclass(frozen=True)
class Outcomes:
    """Predictions of a model on labeled images.

    Attributes:
        model: name of the model.
        correct: bool ``[n]``, true where the prediction is correct.
        actual: bool ``[n, labels]``, true labels. ``[n, 0]`` for regression and ordinal tasks.
        predicted: bool ``[n, labels]``, predicted labels.
        labels: names of the labels.
    """

    model: str
    correct: NDArray[np.bool_]
    actual: NDArray[np.bool_]
    predicted: NDArray[np.bool_]
    labels: tuple[str, ...]


def outcomes_of(model: str, decoding: OutputDecoding, truth: NDArray[Any], outputs: NDArray[np.float32]) -> Outcomes:
    """Decode the outputs ``[n, labels]`` of a network. ``truth`` is as for ``edgetl.core.metrics.evaluate``."""
    nothing = np.zeros((len(outputs), 0), np.bool_)
    match decoding.task:
        case "classification":
            places, best = np.arange(len(decoding.labels)), outputs.argmax(axis=1)
            return Outcomes(model, best == truth, truth[:, None] == places, best[:, None] == places, decoding.labels)
        case "anomaly":
            found, actual = is_anomaly(decoding, scores_of(decoding, outputs)), truth == 1
            both = [np.stack([~column, column], axis=1) for column in (actual, found)]
            return Outcomes(model, found == actual, both[0], both[1], decoding.labels)
        case "multi-label":
            actual, predicted = truth > 0, present_labels(decoding, scores_of(decoding, outputs))
            return Outcomes(model, (actual == predicted).all(axis=1), actual, predicted, decoding.labels)
        case "regression":
            correct = np.abs(outputs[:, 0].astype(np.float64) - truth[:, 0]) <= decoding.decision_rule.tolerance
            return Outcomes(model, correct, nothing, nothing, ())
        case "ordinal":
            levels = nearest_levels(decoding, np.rint(truth[:, 0]))
            return Outcomes(model, nearest_levels(decoding, outputs[:, 0]) == levels, nothing, nothing, ())
        case _:
            assert_never(decoding.task)


@dataclass(frozen=True)
class Compared:
    """Models to compare, with their predictions for the same images.

    Attributes:
        models: predictions of each model.
        main: name of the evaluated model.
        reference: name of the model from which accuracy drops are computed; none without one.
    """

    models: tuple[Outcomes, ...]
    main: str
    reference: str | None = None


def compare_columns(columns: Mapping[str, Sequence[str]], compared: Compared) -> tuple[GroupTable, ...]:
    """Compare the groups of each column for several models. The p-values are corrected for the number of columns.

    Args:
        columns: for each column: the value of each image ``[n]``. Images with an empty value are left out.
        compared: models with their predictions for the ``n`` images.
    """
    return tuple(_compare_column(by, values, compared, len(columns)) for by, values in columns.items())


def _compare_column(by: str, values: Sequence[str], compared: Compared, columns: int) -> GroupTable:
    found, actual = np.array(values), compared.models[0].actual
    members = {name: found == name for name in sorted(set(values) - {""}, key=_natural_order)}
    base = next((model for model in compared.models if model.model == compared.reference), None)
    return GroupTable(
        by=by,
        images=int((found != "").sum()),
        without=int((found == "").sum()),
        is_label=bool(actual.shape[1]) and all((actual[rows] == actual[rows][:1]).all() for rows in members.values()),
        main=compared.main,
        reference=None if base is None else base.model,
        models=tuple(_compare(model, members, None if model is base else base, columns) for model in compared.models),
    )


def _natural_order(name: str) -> list[str | int]:
    """Return a sort key by which 3-9 precedes 10-19."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def _compare(model: Outcomes, members: Mapping[str, NDArray[np.bool_]], base: Outcomes | None, columns: int) -> ModelGroups:
    groups = tuple(_score(model, name, rows, base) for name, rows in members.items())
    compared = [group for group in groups if group.compared]
    rates = {
        f"{short} of {label}": [getattr(group.rates[index], kind) for group in compared]
        for index, label in enumerate(model.labels)
        for short, kind in (("TPR", "true_positive"), ("FPR", "false_positive"))
    }
    gap, odds = _largest_gap({"accuracy": [group.accuracy for group in compared]}, compared), _largest_gap(rates, compared)
    tests = columns * sum(item is not None for item in (gap, odds))
    gap, odds = (item and item.model_copy(update={"p": min(1.0, item.p * tests)}) for item in (gap, odds))
    values = [group.accuracy.value for group in compared]
    ratio = min(values) / max(values) if gap and max(values) else None
    finding, reason = _find(gap, ratio, odds)
    kept = np.logical_or.reduce(list(members.values()))
    return ModelGroups(
        model=model.model,
        groups=groups,
        gap=gap,
        ratio=ratio,
        equalized_odds=odds,
        drop=None if base is None else paired_drop(base.correct[kept], model.correct[kept]),
        finding=finding,
        reason=reason,
    )


def _score(model: Outcomes, name: str, rows: NDArray[np.bool_], base: Outcomes | None) -> GroupScore:
    actual, predicted, correct = model.actual[rows], model.predicted[rows], model.correct[rows]
    positive, found, hits = actual.sum(axis=0), predicted.sum(axis=0), (actual & predicted).sum(axis=0)
    rates = tuple(
        LabelRates(
            label=label,
            true_positive=wilson(int(hits[index]), int(positive[index])),
            false_positive=wilson(int(found[index] - hits[index]), int(len(correct) - positive[index])),
        )
        for index, label in enumerate(model.labels)
    )
    return GroupScore(
        group=name,
        compared=len(correct) >= LEAST_GROUP,
        accuracy=wilson(int(correct.sum()), len(correct)),
        rates=rates,
        drop=None if base is None else paired_drop(base.correct[rows], correct),
    )


def _largest_gap(rates: Mapping[str, Sequence[Proportion]], groups: Sequence[GroupScore]) -> Gap | None:
    """Return the largest difference between two groups over all rates, with its p-value; none if no rate can be compared.

    Parametric bootstrap of the hypothesis of equal rates (Efron and Tibshirani 1993, chapter 16): the successes of each group are drawn
    with the rate of all groups. The largest difference of each draw is compared with the observed one, so that the test stays valid for
    the worst and the best of many groups and labels.

    Args:
        rates: by name: the rate of each group. A group with fewer than ``LEAST_GROUP`` images in the denominator is left out of the rate.
        groups: groups, in the order of the rates.
    """
    random = np.random.default_rng(0)
    drawn, best = np.zeros(RESAMPLES), None
    for name, found in rates.items():
        kept = [(rate, group.group) for rate, group in zip(found, groups, strict=True) if rate.n >= LEAST_GROUP]
        if len(kept) < 2:
            continue
        (low, lowest), (high, highest) = (choose(kept, key=lambda pair: pair[0].value) for choose in (min, max))
        if best is None or high.value - low.value > best.value:
            best = Gap(value=high.value - low.value, p=1.0, rate=name, lowest=lowest, highest=highest)
        totals = np.array([rate.n for rate, _ in kept])
        pooled = sum(rate.value * rate.n for rate, _ in kept) / totals.sum()
        draws = random.binomial(totals, min(1.0, pooled), (RESAMPLES, len(totals))) / totals
        drawn = np.maximum(drawn, np.ptp(draws, axis=1))
    if best is None:
        return None
    return best.model_copy(update={"p": (1 + int((drawn >= best.value - 1e-9).sum())) / (1 + RESAMPLES)})


def _find(gap: Gap | None, ratio: float | None, odds: Gap | None) -> tuple[Finding, str]:
    """Return the finding of a comparison, and its reason. A large difference without significance is no alarm."""
    if gap is None:
        return "not-compared", f"fewer than two groups have {LEAST_GROUP} images"
    large = [gap] if gap.value >= LARGE_GAP or (ratio is not None and ratio < LEAST_RATIO) else []
    large += [odds] if odds is not None and odds.value >= LARGE_ODDS else []
    reasons = [
        f"{item.describe()} (p = {item.p:.3f}{f', ratio {ratio:.2f}' if item is gap and ratio is not None else ''})"
        for item in sorted(large, key=lambda item: item.p)
    ]
    significant = sum(item.p < SIGNIFICANCE for item in large)
    if significant:
        return "alarm", "; ".join(reasons[:significant])
    if large:
        return "uncertain", f"{reasons[0]}, which may be chance: evaluate more images of these groups"
    return "none", f"the largest accuracy gap is {100 * gap.value:.1f} points ({gap.lowest} and {gap.highest}, p = {gap.p:.3f})"
