"""Frozen features: outputs of a network without its head, computed once for each image."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgetl.core.preprocess import PreprocessSpec
from edgetl.core.progress import Progress, silent
from edgetl.data.folder import Sample
from edgetl.data.loading import Prepare, batches
from edgetl.train.inputs.dataset import random_crop
from edgetl.train.networks.backbone import Backbone, feature_extractor

FeatureFunction: TypeAlias = Callable[[NDArray[np.float32]], NDArray[np.float32]]

# Converting costs seconds; below this many images torch is done sooner.
MIN_IMAGES_FOR_OPENVINO = 200


@dataclass(eq=False)
class FrozenFeatures:
    """Feature extraction of a frozen network, which is converted once, at the first images.

    Attributes:
        network: ``[batch, 3, H, W]`` → ``[batch, width]``, in evaluation mode.
        spec: preprocessing.
        device: ``cpu`` or ``cuda``. On a CPU, OpenVINO runs the network if it is installed and agrees with torch.
        batch_size: images at a time.
        images: expected number of images in all; a few are not worth a conversion.
    """

    network: nn.Module
    spec: PreprocessSpec
    _: KW_ONLY
    device: str = "cpu"
    batch_size: int = 32
    images: int = 0
    _compute: FeatureFunction | None = field(default=None, init=False)

    def __call__(self, samples: Sequence[Sample], *, prepare: Prepare | None = None, progress: Progress = silent) -> NDArray[np.float32]:
        """Features float32 ``[n, width]`` of ``samples``, in their order; ``prepare`` replaces the evaluation view."""
        rows: list[NDArray[np.float32]] = []
        done = 0
        for batch in batches(samples, self.spec, batch_size=self.batch_size, prepare=prepare):
            if self._compute is None:
                self._compute = choose_engine(self.network, batch, self.images or len(samples), self.device)
            rows.append(self._compute(batch))
            done += len(batch)
            progress("computing features", done, len(samples))
        return np.concatenate(rows)

    def views(self, samples: Sequence[Sample], count: int, *, seed: int, progress: Progress = silent) -> list[NDArray[np.float32]]:
        """Features ``[n, width]`` of each of ``count - 1`` random crops; with the evaluation's view they make ``count`` views."""
        return [self(samples, prepare=random_crop(seed, view), progress=progress) for view in range(1, count)]


def features_of(backbone: Backbone, batch_size: int = 32, *, device: str, images: int) -> FrozenFeatures:
    """Feature extraction by ``backbone`` without its head, for about ``images`` images."""
    network = feature_extractor(backbone.model, backbone.head_name)
    return FrozenFeatures(network, backbone.spec, device=device, batch_size=batch_size, images=images)


def choose_engine(network: nn.Module, batch: NDArray[np.float32], count: int, device: str) -> FeatureFunction:
    """OpenVINO or torch, whichever is expected to finish ``count`` images sooner."""
    if device == "cpu" and count >= MIN_IMAGES_FOR_OPENVINO and importlib.util.find_spec("openvino"):
        from edgetl.train.inputs.openvino_features import compile_with_openvino  # noqa: PLC0415 (OpenVINO is not part of the train extra)

        if (compiled := compile_with_openvino(network, batch)) is not None:
            return compiled
    network = network.to(device)

    def run(images: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            features: NDArray[np.float32] = network(torch.from_numpy(images).to(device)).float().cpu().numpy()
        return features

    return run
