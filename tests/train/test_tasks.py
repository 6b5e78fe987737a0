"""Multi-label, regression and ordinal training: losses, heads, thresholds, strategies, and rejected options."""

from __future__ import annotations

import math
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import f1_score
from sklearn.model_selection import LeaveOneOut, cross_val_predict

from edgetl.core.metrics import evaluate
from edgetl.core.output_decoding import sigmoid
from edgetl.data.folder import scan
from edgetl.data.loading import PixelSet, truth_of
from edgetl.data.split import split
from edgetl.errors import ConfigError, DataError, StoppedError
from edgetl.runtime.evaluation import EvaluationConfig
from edgetl.train.config.options import TrainConfig
from edgetl.train.config.resolve import check_conflicts
from edgetl.train.config.tasks import choose_thresholds, scan_images
from edgetl.train.heads.linear import RIDGE_PENALTIES, fit_multi_label, fit_ridge, fold_scale
from edgetl.train.heads.modules import LabeledFeatures
from edgetl.train.loop.losses import LabelLoss, ValueLoss, presence_weights
from edgetl.train.workflows.finetune import fine_tune
from edgetl.train.workflows.runs.evaluate import evaluate_run
from edgetl.train.workflows.train import train
from tests.train.test_loop import SMALL

COLOR_COLUMNS = "red,green,blue"


def config(squares: Path, **changes: Any) -> TrainConfig:
    given = {**SMALL, "labels": str(squares / "labels.csv"), "columns": COLOR_COLUMNS, "pretrained": False, "augmented_views": 1, **changes}
    return TrainConfig.from_options(**given)


def test_chosen_thresholds_give_the_highest_f1() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        truth, scores = rng.random((25, 2)) < 0.4, rng.random((25, 2)).astype(np.float32)
        for column, threshold in enumerate(choose_thresholds(truth, scores)):
            best = max(f1_score(truth[:, column], scores[:, column] >= score, zero_division=0) for score in scores[:, column])
            assert f1_score(truth[:, column], scores[:, column] >= np.float32(threshold)) == pytest.approx(best)


def test_threshold_is_one_half_if_no_other_value_is_better() -> None:
    truth = np.array([[1, 0, 1], [1, 0, 1], [1, 0, 0]], bool)
    scores = np.array([[0.2, 0.9, 0.6], [0.3, 0.1, 0.9], [0.4, 0.2, 0.4]], np.float32)
    assert choose_thresholds(truth, scores) == (0.5, 0.5, 0.5)


