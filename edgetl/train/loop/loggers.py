"""Metric loggers (``--loggers``): write the metrics of each validation to CSV, TensorBoard or MLflow in the run folder."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from lightning_fabric.loggers import CSVLogger, Logger, TensorBoardLogger

if TYPE_CHECKING:
    from edgetl.train.loop.mlflow_logger import MlflowLogger

FOLDER = "logs"


class MetricLoggers:
    """Metric loggers of a training. They are closed at the end of a ``with`` block.

    Args:
        names: ``csv``, ``tensorboard`` and ``mlflow``. Empty logs nothing.
        folder: Run folder.
        options: Options of the training. TensorBoard and MLflow show them beside the metrics.
        rows: Earlier metrics of a resumed training.
    """

    def __init__(
        self,
        names: Sequence[str] = (),
        folder: Path = Path(),
        options: Mapping[str, Any] | None = None,
        rows: Sequence[Mapping[str, float]] = (),
    ) -> None:
        self.loggers = [_open(name, folder / FOLDER) for name in names]
        for logger in self.loggers:
            if not isinstance(logger, CSVLogger):  # CSVLogger does not accept hyperparameters
                logger.log_hyperparams({key: value for key, value in (options or {}).items() if value is not None})
        self.write(rows)

    def write(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Write ``rows``: losses, accuracies and the learning rate of each group (``lr/head``, ``lr/stage4`` …)."""
        for row in rows:
            for logger in self.loggers:
                logger.log_metrics({key: value for key, value in row.items() if key != "step"}, step=int(row["step"]))
                logger.save()

    def __enter__(self) -> MetricLoggers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for logger in self.loggers:
            logger.finalize("success" if kind is None else "failed")


def _open(name: str, folder: Path) -> Logger | MlflowLogger:
    if name == "csv":
        return CSVLogger(folder, name=name, version="", flush_logs_every_n_steps=1)
    if name == "tensorboard":
        return TensorBoardLogger(folder, name=name, version="", default_hp_metric=False)
    from edgetl.train.loop.mlflow_logger import MlflowLogger  # MLflow is an extra of its own

    for library in ("mlflow", "alembic"):
        logging.getLogger(library).setLevel(logging.ERROR)  # hide messages about a new database
    folder.mkdir(exist_ok=True)
    return MlflowLogger(folder / "mlflow.db")
