"""Diagnosis of a transfer: negative transfer, domain distance and learning curve."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgetl.data.folder import Sample
from edgetl.errors import ConfigError, DataError
from edgetl.train.artifacts.run import Run
from edgetl.train.config.diagnosis.curve import CurveConfig, CurveReport
from edgetl.train.config.diagnosis.distance import DistanceConfig
from edgetl.train.config.diagnosis.transfer import Comparison, TransferConfig, TransferReport
from edgetl.train.config.options import TrainConfig
from edgetl.train.workflows.diagnosis.curve import labels_at_equal_accuracy, learning_curve
from edgetl.train.workflows.diagnosis.distance import distance
from edgetl.train.workflows.diagnosis.power_law import fit_power_law
from edgetl.train.workflows.diagnosis.resampling import accuracy_of, interval, resample
from edgetl.train.workflows.diagnosis.transfer import diagnose, evaluate_transfer
from edgetl.train.workflows.diagnosis.trials import nested_order
from edgetl.train.workflows.diagnosis.two_sample import classify_domains, mmd_test, score_shifts
from tests.command import edgetl
from tests.conftest import write_colors

# Below 200 images in all, the network is not converted for a faster engine.
SMALL = TrainConfig.from_options(input_size=(48, 48), crop_pct=1.0, val=0.2, test=0.2)


@pytest.fixture(scope="module")
def few_digits(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with 24 images of each digit."""
    root = tmp_path_factory.mktemp("few") / "digits"
    for folder in sorted(digits.iterdir()):
        (root / folder.name).mkdir(parents=True)
        for file in sorted(folder.iterdir())[:24]:
            shutil.copyfile(file, root / folder.name / file.name)
    return root


def test_power_law_fit_recovers_a_curve_and_extrapolates_it() -> None:
    labels = np.array([50.0, 100.0, 250.0, 500.0])
    curve = 0.9 - 2.0 * labels**-0.5
    found = fit_power_law(labels, np.stack([curve, np.full(4, 0.7), curve[::-1]]), np.array([1000.0, 4000.0]))
    assert found[0] == pytest.approx([0.9 - 2.0 * 1000**-0.5, 0.9 - 2.0 * 4000**-0.5], abs=0.005)
    # A curve without an increase, or with a decrease, is continued at its mean.
    assert found[1] == pytest.approx([0.7, 0.7]) and found[2] == pytest.approx([curve.mean()] * 2)


def test_power_law_fit_is_at_most_1() -> None:
    labels = np.array([10.0, 20.0, 40.0])
    found = fit_power_law(labels, np.array([[0.5, 0.8, 0.99]]), np.array([80.0, 1e6]))
    assert (found <= 1).all() and found[0, 1] >= found[0, 0] > 0.9


def test_bootstrap_draws_have_the_same_images_for_all_models() -> None:
    rng = np.random.default_rng(0)
    first = rng.random((1, 200)) < 0.7
    better = first.copy()
    better[0, np.flatnonzero(~first[0])[:20]] = True
    draws = resample([first, better, first])
    assert (draws[:, 0] == draws[:, 2]).all()
    low, high = interval(draws[:, 1] - draws[:, 0])
    assert 0 < low < 0.1 < high < 0.2
    found = accuracy_of(first, draws[:, 0])
    assert found.low < found.value == first.mean() < found.high and found.n == 200


def test_bootstrap_interval_covers_the_variation_between_repetitions() -> None:
    equal, varied = np.tile(np.arange(400) % 2 == 0, (3, 1)), np.stack([np.arange(400) % 4 < count for count in (1, 2, 3)])
    widths = [high - low for low, high in map(interval, resample([equal, varied]).T)]
    assert widths[1] > 3 * widths[0]


@pytest.mark.parametrize(
    ("random", "pixels", "transfer"),
    [((0.1, 0.3), (0.05, 0.2), "positive"), ((0.1, 0.3), (-0.2, -0.1), "negative"), ((0.1, 0.3), (-0.1, 0.1), "undecided")],
)
def test_a_positive_or_negative_transfer_needs_an_interval_without_0(
    random: tuple[float, float], pixels: tuple[float, float], transfer: str
) -> None:
    comparisons = [
        Comparison(first="probe", second=name, difference=(low + high) / 2, low=low, high=high)
        for name, (low, high) in (("random weights", random), ("pixels", pixels))
    ]
    found, reason = evaluate_transfer(comparisons)
    assert found == transfer and "probe less pixels" in reason


def test_equal_accuracy_is_interpolated_inside_the_better_curve() -> None:
    labels, better, worse = np.array([10.0, 100.0, 1000.0]), np.array([0.5, 0.7, 0.9]), np.array([0.2, 0.4, 0.6])
    assert labels_at_equal_accuracy(labels, better, labels, worse) == pytest.approx((10**1.5, 1000.0))
    assert labels_at_equal_accuracy(labels, worse, labels, better) == pytest.approx((1000.0, 10**1.5))
    # The better curve starts above the other: its first point is the limit.
    assert labels_at_equal_accuracy(labels, better + 0.2, labels, worse) == pytest.approx((10.0, 1000.0))


