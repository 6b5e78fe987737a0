"""Metric loggers (``--loggers``): CSV, TensorBoard and MLflow get the metrics of each validation, also after a resume."""

from __future__ import annotations

import csv
import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from edgetl.cli.options import build
from edgetl.errors import ConfigError, MissingExtraError
from edgetl.installation import install_command
from edgetl.train.artifacts.run import Run
from edgetl.train.config.options import TrainConfig
from edgetl.train.loop.optimizer import warm_cosine
from edgetl.train.workflows.train import train

SMALL = {
    "backbone": "test_resnet",
    "input_size": (32, 32),
    "val": 0.25,
    "test": 0.25,
    "workers": 0,
    "batch_size": 8,
    "pretrained": False,
    "strategy": "full",
    "epochs": 8,
}
KEYS = {"train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr/head", "lr/stage4", "lr/stem"}


def _config(**changes: object) -> TrainConfig:
    return TrainConfig.from_options(**{**SMALL, **changes})


def _metrics(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()][:-1]


class _StopError(Exception):
    """Raised in the progress callback to stop a training."""


def test_csv_of_a_resumed_training_has_all_validations_and_learning_rates(colors: Path, tmp_path: Path) -> None:
    def stop(stage: str, done: int, total: int) -> None:
        if stage == "fine-tuning" and done == 13:
            raise _StopError

    with pytest.raises(_StopError):
        train(colors, _config(checkpoint_s=0.001), tmp_path / "run", progress=stop)
    run = train(colors, _config(checkpoint_s=0.001, loggers="csv"), tmp_path / "run", resume=True)  # --loggers may change in a resume
    with (run.path / "logs" / "csv" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    kept = _metrics(run)
    assert [int(row["step"]) for row in rows] == [row["step"] for row in kept] and int(rows[0]["step"]) < 13
    assert set(rows[0]) >= KEYS
    plan = run.record.plan
    for row, same in zip(rows, kept, strict=True):
        assert all(float(row[key]) == pytest.approx(same[key]) for key in KEYS)
        assert same["lr/head"] == pytest.approx(plan.lr * warm_cosine(same["step"] - 1, plan.steps, 0.1))
    assert not any(name.startswith("logs") for name in run.record.files)


def test_training_writes_no_logs_by_default(colors: Path, tmp_path: Path) -> None:
    assert not (train(colors, _config(epochs=1), tmp_path / "run").path / "logs").exists()


def test_unknown_logger_error_lists_the_known_loggers() -> None:
    assert build(TrainConfig, loggers="csv,tensorboard").run.loggers == "csv,tensorboard"
    for wrong in ("wandb", "csv,wandb", ","):
        with pytest.raises(ConfigError, match=r"--loggers: .*one or more of csv, tensorboard, mlflow"):
            build(TrainConfig, loggers=wrong)


@pytest.mark.parametrize(("name", "extra"), [("tensorboard", "log"), ("mlflow", "mlflow")])
def test_missing_logger_package_is_reported_with_the_pip_command_before_training(
    colors: Path, tmp_path: Path, name: str, extra: str
) -> None:
    if find_spec(name) is not None:
        pytest.skip(f"{name} is installed")
    with pytest.raises(MissingExtraError, match=re.escape(f"{name} is not installed. Install it with: {install_command(extra)}")):
        train(colors, _config(loggers=name), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_tensorboard_reads_the_logged_metrics(colors: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = train(colors, _config(loggers="tensorboard"), tmp_path / "run")
    events = EventAccumulator(str(run.path / "logs" / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) >= KEYS
    assert [event.step for event in events.Scalars("val_loss")] == [row["step"] for row in _metrics(run)]


def test_mlflow_reads_the_logged_metrics(colors: Path, tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    from mlflow.tracking import MlflowClient

    run = train(colors, _config(loggers="mlflow"), tmp_path / "run")
    client = MlflowClient(f"sqlite:///{run.path / 'logs' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("edgetl")
    assert experiment is not None
    (logged,) = client.search_runs([experiment.experiment_id])
    assert logged.info.status == "FINISHED" and set(logged.data.metrics) >= KEYS
    assert [item.step for item in client.get_metric_history(logged.info.run_id, "val_loss")] == [row["step"] for row in _metrics(run)]
