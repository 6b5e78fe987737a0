"""Two-sample statistics of features and of scores: proxy-A distance, maximum mean discrepancy, and Kolmogorov-Smirnov tests."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from scipy.stats import ks_2samp
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from edgetl.core.results import wilson
from edgetl.train.config.diagnosis.distance import ClassShift, Discrepancy, DomainClassifier

FOLDS = 5
# L2 penalty of the domain classifier, per image.
PENALTY = 0.1
MAX_ITERATIONS = 300
# Permutations that are computed together. It limits the memory to this number of columns.
TOGETHER = 1000


def classify_domains(a: NDArray[np.float32], b: NDArray[np.float32], *, seed: int = 0) -> DomainClassifier:
    """Measure the proxy-A distance of two samples of equal size (Ben-David et al. 2007), by a cross-validated linear classifier.

    The classifier is a logistic regression on standardized features.

    Args:
        a: features of the first domain, ``[n, width]``.
        b: features of the second domain, ``[n, width]``.
        seed: random seed of the folds.
    """
    features, domains = np.concatenate([a, b]).astype(np.float64), np.repeat([0, 1], [len(a), len(b)])
    model = make_pipeline(StandardScaler(), LogisticRegression(C=1 / (PENALTY * len(features)), max_iter=MAX_ITERATIONS, tol=1e-3))
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    scores = cross_val_predict(model, features, domains, cv=folds, method="decision_function")
    error = wilson(int(((scores > 0) != domains).sum()), len(domains))
    return DomainClassifier(error=error, auc=float(roc_auc_score(domains, scores)), proxy_a=max(0.0, 2 * (1 - 2 * error.value)))


def mmd_test(a: NDArray[np.float32], b: NDArray[np.float32], *, permutations: int, seed: int = 0) -> Discrepancy:
    """Test for equal distributions by the maximum mean discrepancy (MMD; Gretton et al. 2012, JMLR 13:723).

    The kernel is Gaussian on standardized features, with the median of the squared distances as its width. The p-value is that of a
    permutation test, ``(1 + number of larger values) / (1 + permutations)``.

    Args:
        a: features of the first domain, ``[n, width]``.
        b: features of the second domain, ``[m, width]``.
        permutations: number of random divisions of all images.
        seed: random seed of the divisions.
    """
    scaled = StandardScaler().fit_transform(np.concatenate([a, b]).astype(np.float64))
    squared = cdist(scaled, scaled, "sqeuclidean")
    median = float(np.median(squared[np.triu_indices(len(squared), 1)]))
    kernel = np.exp(-squared / median) if median else np.ones_like(squared)
    np.fill_diagonal(kernel, 0.0)
    rng, first = np.random.default_rng(seed), np.repeat([1.0, 0.0], [len(a), len(b)])
    value = float(_mmd2(kernel, first[:, None])[0])
    drawn = []
    for start in range(0, permutations, TOGETHER):
        count = min(TOGETHER, permutations - start)
        drawn.append(_mmd2(kernel, rng.permuted(np.tile(first, (count, 1)), axis=1).T))
    others = np.concatenate(drawn)
    # Equal divisions differ by rounding.
    larger = int((others >= value - 1e-12).sum())
    return Discrepancy(mmd2=value, limit=float(np.quantile(others, 0.95)), p=(1 + larger) / (1 + permutations))


def _mmd2(kernel: NDArray[np.float64], first: NDArray[np.float64]) -> NDArray[np.float64]:
    """Compute unbiased squared MMDs ``[divisions]``. ``first`` ``[n, divisions]`` is 1 for images of the first domain, otherwise 0."""
    n, m = first[:, 0].sum(), (1 - first[:, 0]).sum()
    rows = kernel @ first
    within, across = (first * rows).sum(axis=0), ((1 - first) * rows).sum(axis=0)
    rest = kernel.sum() - within - 2 * across
    result: NDArray[np.float64] = within / (n * (n - 1)) + rest / (m * (m - 1)) - 2 * across / (n * m)
    return result


def score_shifts(
    labels: Sequence[str], a: NDArray[np.float32], b: NDArray[np.float32], *, alpha: float
) -> tuple[float, tuple[ClassShift, ...]]:
    """Test the scores of each class for a shift by the two-sample Kolmogorov-Smirnov test with Bonferroni correction.

    Method: black-box shift detection (Lipton et al. 2018, arXiv:1802.03916), which was the best detector in the comparison of Rabanser et
    al. 2019 (arXiv:1810.11953).

    Args:
        labels: names of the classes.
        a: scores of a classifier on the first domain, ``[n, labels]``.
        b: scores on the second domain, ``[m, labels]``.
        alpha: significance level of all classes together.

    Returns:
        The smallest p-value times the number of classes, and the classes by p-value.
    """
    tests = [ks_2samp(a[:, index], b[:, index]) for index in range(len(labels))]
    shifts = [
        ClassShift(
            label=label,
            distance=float(test.statistic),
            p=float(test.pvalue),
            shifted=bool(test.pvalue < alpha / len(labels)),
            mean_a=float(a[:, index].mean()),
            mean_b=float(b[:, index].mean()),
        )
        for index, (label, test) in enumerate(zip(labels, tests, strict=True))
    ]
    ordered = tuple(sorted(shifts, key=lambda item: (item.p, -item.distance)))
    return min(1.0, ordered[0].p * len(labels)), ordered