def test_subsets_keep_the_classes_in_proportion_and_groups_together() -> None:
    samples = [Sample(Path(str(index)), int(index >= 80), str(index)) for index in range(100)]
    order = nested_order(samples, np.random.default_rng(0))
    for size in (10, 25, 50):
        assert abs(sum(samples[index].label for index in order[:size]) - 0.2 * size) <= 1
    assert sorted(order) == list(range(100))
    grouped = [Sample(Path(str(index)), 0, str(index), group=f"g{index % 5}") for index in range(20)]
    found = [int(index) % 5 for index in nested_order(grouped, np.random.default_rng(0))]
    assert all(len(set(found[start : start + 4])) == 1 for start in range(0, 20, 4))


def test_two_sample_statistics_separate_equal_from_shifted_features() -> None:
    rng = np.random.default_rng(0)
    a, same, shifted = (rng.normal(mean, 1, (150, 8)).astype(np.float32) for mean in (0, 0, 0.8))
    equal, apart = classify_domains(a, same), classify_domains(a, shifted)
    assert equal.error.low < 0.5 < equal.error.high and abs(equal.auc - 0.5) < 0.1 and equal.proxy_a < 0.4
    assert apart.error.high < 0.3 and apart.auc > 0.8 and apart.proxy_a == 2 * (1 - 2 * apart.error.value)
    assert mmd_test(a, same, permutations=199).p > 0.05
    found = mmd_test(a, shifted, permutations=199)
    assert found.p == 1 / 200 and found.mmd2 > found.limit > 0


def test_mmd_permutation_test_keeps_its_level() -> None:
    rng = np.random.default_rng(1)
    values = [mmd_test(*rng.normal(size=(2, 30, 4)).astype(np.float32), permutations=99, seed=seed).p for seed in range(60)]
    assert sum(value <= 0.1 for value in values) <= 12


def test_score_shift_is_significant_only_beyond_bonferroni() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 200, 3)).astype(np.float32)
    p, classes = score_shifts(("x", "y", "z"), a, b, alpha=0.05)
    assert p > 0.05 and not any(item.shifted for item in classes)
    b[:, 1] **= 3
    p, classes = score_shifts(("x", "y", "z"), a, b, alpha=0.05)
    assert p < 1e-6 and [item.label for item in classes if item.shifted] == ["y"] and classes[0].mean_a > classes[0].mean_b


def test_diagnosis_by_probes_compares_the_same_held_out_images(few_digits: Path) -> None:
    report = diagnose(few_digits, SMALL, TransferConfig(images=80, repeats=1))
    assert [arm.name for arm in report.arms] == ["probe", "random weights", "pixels"]
    assert report.train_images == 80 and {arm.accuracy.n for arm in report.arms} == {report.held_out}
    probe, random, _ = report.arms
    assert probe.accuracy.low > random.accuracy.high and report.comparisons[0].low > 0
    assert report.forgetting is None and TransferReport.model_validate_json(report.model_dump_json()) == report


def test_diagnosis_refuses_a_source_without_training() -> None:
    with pytest.raises(ValueError, match="--source needs --fine-tune"):
        TransferConfig(source="photos")


def test_diagnosis_refuses_tables_of_numbers_and_few_images(squares: Path, tmp_path: Path) -> None:
    table = SMALL.with_options(labels=str(squares / "labels.csv"), columns="mm", task="regression")
    with pytest.raises(ConfigError, match="has the task regression"):
        diagnose(squares / "images", table, TransferConfig())
    with pytest.raises(ConfigError, match="--epochs and --backbone-lr: only --fine-tune"):
        diagnose(squares / "images", SMALL.with_options(epochs=2, backbone_lr=0.1), TransferConfig())
    with pytest.raises(DataError, match="At least 20 are needed"):
        diagnose(write_colors(tmp_path / "few", 6), SMALL, TransferConfig())


def test_learning_curve_reports_points_forecasts_and_a_check(few_digits: Path) -> None:
    report = learning_curve(few_digits, SMALL, CurveConfig(images=80, repeats=1))
    assert [point.labels for point in report.pretrained] == [20, 28, 40, 80]
    assert [point.labels for point in report.random] == [20, 40, 80]
    assert report.pretrained[-1].accuracy.value > report.pretrained[0].accuracy.value
    assert [item.labels for item in report.forecasts] == [160, 320]
    assert report.backtest.measured == report.pretrained[-1].accuracy.value and report.equivalence.factor > 1
    assert CurveReport.model_validate_json(report.model_dump_json()) == report
    with pytest.raises(DataError, match="A learning curve needs 3 sizes"):
        learning_curve(few_digits, SMALL, CurveConfig(images=50))


