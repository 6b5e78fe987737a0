"""Fine-tuning with few labeled images: a training on all of them, and one training per fold for the out-of-fold outputs."""

from __future__ import annotations

import copy
import logging
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import log_loss

from edgetl.core.progress import Progress
from edgetl.data.audit.copies import copy_sets
from edgetl.data.folder import Sample
from edgetl.data.loading import groups_of, labels_of
from edgetl.errors import ConfigError
from edgetl.train.heads.linear import OutOfFold, make_folds
from edgetl.train.inputs.features import features_of
from edgetl.train.workflows.optimization import FitResult, Training, fit_network

_log = logging.getLogger(__name__)


def fine_tune_few(training: Training) -> FitResult:
    """Fine-tune on all training images, for all steps of the plan.

    For each fold, a copy of the network is fine-tuned with the same plan on the images of the other folds. Its outputs for the images of
    the fold give the accuracy, thresholds and calibration. The folds do not choose the number of steps: this choice was worse than all
    steps (``python -m bench.accuracy.few_labels_partial``). They have no saved states. A resumed training runs them again.

    Raises:
        ConfigError: all images of a class are in one group, so that cross-validation is impossible.
    """
    splits, config, execution = training.splits, training.config, training.execution
    labels = labels_of(splits.train)
    copies = copy_sets(splits.train) if config.data.near_duplicates == "together" else {}
    folds = make_folds(labels, groups_of(splits.train, copies), 1, seed=config.run.seed)
    if not folds:
        raise ConfigError("the images of a class are in one group, so that cross-validation is not possible. Give --val 0.15.")
    outputs = np.zeros((len(labels), len(splits.folder.labels)), np.float32)
    for number, (rows, held) in enumerate(folds, 1):
        _log.info("cross-validation: fold %d of %d", number, len(folds))
        part = replace(splits, train=tuple(splits.train[row] for row in rows))
        backbone = replace(training.backbone, model=copy.deepcopy(training.backbone.model))
        shown = replace(execution, progress=_named(execution.progress, number, len(folds)))
        fold = replace(training, backbone=backbone, splits=part, checkpoints=None, execution=shown)
        fit_network(fold)
        outputs[held] = _outputs(fold, [splits.train[row] for row in held])
    fitted = fit_network(training)
    scores = torch.from_numpy(outputs).softmax(dim=1).numpy()
    found = OutOfFold(outputs, len(folds), float(log_loss(labels, scores, labels=range(outputs.shape[1]))))
    _log.info("cross-validated (%d folds) on %d images, without a validation split (--val)", len(folds), len(labels))
    return replace(fitted, out_of_fold=found)


def _named(progress: Progress, number: int, count: int) -> Progress:
    return lambda stage, done, total: progress(f"fold {number} of {count}: {stage}", done, total)


def _outputs(training: Training, samples: list[Sample]) -> NDArray[np.float32]:
    """Return the outputs of a trained network for ``samples``, float32 ``[n, labels]``."""
    backbone, execution = training.backbone, training.execution
    extract = features_of(backbone, training.config.optim.batch_size, device=execution.device, images=len(samples))
    features = torch.from_numpy(extract(samples, progress=execution.progress))
    with torch.no_grad():
        outputs: NDArray[np.float32] = backbone.head.cpu()(features).numpy()
    return outputs
