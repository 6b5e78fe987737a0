"""Loggers: write the figures of each validation to CSV, TensorBoard or MLflow (``--loggers``), in the run's folder."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from lightning.fabric.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.loggers import MLFlowLogger

FOLDER = "logs"


class MetricLoggers:
    """Open loggers; closed at the end of a ``with`` block.

    Args:
        names: ``csv``, ``tensorboard`` and ``mlflow``; empty logs nothing.
        folder: of the run.
        options: of the training, which TensorBoard and MLflow show beside the figures.
        rows: of a resumed training, from before it was stopped.
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
            if not isinstance(logger, CSVLogger):  # which does not take them
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


def _open(name: str, folder: Path) -> Logger:
    for library in ("lightning.pytorch.loggers", "mlflow", "alembic"):
        logging.getLogger(library).setLevel(logging.ERROR)  # a new experiment is no news
    if name == "csv":
        return CSVLogger(folder, name=name, version="", flush_logs_every_n_steps=1)
    if name == "tensorboard":
        return TensorBoardLogger(folder, name=name, version="", default_hp_metric=False)
    folder.mkdir(exist_ok=True)
    # MLflow refuses to begin new folders of plain files, so that its figures are kept in SQLite.
    return MLFlowLogger("edgetl", tracking_uri=f"sqlite:///{(folder / 'mlflow.db').absolute()}")
