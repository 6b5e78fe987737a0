"""Frozen features: outputs of a backbone without its head, computed once per image."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
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

# The conversion to OpenVINO takes seconds. With fewer images, torch finishes earlier.
MIN_IMAGES_FOR_OPENVINO = 200


@dataclass(eq=False)
class FrozenFeatures:
    """Feature extraction by a frozen network. The network is converted once, with the first batch.

    Attributes:
        network: ``[batch, 3, H, W]`` → ``[batch, width]``, in evaluation mode.
        spec: Preprocessing.
        device: ``cpu`` or ``cuda``. On a CPU, OpenVINO runs the network if it is installed and its results agree with torch.
        batch_size: Batch size.
        images: Expected total number of images. For a small number, the network is not converted. 0: the number of the first call.
    """

    network: nn.Module
    spec: PreprocessSpec
    _: KW_ONLY
    device: str = "cpu"
    batch_size: int = 32
    images: int = 0
    _compute: FeatureFunction | None = field(default=None, init=False)

    def __call__(self, samples: Sequence[Sample], *, prepare: Prepare | None = None, progress: Progress = silent) -> NDArray[np.float32]:
        """Compute the features of ``samples``, float32 ``[n, width]``.

        Args:
            samples: Images.
            prepare: Function that makes the input of an image. None: evaluation preprocessing.
            progress: Callback, called after each batch.
        """
        rows, done = np.empty((0, 0), np.float32), 0
        for found in self.blocks(samples, prepare=prepare, progress=progress):
            if not done:
                rows = np.empty((len(samples), found.shape[1]), np.float32)
            rows[done : done + len(found)] = found
            done += len(found)
        return rows

    def blocks(
        self, samples: Sequence[Sample], *, prepare: Prepare | None = None, progress: Progress = silent
    ) -> Iterator[NDArray[np.float32]]:
        """Yield the features of each batch of ``samples``, float32 ``[batch, width]``, without those of the other batches in memory."""
        done = 0
        for batch in batches(samples, self.spec, batch_size=self.batch_size, prepare=prepare):
            yield self.compute(batch, len(samples))
            done += len(batch)
            progress("computing features", done, len(samples))

    def compute(self, batch: NDArray[np.float32], images: int = 0) -> NDArray[np.float32]:
        """Compute the features of a batch ``[n, 3, H, W]``, float32 ``[n, width]``. ``images`` is the number of images if none is set."""
        if self._compute is None:
            self._compute = choose_engine(self.network, batch, self.images or images, self.device)
        return self._compute(batch)

    def views(self, samples: Sequence[Sample], count: int, *, seed: int, progress: Progress = silent) -> list[NDArray[np.float32]]:
        """Compute the features ``[n, width]`` of ``count - 1`` random crops. With the evaluation view there are ``count`` views."""
        return [self(samples, prepare=random_crop(seed, view), progress=progress) for view in range(1, count)]


def features_of(backbone: Backbone, batch_size: int = 32, *, device: str, images: int) -> FrozenFeatures:
    """Make the feature extraction of ``backbone`` for about ``images`` images."""
    network = feature_extractor(backbone.model, backbone.head_name)
    return FrozenFeatures(network, backbone.spec, device=device, batch_size=batch_size, images=images)


def choose_engine(network: nn.Module, batch: NDArray[np.float32], count: int, device: str) -> FeatureFunction:
    """Return a function that runs ``network`` with OpenVINO or torch, whichever is probably faster for ``count`` images.

    Args:
        network: ``[batch, 3, H, W]`` → any output.
        batch: float32 ``[n, 3, H, W]``, example images.
        count: Expected number of images.
        device: ``cpu`` or ``cuda``.
    """
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
