"""MLP head: one hidden layer on frozen features, trained by AdamW with early stopping."""

from __future__ import annotations

import copy
import math
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import nn

from edgetl.core.progress import Progress, silent
from edgetl.train.heads.linear import spread
from edgetl.train.heads.modules import HeadSpec, LabeledFeatures, make_adapter

HIDDEN = 256
BATCH_SIZE = 128
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 1e-2
DROPOUT = 0.3
VALIDATION_STEPS = 20
MAX_STEPS = 4000
PATIENCE = 15

_Data: TypeAlias = tuple[torch.Tensor, torch.Tensor]


def fit_mlp(
    spec: HeadSpec, train: LabeledFeatures, val: LabeledFeatures, weights: torch.Tensor, *, seed: int, progress: Progress = silent
) -> tuple[nn.Module, nn.Linear]:
    """Fit an MLP head by AdamW on standardized features, with dropout and early stopping on the log-loss of ``val``.

    The standardization is folded into the first layer. The same seed gives the same weights on a CPU with the same libraries.

    Args:
        spec: Head, with its number of hidden units.
        train: Training data.
        val: Validation data for early stopping.
        weights: float32 ``[classes]``, class weights of the loss.
        seed: Random seed of the initial weights, the batches and the dropout.
        progress: Callback, called after each validation.

    Returns:
        The hidden layer with its activation, and the last linear layer.
    """
    mean, width = torch.from_numpy(train.features.mean(axis=0)), train.features.shape[1]
    std = torch.from_numpy(spread(train.features))
    rows, labels = (torch.from_numpy(train.features) - mean) / std, torch.from_numpy(train.targets)
    val_rows, val_labels = (torch.from_numpy(val.features) - mean) / std, torch.from_numpy(val.targets)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        hidden, head = make_adapter(spec, width, len(weights))
        _train(nn.Sequential(hidden, nn.Dropout(DROPOUT), head), (rows, labels), (val_rows, val_labels), weights, progress)
    first = hidden.get_submodule("0")
    assert isinstance(first, nn.Linear)
    with torch.no_grad():
        first.weight.div_(std)
        first.bias.sub_(first.weight @ mean)
    return hidden, head


def _train(model: nn.Sequential, train: _Data, val: _Data, weights: torch.Tensor, progress: Progress) -> None:
    """Train until the log-loss on ``val`` no longer decreases, and restore the weights with the lowest log-loss."""
    rows, labels = train
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    best, lowest, waited = copy.deepcopy(model.state_dict()), math.inf, 0
    for step in range(MAX_STEPS):
        if step % VALIDATION_STEPS == 0:
            model.eval()
            with torch.no_grad():
                loss = float(F.cross_entropy(model(val[0]), val[1], weights))
            best, lowest, waited = (copy.deepcopy(model.state_dict()), loss, 0) if loss < lowest else (best, lowest, waited + 1)
            if waited >= PATIENCE:
                break
            model.train()
            progress("fitting the head", step, MAX_STEPS)
        batch = torch.randint(len(rows), (min(BATCH_SIZE, len(rows)),))
        optimizer.zero_grad()
        F.cross_entropy(model(rows[batch]), labels[batch], weights).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    progress("fitting the head", MAX_STEPS, MAX_STEPS)
    model.load_state_dict(best)
    model.eval()
