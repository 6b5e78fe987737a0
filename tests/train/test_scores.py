from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.stats import multivariate_normal
from sklearn.linear_model import Ridge
from sklearn.neighbors import KNeighborsClassifier

from edgetl.train.heads import transferability as scores


def _example(n: int, d: int, *, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return features and labels of three classes with slightly different means."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    centers = rng.normal(size=(3, d)) * 0.7
    return (centers[labels] + rng.normal(size=(n, d))).astype(np.float32), labels.astype(np.int64)


def _exact(features: NDArray[np.float32], target: NDArray[np.float64], alpha: float, beta: float) -> float:
    """Return the log evidence by its definition: the density of N(0, XXᵀ/α + I/β) at the target, from the whole N x N matrix."""
    data = features.astype(np.float64)
    covariance = data @ data.T / alpha + np.eye(len(data)) / beta
    return float(multivariate_normal(np.zeros(len(data)), covariance).logpdf(target)) / len(data)


@pytest.mark.parametrize(("n", "d"), [(60, 20), (30, 100), (40, 40)])
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (0.05, 30.0), (50.0, 0.2)])
def test_log_evidence_equals_the_exact_value_for_any_n_and_d(n: int, d: int, alpha: float, beta: float) -> None:
    features, labels = _example(n, d)
    target = (labels == 1).astype(np.float64)
    left, singular, _ = np.linalg.svd(features.astype(np.float64), full_matrices=False)
    projected = (left.T @ target) ** 2
    outside = float(target @ target - projected.sum())
    value = scores.log_evidence(singular**2, projected, outside, n=n, alpha=alpha, beta=beta)
    assert value == pytest.approx(_exact(features, target, alpha, beta), abs=1e-9)


@pytest.mark.parametrize(("n", "d"), [(90, 20), (45, 150)])
def test_logme_score_is_the_largest_log_evidence(n: int, d: int) -> None:
    features, labels = _example(n, d)
    best = []
    for label in range(3):
        target = (labels == label).astype(np.float64)

        def loss(logs: NDArray[np.float64], target: NDArray[np.float64] = target) -> float:
            return -_exact(features, target, float(np.exp(logs[0])), float(np.exp(logs[1])))

        found = minimize(loss, np.array([3.0, 1.0]), method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-12, "maxiter": 4000})
        best.append(-float(found.fun))
    assert scores.logme_score(features, labels) == pytest.approx(np.mean(best), abs=1e-6)


def test_ridge_score_equals_leave_one_out_refitting() -> None:
    features, labels = _example(24, 40)
    scaled = (features - features.mean(axis=0)) / (features.std(axis=0) + 1e-6)
    extended = np.concatenate([scaled, np.ones((len(scaled), 1))], axis=1)
    targets = np.where(labels[:, None] == np.arange(3), 1.0, -1.0)
    accuracies = []
    for penalty in scores.PENALTIES:
        right = []
        for left_out in range(len(labels)):
            kept = np.arange(len(labels)) != left_out
            model = Ridge(alpha=penalty, fit_intercept=False).fit(extended[kept], targets[kept])
            right.append(model.predict(extended[left_out : left_out + 1])[0].argmax() == labels[left_out])
        accuracies.append(np.mean(right))
    assert scores.ridge_score(features, labels).value == pytest.approx(max(accuracies))


def test_knn_score_equals_leave_one_out_with_scikit_learn() -> None:
    features, labels = _example(90, 12)
    right = []
    for left_out in range(len(labels)):
        kept = np.arange(len(labels)) != left_out
        model = KNeighborsClassifier(5, metric="cosine", weights=lambda distance: 2.0 - distance).fit(features[kept], labels[kept])
        right.append(model.predict(features[left_out : left_out + 1])[0] == labels[left_out])
    score = scores.knn_score(features, labels)
    assert score.value == pytest.approx(np.mean(right)) and score.rows.shape == (90,)


def test_scores_are_near_chance_for_noise_and_near_one_for_separable_classes() -> None:
    features, labels = _example(300, 16)
    clear = features + 20 * np.eye(16, dtype=np.float32)[labels]
    noise = np.random.default_rng(1).normal(size=(300, 16)).astype(np.float32)
    assert scores.knn_score(clear, labels).value > 0.98 and scores.ridge_score(clear, labels).value > 0.98
    assert scores.knn_score(noise, labels).value < 0.45
    assert scores.logme_score(clear, labels) > scores.logme_score(features, labels) > scores.logme_score(noise, labels)
