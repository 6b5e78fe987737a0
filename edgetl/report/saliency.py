"""Saliency maps by occlusion: the decrease of the predicted output when a part of the image is covered."""

from __future__ import annotations

import numpy as np
import torch
from captum.attr import Occlusion
from numpy.typing import NDArray
from torch import nn

from edgetl.core.progress import Progress, silent

# The window covers a quarter of each side and moves by half of its own side: 49 positions.
WINDOWS_PER_SIDE = 4
BATCH_SIZE = 16


def occlusion_maps(network: nn.Module, images: NDArray[np.float32], *, progress: Progress = silent) -> NDArray[np.float32]:
    """Compute a saliency map of each image for the largest output of the network (the predicted class).

    Method: Zeiler and Fergus 2014 (arXiv:1311.2901), by captum. A gray window (the mean color of the pretraining images) covers each part
    of the image in turn. The value of a pixel is the mean decrease of the output over the windows that cover it. The method needs no
    gradients, so it works for every architecture and head.

    Args:
        network: network in evaluation mode, ``[batch, 3, H, W]`` → ``[batch, outputs]``.
        images: normalized float32 ``[n, 3, H, W]``.
        progress: called for each image.

    Returns:
        float32 ``[n, H, W]``; positive where the image supports the prediction.
    """
    height, width = images.shape[2:]
    window = 3, max(1, height // WINDOWS_PER_SIDE), max(1, width // WINDOWS_PER_SIDE)
    stride = 3, max(1, window[1] // 2), max(1, window[2] // 2)
    occlusion = Occlusion(network)
    maps: list[NDArray[np.float32]] = []
    with torch.inference_mode():
        for done, image in enumerate(images, start=1):
            batch = torch.from_numpy(image[None])
            target = int(network(batch)[0].argmax())
            found = occlusion.attribute(batch, window, strides=stride, target=target, perturbations_per_eval=BATCH_SIZE)
            maps.append(found[0].mean(dim=0).numpy().astype(np.float32))
            progress("computing saliency maps", done, len(images))
    return np.stack(maps) if maps else np.empty((0, height, width), np.float32)
