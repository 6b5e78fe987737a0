"""``--loggers``: the figures of each validation also go through Lightning's own loggers, into the run's folder."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger

from edgetl.train.config.options import TrainConfig, logger_names

if TYPE_CHECKING:
    from edgetl.train.loop.validation import History

FOLDER = "logs"


class Logs(Callback):
    """Hands each row of the history to the loggers, those from before a resumption first.

    Rows hold losses, accuracies and the learning rate of each group (``lr/head``, ``lr/stage4`` …); the configuration goes along.
    """

    def __init__(self, config: TrainConfig, folder: Path, history: History) -> None:
        self.history = history
        self.loggers = [_open(name, folder / FOLDER) for name in logger_names(config.run.loggers)]
        self._written = 0
        for logger in self.loggers:
            logger.log_hyperparams({key: value for key, value in config.model_dump().items() if value is not None})

    def on_train_batch_end(self, *_: Any) -> None:
        """Write what is new."""
        new = self.history.rows[self._written :]
        self._written += len(new)
        for row in new:
            for logger in self.loggers:
                logger.log_metrics({key: value for key, value in row.items() if key != "step"}, step=int(row["step"]))
                logger.save()

    def on_train_end(self, *_: Any) -> None:
        """Close the files."""
        for logger in self.loggers:
            logger.finalize("success")


def _open(name: str, folder: Path) -> Logger:
    for library in ("lightning.pytorch.loggers", "mlflow", "alembic"):
        logging.getLogger(library).setLevel(logging.ERROR)  # that an experiment is new is no news
    if name == "csv":
        return CSVLogger(folder, name=name, version="", flush_logs_every_n_steps=1)
    if name == "tensorboard":
        return TensorBoardLogger(folder, name=name, version="", default_hp_metric=False)
    folder.mkdir(exist_ok=True)
    return MLFlowLogger("edgetl", tracking_uri=f"sqlite:///{(folder / 'mlflow.db').absolute()}")
