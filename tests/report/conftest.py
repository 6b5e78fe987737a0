"""Content of the digits run for the report, read once."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from torch import nn

from edgetl.core.progress import Progress, silent
from edgetl.report.config import ReportConfig
from edgetl.report.models import RunFacts
from edgetl.report.run_facts import read_run
from edgetl.train.artifacts.run import Run


def middle(network: nn.Module, images: NDArray[np.float32], *, progress: Progress = silent) -> NDArray[np.float32]:
    """Return saliency maps with a spot in the middle."""
    maps = np.zeros((len(images), *images.shape[2:]), np.float32)
    maps[:, maps.shape[1] // 2, maps.shape[2] // 2] = 1.0
    return maps


@pytest.fixture(scope="session")
def run_facts(run: Run) -> RunFacts:
    """Content of the digits run, with two wrong predictions."""
    return read_run(run.path, ReportConfig(images=2), middle)
