"""Drift detection on synthetic predictions: distances, limits, events."""

import numpy as np
import pytest
from numpy.typing import NDArray

from edgetl.core.reference import LEVELS, STATISTICS, Reference, class_of, describe_validation, rounded_scores
from edgetl.core.results import Prediction
from edgetl.core.tasks import OutputDecoding
from edgetl.device.monitoring.drift import DriftDetector, ks_distance, ks_limit, stability_index, stability_limit

DECODING = OutputDecoding("classification", ("cat", "dog", "hen"))


def predictions(rng: np.random.Generator, n: int, *, weights: tuple[float, ...] = (4, 3, 2)) -> list[Prediction]:
    """Return ``n`` predictions with scores of a Dirichlet distribution."""
    found = []
    for row in rng.dirichlet(weights, n):
        best = int(row.argmax())
        found.append(Prediction(DECODING.labels[best], float(row[best]), tuple(row.tolist())))
    return found


def statistics(rng: np.random.Generator, n: int, *, shift: float = 0.0) -> NDArray[np.float32]:
    """Return image statistics, float32 ``[n, 7]``."""
    return rng.normal(0.5 + shift, 0.1, (n, len(STATISTICS))).astype(np.float32)


def reference_of(rng: np.random.Generator, n: int = 300) -> Reference:
    """Return a reference of ``n`` synthetic images."""
    found = describe_validation(predictions(rng, n), statistics(rng, n), DECODING)
    assert found is not None
    return found


def test_an_unknown_image_counts_as_the_class_with_the_highest_score() -> None:
    scores = tuple(float(index == 1) for index in range(len(DECODING.labels)))
    assert class_of(Prediction(None, 1.0, scores), DECODING) == DECODING.labels[1]


def test_a_reference_needs_fifty_images() -> None:
    rng = np.random.default_rng(0)
    assert describe_validation(predictions(rng, 8), statistics(rng, 8), DECODING) is None
    assert reference_of(rng, 50).n == 50


def test_a_reference_fits_its_model() -> None:
    reference = reference_of(np.random.default_rng(0))
    assert reference.problem(DECODING) is None
    assert reference.problem(OutputDecoding("classification", ("cat", "dog"))) == "its classes are not those of the model"


def exact_distance(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Return the two-sample Kolmogorov-Smirnov distance by its definition."""
    points = np.concatenate((first, second))
    return float(max(abs((first <= point).mean() - (second <= point).mean()) for point in points))


@pytest.mark.parametrize("decimals", [1, 2, 6])
@pytest.mark.parametrize("shift", [0.0, 0.3, 2.0])
def test_the_distance_to_quantiles_is_at_most_the_exact_one_and_close_to_it(decimals: int, shift: float) -> None:
    for seed in range(30):
        rng = np.random.default_rng(seed)
        before = np.round(rng.normal(0, 1, 200), decimals)
        now = np.round(rng.normal(shift, 1, 60), decimals)
        found = ks_distance(now, tuple(np.quantile(before, LEVELS, method="inverted_cdf").tolist()))
        exact = exact_distance(now, before)
        assert exact - 0.0251 <= found <= exact + 1e-12


def test_a_constant_statistic_is_no_drift() -> None:
    assert ks_distance(np.full(100, 0.333), (0.333,) * len(LEVELS)) == 0.0


def test_scores_that_round_to_the_same_step_are_equal() -> None:
    assert rounded_scores((0.999991, 0.000004, 0.000005), DECODING).tolist() == [1.0, 0.0, 0.0]


def test_the_stability_index_of_equal_frequencies_is_zero() -> None:
    assert stability_index([50, 30, 20], [100, 60, 40])[0] < 0.001
    assert stability_index([20, 30, 50], [100, 60, 40])[0] > 0.5


def test_rare_bins_are_combined() -> None:
    assert stability_index([90, 2, 2, 6], [900, 20, 20, 60])[1] == 3


def test_larger_samples_have_smaller_limits() -> None:
    assert ks_limit(100, 1000, 1e-8) < ks_limit(100, 100, 1e-8) < ks_limit(100, 50, 1e-8)
    assert stability_limit(1000, 1000, 5, 1e-8) < stability_limit(100, 300, 5, 1e-8)


def test_the_chi_squared_quantile_agrees_with_tables() -> None:
    # Upper 0.1 % points of chi-squared with 4 and 9 degrees of freedom: 18.467 and 27.877.
    for bins, quantile in ((5, 18.467), (10, 27.877)):
        assert stability_limit(50, 50, bins, 0.001) == pytest.approx(quantile * (1 / 50 + 1 / 50), rel=0.02)


def test_images_like_the_reference_raise_no_event() -> None:
    rng = np.random.default_rng(1)
    detector = DriftDetector(reference_of(rng), DECODING)
    events = [detector.add(*item) for item in zip(predictions(rng, 3000), statistics(rng, 3000), strict=True)]
    assert events == [None] * 3000


def test_changed_statistics_start_drift_and_the_return_of_the_old_images_ends_it() -> None:
    rng = np.random.default_rng(2)
    detector = DriftDetector(reference_of(rng), DECODING)
    shifts = [0.0] * 200 + [0.3] * 100 + [0.0] * 300
    found = {}
    for index, (prediction, shift) in enumerate(zip(predictions(rng, 600), shifts, strict=True)):
        if event := detector.add(prediction, statistics(rng, 1, shift=shift)[0]):
            found[event.kind] = index, event
    assert 200 < found["drift"][0] < 300
    assert {change.name.partition(":")[0] for change in found["drift"][1].changes} == {"image"}
    assert found["drift-end"][0] > 400
    assert not detector.drifted


def test_other_predictions_start_drift_without_pixels() -> None:
    rng = np.random.default_rng(3)
    detector = DriftDetector(reference_of(rng), DECODING)
    events = [event for item in predictions(rng, 100, weights=(1, 1, 9)) if (event := detector.add(item, None))]
    assert [event.kind for event in events] == ["drift"]
    assert {"score:hen", "classes"} <= {change.name for change in events[0].changes}
