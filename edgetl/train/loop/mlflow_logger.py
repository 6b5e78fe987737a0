"""MLflow logger: writes options and metrics to an SQLite store in the run folder. The extra ``mlflow`` installs its libraries."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow.entities import Metric, Param
from mlflow.tracking import MlflowClient

EXPERIMENT = "edgetl"
# MLflow rejects longer values of a parameter.
_MAX_VALUE = 500


class MlflowLogger:
    """Logger with the methods of ``lightning_fabric.loggers.Logger`` that ``MetricLoggers`` calls.

    Args:
        database: SQLite file. MLflow no longer creates stores of plain files.
    """

    def __init__(self, database: Path) -> None:
        self._client = MlflowClient(f"sqlite:///{database.absolute()}")
        experiment = self._client.get_experiment_by_name(EXPERIMENT)
        experiment_id = experiment.experiment_id if experiment else self._client.create_experiment(EXPERIMENT)
        self._run_id = self._client.create_run(experiment_id).info.run_id

    def log_hyperparams(self, params: Mapping[str, Any]) -> None:
        """Log the options of the training."""
        self._client.log_batch(self._run_id, params=[Param(key, str(value)[:_MAX_VALUE]) for key, value in params.items()])

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Log the metrics of a validation."""
        now_ms = int(time.time() * 1000)
        self._client.log_batch(self._run_id, metrics=[Metric(key, value, now_ms, step) for key, value in metrics.items()])

    def save(self) -> None:
        """Do nothing: each call of ``log_metrics`` is stored at once."""

    def finalize(self, status: str) -> None:
        """End the MLflow run as finished (``success``) or failed."""
        self._client.set_terminated(self._run_id, "FINISHED" if status == "success" else "FAILED")
