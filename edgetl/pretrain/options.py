"""Options of continued pretraining: ``edgetl distill`` and ``edgetl pretrain --ssl``."""

from __future__ import annotations

from functools import partial

from edgetl.core.config import StrictModel
from edgetl.core.options import COMMON, option_field

_common = partial(option_field, panel=COMMON)
_training = partial(option_field, panel="Training")

# Fewer images do not represent a domain, and a part of them measures the result.
MIN_IMAGES = 100


class DistillConfig(StrictModel):
    """Options of ``distill`` that are not options of the backbone."""

    teacher: str | None = _common(
        None, "Teacher: the larger network whose features the backbone learns to predict. A backbone or a run.", metavar="NAME"
    )
    steps: int = _common(500, "Optimizer steps.", ge=1, le=1_000_000)
    batch_size: int = _training(64, "Images of a step. 32 to 128 is typical.", ge=8, le=4096)
    lr: float = _training(1e-3, "Highest learning rate of AdamW. 0.001 is typical.", gt=0.0, le=1.0)


class SelfSupervisedConfig(StrictModel):
    """Options of ``pretrain --ssl`` that are not options of the backbone."""

    steps: int = _common(150, "Optimizer steps of --ssl.", ge=1, le=1_000_000)
    batch_size: int = _training(64, "Images of a step. 64 to 256 is typical.", ge=8, le=4096)
    lr: float = _training(1e-4, "Highest learning rate of AdamW for the backbone. 0.0001 is typical.", gt=0.0, le=1.0)
