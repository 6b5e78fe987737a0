"""Fine-tuning API: configuration, training, runs, backbones and their ranking.

The public names are imported on first use. A program that only reads or writes options therefore does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgetl.train.artifacts.loading.load import load_backbone
    from edgetl.train.artifacts.run import Run, open_run
    from edgetl.train.config.options import TrainConfig
    from edgetl.train.config.resolve import resolve
    from edgetl.train.workflows.rank import rank
    from edgetl.train.workflows.train import train

__all__ = ["Run", "TrainConfig", "load_backbone", "open_run", "rank", "resolve", "train"]

_MODULES = {
    "Run": "artifacts.run",
    "TrainConfig": "config.options",
    "load_backbone": "artifacts.loading.load",
    "open_run": "artifacts.run",
    "rank": "workflows.rank",
    "resolve": "config.resolve",
    "train": "workflows.train",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