def test_distance_of_different_folders_is_a_shift(few_digits: Path, tmp_path: Path) -> None:
    colors = write_colors(tmp_path / "colors", 20)
    report = distance(few_digits, colors, SMALL, DistanceConfig(images=60, permutations=99))
    assert report.shift and report.domains.proxy_a > 1.5 and report.domains.auc > 0.95 and report.mmd.p == 0.01 and report.common == 0
    assert report.scores is not None and report.scores.n_a == 30 and report.scores.n_b == 60


def test_distance_between_a_run_and_its_own_folder_is_no_shift(run: Run, digits: Path, tmp_path: Path) -> None:
    report = distance(run.path, digits, SMALL, DistanceConfig(images=90, permutations=99))
    assert not report.shift and report.scores is not None and report.scores.classifier.startswith("the run")
    # The images that trained the run are left out: only its validation and test images are compared.
    assert report.common > 0 and report.images <= 90
    loose = tmp_path / "loose"
    loose.mkdir()
    for index in range(25):
        Image.effect_noise((40, 40), 80).save(loose / f"{index}.png")
    shifted = distance(loose, run.path, SMALL, DistanceConfig(images=25, permutations=99))
    assert shifted.shift and shifted.scores is not None and shifted.backbone == run.record.backbone.name


def test_distance_of_folders_without_classes_compares_features_only(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        for index, file in enumerate(sorted((write_colors(tmp_path / f"{name}-colors", 8, seed=ord(name))).rglob("*.png"))):
            file.rename(tmp_path / name / f"{index}.png")
    report = distance(tmp_path / "a", tmp_path / "b", SMALL, DistanceConfig(permutations=99))
    assert report.scores is None and "no class labels" in report.scores_note and report.images == 24
    with pytest.raises(DataError, match="has 3 images to compare"):
        few = tmp_path / "few"
        few.mkdir()
        for index in range(3):
            (tmp_path / "a" / f"{index}.png").rename(few / f"{index}.png")
        distance(few, tmp_path / "b", SMALL, DistanceConfig())


@pytest.mark.slow
def test_fine_tuned_diagnosis_measures_forgetting_of_a_parent_run(run: Run, digits: Path) -> None:
    config = TrainConfig.from_options(backbone=str(run.path), strategy="full", epochs=1, val=0.2, test=0.2)
    report = diagnose(digits, config, TransferConfig(fine_tune=True))
    assert [arm.name for arm in report.arms] == ["fine-tuned", "random weights", "probe", "pixels"]
    tuned, random = report.arms[:2]
    assert tuned.steps == random.steps > 0 and tuned.accuracy.low > random.accuracy.high
    assert report.forgetting is not None and report.forgetting.through == "own" and not report.forgetting_note


@pytest.mark.slow
def test_fine_tuned_diagnosis_measures_forgetting_with_images_of_the_source(run: Run, digits: Path, tmp_path: Path) -> None:
    colors = write_colors(tmp_path / "colors", 60)
    config = TrainConfig.from_options(backbone=str(run.path), strategy="full", epochs=2)
    report = diagnose(colors, config, TransferConfig(fine_tune=True, source=str(digits)))
    assert report.forgetting is not None and report.forgetting.through == "probe" and report.forgetting.before > 0.9


@pytest.mark.slow
def test_curve_command_writes_a_chart_and_prints_json(digits: Path, tmp_path: Path) -> None:
    given = ("curve", digits, "--images", 100, "--repeats", 2, "--input-size", 48, "--val", 0.05, "--test", 0.05)
    shown = edgetl(*given, "--plot", tmp_path / "curve.png")
    assert shown.returncode == 0, shown.stderr
    assert "pretraining replaces" in shown.stdout and (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    report = CurveReport.model_validate_json(edgetl(*given, "--json").stdout)
    assert report.method == "probe" and report.pretrained[-1].labels == 100


@pytest.mark.slow
def test_trained_curves_have_equal_steps(colors: Path) -> None:
    write_colors(colors, 60)
    config = TrainConfig.from_options(backbone="test_resnet", pretrained=False, input_size=(32, 32), strategy="full", epochs=1)
    report = learning_curve(colors, config, CurveConfig(fine_tune=True))
    assert report.method == "fine-tuned" and report.steps > 0 and len(report.pretrained) == len(report.random) == 4


@pytest.mark.slow
def test_diagnose_and_distance_commands_print_a_result(digits: Path) -> None:
    small = ("--input-size", 48, "--images", 60, "--seed", 1)
    shown = edgetl("diagnose", digits, *small, "--val", 0.03, "--test", 0.03, "--repeats", 1)
    assert shown.returncode == 0, shown.stderr
    assert "transfer:" in shown.stdout and "probe less pixels" in shown.stdout
    same = edgetl("distance", digits, digits, *small)
    assert same.returncode == 0 and "no shift detected" in same.stdout and "images are in both domains" in same.stdout
