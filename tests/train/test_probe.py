from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from edgetl.train.heads import linear
from edgetl.train.heads.linear import PENALTIES, fit_logistic, spread
from edgetl.train.heads.modules import LabeledFeatures


def _clusters(n: int, classes: int, *, seed: int = 0, noise: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    centers = np.random.default_rng(0).normal(size=(classes, 16)) * 2
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    return (centers[labels] + noise * rng.normal(size=(n, 16))).astype(np.float32), labels.astype(np.int64)


def test_fitted_head_classifies_unseen_images_of_separate_clusters() -> None:
    features, labels = _clusters(300, 5)
    head = fit_logistic(LabeledFeatures(features, labels), 5, seed=0)
    unseen, truth = _clusters(500, 5, seed=1)
    assert ((unseen @ head.weight.T + head.bias).argmax(axis=1) == truth).mean() > 0.97


def test_folding_the_standardization_into_the_head_keeps_scores() -> None:
    features, labels = _clusters(200, 3)
    features = features * np.linspace(0.1, 50, 16, dtype=np.float32) + 7
    head = fit_logistic(LabeledFeatures(features, labels), 3, seed=0)
    scaled = (features - features.mean(0)) / (features.std(0) + 1e-6)
    reference = LogisticRegression(C=1 / (head.penalty * 200), max_iter=1000, tol=1e-8).fit(scaled, labels)
    logits = features @ head.weight.T + head.bias
    scores = np.exp(logits - logits.max(1, keepdims=True))
    np.testing.assert_allclose(scores / scores.sum(1, keepdims=True), reference.predict_proba(scaled), atol=0.02)


def test_two_classes_give_two_opposite_rows() -> None:
    features, labels = _clusters(200, 2)
    head = fit_logistic(LabeledFeatures(features, labels), 2, seed=0)
    assert head.weight.shape == (2, 16)
    np.testing.assert_allclose(head.weight[0], -head.weight[1], rtol=1e-5)


def test_class_without_images_is_never_predicted() -> None:
    features, labels = _clusters(90, 3)
    head = fit_logistic(LabeledFeatures(features, np.where(labels == 2, 3, labels)), 4, seed=0)
    assert 2 not in (features @ head.weight.T + head.bias).argmax(axis=1)


@pytest.mark.parametrize("per_class", [1, 2, 3])
def test_head_fits_very_few_images_per_class(per_class: int) -> None:
    features, labels = _clusters(4 * per_class, 4, noise=0.1)
    head = fit_logistic(LabeledFeatures(features, labels), 4, seed=0)
    assert ((features @ head.weight.T + head.bias).argmax(axis=1) == labels).all()


def test_noisy_labels_select_a_stronger_penalty_than_clean_labels() -> None:
    features, labels = _clusters(200, 4, noise=0.3)
    clean = fit_logistic(LabeledFeatures(features, labels), 4, seed=0).penalty
    noisy = fit_logistic(LabeledFeatures(features, np.random.default_rng(0).permutation(labels)), 4, seed=0).penalty
    assert noisy == PENALTIES[0] > clean


def test_fit_in_the_space_of_few_images_equals_a_fit_on_all_features() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], 6)
    features = rng.normal(0, 1, (18, 40)).astype(np.float32)
    features[np.arange(18), labels] += 2
    head = fit_logistic(LabeledFeatures(features, labels), 3, seed=0)
    scaled = ((features - features.mean(axis=0)) / spread(features)).astype(np.float64)
    expected = LogisticRegression(C=1 / (head.penalty * 18), max_iter=1000, tol=1e-6).fit(scaled, labels).decision_function(scaled)
    outputs = features @ head.weight.T + head.bias
    np.testing.assert_allclose(outputs - outputs.mean(axis=1, keepdims=True), expected, atol=0.05)


def test_fit_of_many_rows_has_the_penalty_and_the_outputs_of_a_cross_validated_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = _clusters(600, 4, noise=4.0)
    train = LabeledFeatures(features, labels)
    exact = fit_logistic(train, 5, seed=0)
    monkeypatch.setattr(linear, "MANY_ROWS", 500)
    done: list[int] = []
    many = fit_logistic(train, 5, seed=0, progress=lambda stage, step, total: done.append(step))
    assert many.penalty == exact.penalty and many.out_of_fold is None and many.weight.dtype == np.float32
    np.testing.assert_allclose(features @ many.weight.T + many.bias, features @ exact.weight.T + exact.bias, atol=0.05)
    assert done == list(range(1, PENALTIES.index(many.penalty) + 3)), "the penalties after the best one are not tried"
