"""Frozen features with OpenVINO. On a CPU, feature extraction takes about a quarter of torch's time."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import openvino as ov
import torch
from numpy.typing import NDArray
from torch import nn

from edgetl.core.system.host import available_cores
from edgetl.errors import first_line
from edgetl.runtime.ov import core

_log = logging.getLogger(__name__)

# Largest difference between OpenVINO and torch, relative to the largest feature. Rounding of float32 causes 1e-6 to 1e-5.
MAX_RELATIVE_DIFFERENCE = 1e-3


def powers_of_two(number: int) -> list[int]:
    """Return the powers of two whose sum is ``number``, the largest first. OpenVINO keeps memory for each batch size that it has run."""
    return [1 << bit for bit in reversed(range(number.bit_length())) if number >> bit & 1]


def compile_with_openvino(network: nn.Module, batch: NDArray[np.float32]) -> Callable[[NDArray[np.float32]], NDArray[np.float32]] | None:
    """Convert ``network`` to OpenVINO, and compare the results with torch on ``batch`` ``[n, 3, H, W]``.

    Returns:
        A function from ``[n, 3, H, W]`` to features ``[n, width]``. None if OpenVINO cannot convert the network, or the results differ.
    """
    example = torch.from_numpy(batch[:2])
    try:
        model = ov.convert_model(network, example_input=example, input=[-1, *batch.shape[1:]])
        compiled = core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": available_cores()})
    except (RuntimeError, TypeError) as error:
        _log.warning("OpenVINO cannot convert the network. torch computes the features instead: %s", first_line(error))
        return None

    def run(images: NDArray[np.float32]) -> NDArray[np.float32]:
        sizes = [len(batch)] * (len(images) // len(batch)) + powers_of_two(len(images) % len(batch))
        return np.concatenate([np.array(compiled(part)[0]) for part in np.split(images, np.cumsum(sizes)[:-1])])

    with torch.inference_mode():
        expected = network(torch.from_numpy(batch)).numpy()
    difference = float(np.abs(run(batch) - expected).max() / max(np.abs(expected).max(), 1e-12))
    if difference > MAX_RELATIVE_DIFFERENCE:
        _log.warning(
            "OpenVINO's features differ from torch's by %.1e of the largest feature. torch computes the features instead.", difference
        )
        return None
    return run
