"""Domain distance (``edgetl distance``): its options and its result."""

from __future__ import annotations

from functools import partial
from typing import Literal

from edgetl.core.config import StrictModel
from edgetl.core.options import COMMON, option_field
from edgetl.core.results import Proportion

# Fewest images of a domain. The tests need about 50 to detect a shift of practical size.
MIN_IMAGES = 20
FEW_IMAGES = 50

_common = partial(option_field, panel=COMMON)


class DistanceConfig(StrictModel):
    """Options of ``distance`` that are not options of the backbone."""

    images: int = _common(500, "Largest number of images of each folder, 20..5000.", ge=MIN_IMAGES, le=5000)
    permutations: int = _common(
        999, "Permutations of the MMD test, 99..100000. The smallest p-value is 1 / (permutations + 1).", ge=99, le=100_000
    )
    alpha: float = _common(0.05, "Significance level of the whole comparison, 0..1.", gt=0.0, lt=1.0)


class Discrepancy(StrictModel):
    """Maximum mean discrepancy (MMD) of the features, with a Gaussian kernel.

    Attributes:
        mmd2: unbiased estimate of the squared MMD. About 0 for equal domains; it may be negative.
        limit: 95 % quantile of ``mmd2`` over random divisions of the images.
        p: p-value of the permutation test.
    """

    mmd2: float
    limit: float
    p: float


class DomainClassifier(StrictModel):
    """Linear classifier of the domain.

    Attributes:
        error: cross-validated error. 0.5: the domains cannot be separated.
        auc: cross-validated area under the ROC curve. 0.5: the domains cannot be separated.
        proxy_a: proxy-A distance, 0..2: ``2 (1 - 2 error)`` (Ben-David et al. 2007), at least 0.
    """

    error: Proportion
    auc: float
    proxy_a: float


class ClassShift(StrictModel):
    """Shift of the scores of one class.

    Attributes:
        label: name of the class.
        distance: Kolmogorov-Smirnov distance of the scores, 0..1.
        p: p-value of the test of this class, without correction.
        shifted: true if ``p`` is significant with Bonferroni correction for the number of classes.
        mean_a, mean_b: mean score in each domain, 0..1.
    """

    label: str
    distance: float
    p: float
    shifted: bool
    mean_a: float
    mean_b: float


class ScoreShift(StrictModel):
    """Black-box shift detection: the outputs of a classifier in both domains.

    Attributes:
        classifier: description of the classifier.
        n_a, n_b: number of images of each domain that did not train the classifier.
        p: smallest p-value of a class times the number of classes (Bonferroni), at most 1.
        classes: each class, the most significant first.
    """

    classifier: str
    n_a: int
    n_b: int
    p: float
    classes: tuple[ClassShift, ...]


class DistanceReport(StrictModel):
    """Result of ``distance``.

    Attributes:
        a, b: the compared folders or runs.
        backbone: network that computes the features.
        images: number of compared images of each domain.
        common: number of images with equal pixels in both domains.
        shift: true if a test detects a shift at the level ``alpha``.
        alpha: significance level. Each of the two tests has half of it.
        domains: classifier of the domain, with the proxy-A distance.
        mmd: maximum mean discrepancy.
        scores: black-box shift detection; none without class labels.
        scores_note: reason why there are no scores; empty if there are.
        seconds: duration, s.
    """

    schema_version: Literal[1] = 1
    a: str
    b: str
    backbone: str
    images: int
    common: int
    shift: bool
    alpha: float
    domains: DomainClassifier
    mmd: Discrepancy
    scores: ScoreShift | None = None
    scores_note: str = ""
    seconds: float
