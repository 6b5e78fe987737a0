"""Cross-validation and leave-one-out by groups: images of one group are never in training and held-out data at the same time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from edgetl.train.heads.knn import choose_votes
from edgetl.train.heads.linear import RIDGE_PENALTIES, fit_logistic, fit_ridge
from edgetl.train.heads.modules import LabeledFeatures


def bursts(groups: int, size: int, *, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
    """Make features that depend on the group only. Classes alternate between groups."""
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(groups, 32))
    labels = np.arange(groups) % 2
    numbers = np.repeat(np.arange(groups), size)
    return (centers[numbers] + 0.05 * rng.normal(size=(groups * size, 32))).astype(np.float32), labels[numbers], numbers


def test_grouped_cross_validation_gives_a_lower_accuracy_on_bursts() -> None:
    features, labels, groups = bursts(20, 6)
    plain, grouped = (fit_logistic(LabeledFeatures(features, labels, numbers), 2, seed=0) for numbers in (None, groups))
    assert max(plain.folds) == 1.0 and max(grouped.folds) < 0.8
    assert grouped.penalty > plain.penalty


def test_fit_works_with_a_single_group_and_with_one_group_per_class() -> None:
    features, labels, groups = bursts(4, 6)
    assert fit_logistic(LabeledFeatures(features, labels, np.zeros_like(groups)), 2, seed=0).folds == ()
    head = fit_logistic(LabeledFeatures(features, groups, groups), 4, seed=0)
    assert ((features @ head.weight.T + head.bias).argmax(axis=1) == groups).all()


def test_leave_one_group_out_of_ridge_equals_a_fit_on_the_other_groups() -> None:
    features, _, groups = bursts(8, 5)
    values = np.random.default_rng(1).normal(size=len(features))
    values -= values.mean()
    found = fit_ridge(LabeledFeatures(features, values, groups))
    assert fit_ridge(LabeledFeatures(features, values, np.arange(len(values)))).folds == pytest.approx(
        fit_ridge(LabeledFeatures(features, values)).folds, abs=1e-4
    )
    scaled = (features - features.mean(axis=0)) / features.std(axis=0)
    rows = np.hstack([scaled - scaled.mean(axis=0), np.ones((len(values), 1))]).astype(np.float64)
    for index in (0, 3, 6):
        penalty = np.diag([RIDGE_PENALTIES[index] * len(values)] * 32 + [0.0])
        errors = np.empty_like(values)
        for group in range(8):
            kept = groups != group
            weight = np.linalg.solve(rows[kept].T @ rows[kept] + penalty, rows[kept].T @ values[kept])
            errors[~kept] = values[~kept] - rows[~kept] @ weight
        assert found.folds[index] == pytest.approx(1 - (errors**2).mean() / values.var(), abs=0.02)


def test_choose_votes_ignores_neighbors_of_the_same_group() -> None:
    features, labels, groups = bursts(20, 6)
    bank = torch.nn.functional.normalize(torch.from_numpy(features), dim=1)
    votes = torch.nn.functional.one_hot(torch.from_numpy(labels), 2).float()
    assert choose_votes(bank, votes)[2] == 1.0
    assert choose_votes(bank, votes, groups=groups)[2] < 0.9
