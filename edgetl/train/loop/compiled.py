"""``--compile``: the network's forward and backward pass through torch's compiler, where there is one."""

from __future__ import annotations

import logging

import torch
from torch import nn

_log = logging.getLogger(__name__)


class CompiledForward:
    """Calls ``model`` through ``torch.compile``, or plainly from the moment on that the compiler fails.

    The network itself stays as it is: weights keep their names, and validation runs plainly. The first call takes as long as the compiler
    does; stages that open later compile again.
    """

    def __init__(self, model: nn.Module) -> None:
        self._plain = model
        self._compiled = torch.compile(lambda images: model(images))
        self.failed = False

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Logits ``[batch, classes]`` of what ``model`` takes."""
        if not self.failed:
            try:
                logits: torch.Tensor = self._compiled(images)
                return logits
            except torch._dynamo.exc.TorchDynamoException as error:
                self.failed = True
                lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
                _log.warning("--compile: torch's compiler cannot be used here (%s); the training goes on without it", lines[0].strip())
        found: torch.Tensor = self._plain(images)
        return found
