"""Effect of balanced training (``--balance``): accuracy of each group of the validation images without and with it."""

from __future__ import annotations

import logging

import numpy as np
from numpy.typing import NDArray

from edgetl.core.group_metrics import Compared, GroupTable, compare_columns, outcomes_of
from edgetl.core.tasks import OutputDecoding
from edgetl.data.loading import labels_of
from edgetl.data.split import Splits
from edgetl.errors import ConfigError, DataError
from edgetl.train.config.options import DataConfig
from edgetl.train.config.tasks import balancing_values

_log = logging.getLogger(__name__)

NOT_BALANCED, CLASS = "not balanced", "class"


def compare_balancing(splits: Splits, config: DataConfig, plain: NDArray[np.float32], balanced: NDArray[np.float32]) -> GroupTable | None:
    """Compare the groups of the validation images for a classifier without and with ``--balance``.

    The groups are the values of ``--balance-by``, or the classes.

    Args:
        splits: splits of the training. None is returned without validation images, or if the table has none of them.
        config: options of the balancing.
        plain: logits of the validation images without balancing, float32 ``[n, classes]``.
        balanced: the same with balancing.
    """
    truth, labels = labels_of(splits.val), splits.folder.labels
    if not splits.val:
        return None
    by, values = CLASS, tuple(labels[label] for label in truth)
    if config.balance_by is not None:
        try:
            by, values = config.balance_by, balancing_values(splits.val, splits.folder.root, config, config.balance_by)
        except (ConfigError, DataError) as error:
            _log.warning("the effect of --balance is not measured on validation images: %s", error)
            return None
    name, decoding = f"--balance {config.balance}", OutputDecoding("classification", labels)
    models = (outcomes_of(NOT_BALANCED, decoding, truth, plain), outcomes_of(name, decoding, truth, balanced))
    (found,) = compare_columns({by: values}, Compared(models, main=name, reference=NOT_BALANCED))
    return found
