"""Adaptive BatchNorm (AdaBN): BatchNorm statistics of the target images in place of those of the training images."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from edgetl.data.folder import Sample
from edgetl.data.loading import batches
from edgetl.train.loop.processes import Execution
from edgetl.train.networks.backbone import Backbone

# Images of a batch. Statistics of small batches are noisy, and a mean of their variances is too small.
BATCH = 64


def has_batchnorm(network: nn.Module) -> bool:
    """Return True if ``network`` has BatchNorm layers."""
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules())


def adapt_batchnorm(backbone: Backbone, samples: Sequence[Sample], execution: Execution) -> Backbone:
    """Return a copy of ``backbone`` with the BatchNorm statistics of ``samples`` (AdaBN: Li et al. 2016, arXiv:1603.04779).

    The statistics are means over batches in a random order. Without BatchNorm layers, the copy has the same outputs.

    Args:
        backbone: backbone in evaluation mode.
        samples: target images.
        execution: device, seed and progress.
    """
    network = copy.deepcopy(backbone.model).to(execution.device)
    update_bn(_shuffled(backbone, samples, execution), network)
    return replace(backbone, model=network.cpu().eval())


def _shuffled(backbone: Backbone, samples: Sequence[Sample], execution: Execution) -> Iterator[torch.Tensor]:
    """Yield batches in a random order, because a folder often lists one class after the other. A small last batch is left out."""
    order = np.random.default_rng(execution.seed).permutation(len(samples))
    done = 0
    for batch in batches([samples[index] for index in order], backbone.spec, batch_size=BATCH):
        if done and len(batch) < BATCH // 2:
            return
        done += len(batch)
        execution.progress("measuring BatchNorm statistics", done, len(samples))
        yield torch.from_numpy(batch).to(execution.device)