def test_asymmetric_loss_follows_its_definition() -> None:
    logits, truth = torch.tensor([[1.5, -2.0], [0.3, -4.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    p = torch.sigmoid(logits)
    shifted = (p - 0.05).clamp(min=0)
    expected = -torch.where(truth > 0, torch.log(p), shifted**4 * torch.log(1 - shifted)).mean()
    loss = LabelLoss(asymmetric=True)
    assert float(loss(logits, truth)) == pytest.approx(float(expected), rel=1e-6)
    assert float(loss(torch.full((1, 1), -3.2), torch.zeros(1, 1))) == 0.0, "a confident absence has no loss"


def test_presence_weights_balance_presence_and_absence() -> None:
    truth = np.array([[1.0, 1.0], [0.0, 1.0], [0.0, 1.0], [0.0, 0.0]])
    assert presence_weights(truth).tolist() == [3.0, pytest.approx(1 / 3)]
    plain, balanced = LabelLoss(), LabelLoss(weights=presence_weights(truth))
    nothing = torch.zeros(4, 2)
    assert float(plain(nothing, torch.tensor(truth))) == pytest.approx(math.log(2))
    # One of four images has the label, so its presence has the weight of three absences.
    cost = torch.nn.functional.binary_cross_entropy_with_logits(nothing[:1, :1], torch.ones(1, 1), pos_weight=balanced.weights[:1])  # type: ignore[index]
    assert float(cost) == pytest.approx(3 * math.log(2))


def test_prediction_is_correct_if_all_labels_match_or_the_value_is_within_tolerance() -> None:
    assert int(LabelLoss().correct(torch.tensor([[1.0, -1.0], [1.0, 1.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]]))) == 1
    numbers = ValueLoss(10.0, 2.0, tolerance=0.25)
    assert int(numbers.correct(torch.tensor([[0.0], [0.0]]), torch.tensor([[10.4], [11.0]]))) == 1
    assert float(numbers(torch.tensor([[1.0]]), torch.tensor([[10.0]]))) == 1.0
    assert float(ValueLoss(10.0, 2.0, tolerance=0.25, huber=True)(torch.tensor([[3.0]]), torch.tensor([[10.0]]))) == 2.5


def test_multi_label_fit_gives_each_label_a_row_and_a_constant_label_only_a_bias() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(120, 6)).astype(np.float32)
    truth = np.stack([features[:, 0] > 0, features[:, 1] > 0.5, np.ones(120), np.zeros(120)], axis=1).astype(np.float64)
    head = fit_multi_label(LabeledFeatures(features, truth), seed=0)
    outputs = features @ head.weight.T + head.bias
    assert ((outputs > 0) == (truth > 0)).mean(axis=0).min() > 0.95
    assert np.abs(head.weight[2:]).max() == 0 and head.bias[2] == -head.bias[3] == pytest.approx(math.log(121))


def test_ridge_fit_selects_the_penalty_with_the_lowest_leave_one_out_error() -> None:
    rng = np.random.default_rng(1)
    features = rng.normal(size=(40, 60)).astype(np.float32) * rng.uniform(0.5, 2, 60).astype(np.float32)
    values = features[:, :3].sum(axis=1) + rng.normal(0, 1, 40)
    values = (values - values.mean()) / values.std()
    head = fit_ridge(LabeledFeatures(features, values))
    scaled = (features - features.mean(axis=0)) / features.std(axis=0)
    errors = [
        ((cross_val_predict(Ridge(penalty * 40), scaled, values, cv=LeaveOneOut()) - values) ** 2).mean() for penalty in RIDGE_PENALTIES
    ]
    # Each fit of scikit-learn has one image fewer and therefore a slightly different mean.
    assert head.penalty == RIDGE_PENALTIES[int(np.argmin(errors))]
    assert np.allclose([1 - value for value in head.folds], errors, rtol=0.02)
    expected = Ridge(head.penalty * 40).fit(scaled, values).predict(scaled)
    assert np.allclose((features @ head.weight.T + head.bias)[:, 0], expected, atol=1e-3)


def test_folding_the_scale_into_the_head_gives_outputs_in_the_unit_of_the_values() -> None:
    head = torch.nn.Linear(4, 1)
    features = torch.randn(5, 4)
    with torch.no_grad():
        before = head(features)
        fold_scale(head, 30.0, 4.0)
        assert torch.allclose(head(features), before * 4 + 30, atol=1e-5)


@pytest.mark.parametrize(
    "strategy", ["probe", "partial", *(pytest.param(name, marks=pytest.mark.slow) for name in ("full", "progressive", "scratch"))]
)
def test_multi_label_training_works_with_every_strategy(squares: Path, tmp_path: Path, strategy: str) -> None:
    run = train(
        squares / "images", config(squares, strategy=strategy, balance="loss", backbone="edgetl_small", pretrained=True), tmp_path / "run"
    )
    record = run.record
    assert (record.task, record.labels, len(record.decision_rule.thresholds)) == ("multi-label", ("red", "green", "blue"), 3)
    assert record.test is not None and record.test.multi_label is not None and record.plan.strategy == strategy
    assert [entry.targets for entry in run.splits().entries] != [] and {len(entry.targets) for entry in run.splits().entries} == {3}
    names = {path.name for path in run.path.iterdir()}
    assert {"labels.png", "classes.csv"} <= names and "confusion.png" not in names
    assert (run.path / "classes.csv").read_text().startswith("label,n,precision,recall,f1,average_precision\n")


@pytest.mark.parametrize("changes", [{}, pytest.param({"multilabel_loss": "asymmetric"}, marks=pytest.mark.slow)])
def test_multi_label_training_detects_the_squares(squares: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    found = train(squares / "images", config(squares, strategy="scratch", epochs=25, patience=50, **changes), tmp_path / "run").record
    assert found.test is not None and found.test.score.value > 0.9


def test_evaluate_run_gives_the_scores_of_the_run_record(squares: Path, tmp_path: Path) -> None:
    run = train(squares / "images", config(squares, strategy="probe"), tmp_path / "run")
    report = evaluate_run(run.path, squares / "images", EvaluationConfig(labels=squares / "labels.csv"))
    assert report.left_out == run.record.images["train"] + run.record.images["val"]
    assert run.record.test is not None and report.result.accuracy == run.record.test.accuracy
    assert report.result.score.value == pytest.approx(run.record.test.score.value)
    with pytest.raises(
        ConfigError, match=r"multi-label model\. Set the labels of the images with --labels FILE.csv \(columns file, red, green"
    ):
        evaluate_run(run.path, squares / "images")


def test_regression_outputs_have_the_unit_of_the_values(squares: Path, tmp_path: Path) -> None:
    options = {"columns": "mm", "strategy": "partial", "backbone": "edgetl_small", "pretrained": True, "tolerance": 1.5}
    # The default augmentation changes the brightness, which is the value.
    run = train(squares / "images", config(squares, task="regression", augment="none", **options), tmp_path / "run")
    record = run.record
    samples = run.samples("test")
    from edgetl.export.gate.agreement import trained_logits

    outputs = trained_logits(run.load_model(), PixelSet(samples, record.preprocess))
    assert record.test is not None and record.test.regression is not None
    again = evaluate(record.decoding, truth_of(samples), outputs)
    assert again.regression is not None and again.regression.mae == pytest.approx(record.test.regression.mae, rel=1e-3)
    assert 2 < outputs.mean() < 8 and record.decision_rule.tolerance == 1.5 and record.test.score.value > 0.3
    assert {"values.png"} <= {path.name for path in run.path.iterdir()}


def test_ordinal_training_reports_levels_and_kappa(squares: Path, tmp_path: Path) -> None:
    settings = config(squares, task="ordinal", columns="grade", strategy="probe", backbone="edgetl_small", pretrained=True)
    record = train(squares / "images", settings, tmp_path / "run").record
    assert record.decision_rule.ordinal_levels == (0, 3) and record.labels == ("grade",)
    assert record.test is not None and record.test.regression is not None and record.test.regression.kappa is not None
    assert [score.label for score in record.test.classes] == ["0", "1", "2", "3"]


@pytest.mark.parametrize("task", ["multi-label", "regression"])
def test_resumed_training_of_a_table_task_gives_the_same_weights(squares: Path, tmp_path: Path, task: str) -> None:
    column = {"multi-label": COLOR_COLUMNS, "regression": "mm"}[task]
    settings = config(squares, task=task, columns=column, strategy="full", checkpoint_s=0.001)
    whole = train(squares / "images", settings, tmp_path / "whole")

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "fine-tuning" and done == 5:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(StoppedError):
        train(squares / "images", settings, tmp_path / "run", progress=stop)
    resumed = train(squares / "images", settings, tmp_path / "run", resume=True)
    assert resumed.record.files["weights.safetensors"] == whole.record.files["weights.safetensors"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": None, "task": "regression", "columns": None}, "--task regression needs --labels FILE.csv"),
        ({"labels": None}, "--columns needs --labels"),
        ({"task": "regression", "balance": "loss"}, "--balance loss is only for classification and multi-label tasks, not regression"),
        ({"task": "ordinal", "multilabel_loss": "asymmetric"}, "--multilabel-loss asymmetric is only for multi-label tasks, not ordinal"),
        (
            {"task": "multi-label", "regression_loss": "huber", "tolerance": 1.0},
            "--regression-loss huber is only for regression and ordinal tasks, not multi-label. Remove it. --tolerance is only",
        ),
        ({"task": "multi-label", "multilabel_loss": "asymmetric", "balance": "loss"}, "asymmetric, which already weights"),
        (
            {"task": "multi-label", "multilabel_loss": "asymmetric", "label_smoothing": 0.1},
            "--label-smoothing is only for classification and for --multilabel-loss bce",
        ),
    ],
)
def test_check_conflicts_rejects_options_of_another_task(squares: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_conflicts(config(squares, **changes))


def test_fine_tune_reports_several_mistakes_together(colors: Path, tmp_path: Path) -> None:
    settings = TrainConfig.from_options(**{**SMALL, "multilabel_loss": "asymmetric", "tolerance": 2.0})
    with pytest.raises(
        ConfigError, match=r"--multilabel-loss asymmetric is only for multi-label tasks, not classification. Remove it. --tolerance is only"
    ):
        fine_tune(split(scan(colors)), settings, tmp_path / "run")


def test_fine_tune_names_a_label_without_training_images(tmp_path: Path, squares: Path) -> None:
    folder = scan_images(squares / "images", config(squares).data)
    splits = split(folder)
    emptied = type(splits)(folder, tuple(item for item in splits.train if not item.targets[1]), splits.val, splits.test)
    with pytest.raises(DataError, match=r"no training image of green. Add images, or remove the column"):
        fine_tune(emptied, config(squares), tmp_path / "run")


def test_label_scores_are_sigmoids() -> None:
    assert sigmoid(np.array([0.0, 200.0, -200.0], np.float32)).tolist() == [0.5, 1.0, 0.0]
