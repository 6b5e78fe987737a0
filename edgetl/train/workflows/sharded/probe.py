"""Linear probe on shards: one pass of the frozen backbone, features on disk, and a head that is fitted on them in chunks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from edgetl.data.loading import labels_of
from edgetl.train.heads.fit import set_linear_head
from edgetl.train.heads.modules import LabeledFeatures
from edgetl.train.heads.streamed.logistic import fit_streamed
from edgetl.train.inputs.features import FrozenFeatures, features_of
from edgetl.train.inputs.shards.batches import warn_unreadable
from edgetl.train.inputs.shards.features import VALIDATION_NAME, mapped_features, stream_features
from edgetl.train.loop.checkpoints import SavedState
from edgetl.train.loop.losses import balanced_weights
from edgetl.train.loop.processes import gather, launch, rank, world_size
from edgetl.train.networks.backbone import Backbone
from edgetl.train.workflows.optimization import FitResult, Training


def fit_sharded_probe(training: Training) -> FitResult:
    """Fit the linear head on the features of all training images, and copy it into the network.

    Each process computes the features of its shards. They are stored beside the future run, in ``<out>.checkpoints/features-RANK``. A
    stopped pass continues there, after the last complete shard.

    Raises:
        DataError: a shard is damaged or changed, or more than 10 % of the images cannot be decoded.
        StorageError: the features cannot be written.
    """
    splits, execution, checkpoints = training.splits, training.execution, training.checkpoints
    shards = splits.shards
    assert shards is not None and checkpoints is not None
    extract = features_of(training.backbone, training.config.optim.batch_size, device=execution.device, images=splits.counts["train"])
    folder = checkpoints.folder / f"features-{rank()}"
    if rank() == 0 and checkpoints.newest() is None:
        checkpoints.save(SavedState())  # has the options, for --resume
    own = [number for number, count in enumerate(shards.train_counts) if count][rank() :: world_size()]
    table = stream_features(shards, own, extract, folder, network=_digest(training.backbone, extract), progress=execution.progress)
    unreadable = gather(table.unreadable)
    warn_unreadable(unreadable)
    val = LabeledFeatures(mapped_features(extract, splits.val, folder / VALIDATION_NAME, execution.progress), labels_of(splits.val))
    weights = np.ones(len(shards.labels))
    if training.config.data.balance != "none":
        weights = balanced_weights(splits).astype(np.float64)
    head, accuracy = fit_streamed(table.chunks, val, weights, summed=_sum_over_processes(execution.device), progress=execution.progress)
    set_linear_head(training.backbone.head, head)
    return FitResult(head.penalty, [], accuracy, unreadable=tuple(unreadable))


def _digest(backbone: Backbone, extract: FrozenFeatures) -> str:
    """Return the SHA-256 (hex) of the inputs of the features: architecture, weights and preprocessing."""
    facts = f"{backbone.architecture} {json.dumps(backbone.model_args)} {backbone.spec.model_dump_json()}"
    digest = hashlib.sha256(facts.encode())
    for name, value in extract.network.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _sum_over_processes(device: str) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """Return the function that sums an array over all processes."""
    fabric = launch(device)

    def summed(value: NDArray[np.float64]) -> NDArray[np.float64]:
        if world_size() == 1:
            return value
        total = fabric.all_reduce(torch.from_numpy(value).to(fabric.device), reduce_op="sum")
        assert isinstance(total, torch.Tensor)
        found: NDArray[np.float64] = total.cpu().numpy()
        return found

    return summed
