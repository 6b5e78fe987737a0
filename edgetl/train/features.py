"""The frozen trunk's features of many images, computed once."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgetl.core.preprocess import PreprocessSpec
from edgetl.core.progress import Progress, silent
from edgetl.data.folder import Sample
from edgetl.data.loading import batches

FeatureFunction: TypeAlias = Callable[[NDArray[np.float32]], NDArray[np.float32]]

# Converting costs seconds; below this many images torch is done sooner.
MIN_IMAGES_FOR_OPENVINO = 200


def extract_features(
    trunk: nn.Module,
    samples: Sequence[Sample],
    spec: PreprocessSpec,
    *,
    device: str = "cpu",
    batch_size: int = 32,
    progress: Progress = silent,
) -> NDArray[np.float32]:
    """Run ``trunk`` once over ``samples``.

    On a CPU the pass goes through OpenVINO where it is installed and agrees with torch on the first batch.

    Args:
        trunk: ``[batch, 3, H, W]`` → ``[batch, width]``, in evaluation mode.
        samples: images.
        spec: preprocessing.
        device: ``cpu`` or ``cuda``.
        batch_size: images at a time.
        progress: told after each batch.

    Returns:
        float32 ``[n, width]``, in the order of ``samples``.
    """
    stream = batches(samples, spec, batch_size=batch_size)
    first = next(stream)
    compute = choose_engine(trunk, first, len(samples), device)
    rest = _counted(stream, len(first), len(samples), progress)
    return np.concatenate([compute(first), *(compute(batch) for batch in rest)])


def choose_engine(trunk: nn.Module, batch: NDArray[np.float32], count: int, device: str) -> FeatureFunction:
    """OpenVINO or torch, whichever is expected to finish ``count`` images sooner."""
    if device == "cpu" and count >= MIN_IMAGES_FOR_OPENVINO and importlib.util.find_spec("openvino"):
        from edgetl.train.trunk_ov import compile_trunk  # noqa: PLC0415 (OpenVINO is not part of the train extra)

        if (compiled := compile_trunk(trunk, batch)) is not None:
            return compiled
    trunk = trunk.to(device)

    def run(images: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            features: NDArray[np.float32] = trunk(torch.from_numpy(images).to(device)).float().cpu().numpy()
        return features

    return run


def _counted(stream: Iterator[NDArray[np.float32]], done: int, total: int, progress: Progress) -> Iterator[NDArray[np.float32]]:
    progress("computing features", done, total)
    for batch in stream:
        done += len(batch)
        yield batch
        progress("computing features", done, total)
