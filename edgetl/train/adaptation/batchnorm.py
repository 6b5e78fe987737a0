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
# Smallest variance of a channel, as a part of its variance in the network of the run. A channel that is constant on all target images has
# a variance near 0, so BatchNorm multiplies it by up to 300 (1 / sqrt(eps)). In fp32 the outputs are right, but in int8 its rounding
# errors fill the range of the next activation: in a trial, two adapted MobileNetV2 agreed with OpenVINO int8 on 30 and 77 % of the
# images. With this limit it was 92 and 96 %, and the fp32 classes of all images were unchanged. A limit of 0.01 changed 19 % of them.
# ``python -m bench.accuracy.adaptation --export`` measures the exported files.
LEAST_VARIANCE = 0.001


def has_batchnorm(network: nn.Module) -> bool:
    """Return True if ``network`` has BatchNorm layers."""
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules())


def adapt_batchnorm(backbone: Backbone, samples: Sequence[Sample], execution: Execution, *, source: nn.Module) -> Backbone:
    """Return a copy of ``backbone`` with the BatchNorm statistics of ``samples`` (AdaBN: Li et al. 2016, arXiv:1603.04779).

    The statistics are means over batches in a random order. No variance is below ``LEAST_VARIANCE`` times that in ``source``. Without
    BatchNorm layers, the copy has the same outputs.

    Args:
        backbone: backbone in evaluation mode.
        samples: target images.
        execution: device, seed and progress.
        source: network of the run, with the layers of ``backbone``.
    """
    network = copy.deepcopy(backbone.model).to(execution.device)
    update_bn(_shuffled(backbone, samples, execution), network)
    network = network.cpu().eval()
    variances = {name: value for name, value in source.named_buffers() if name.endswith("running_var")}
    for name, value in network.named_buffers():
        if name in variances:
            torch.maximum(value, LEAST_VARIANCE * variances[name].cpu(), out=value)
    return replace(backbone, model=network)


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
