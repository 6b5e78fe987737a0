"""Training loop of a pretraining, and its checkpoint."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from edgetl.core.files.atomic import write_bytes
from edgetl.core.progress import Progress
from edgetl.errors import ConfigError, TrainingError, first_line
from edgetl.train.inputs.samplers import draw_seed
from edgetl.train.loop.checkpoints import optimizer_tensors, restore_optimizer
from edgetl.train.loop.optimizer import warm_cosine
from edgetl.train.loop.processes import launch

CHECKPOINT_NAME = "checkpoint.safetensors"
CHECKPOINT_STEPS = 250
CLIP_NORM = 5.0
WARM_UP_FRACTION = 0.05


@dataclass(frozen=True)
class Descent:
    """Training by gradient descent.

    Attributes:
        module: maps the tensors of a batch to the loss.
        optimizer: its learning rate is the highest one. It rises linearly over the first 5 % of the steps, then follows a cosine to 0.
        steps: number of steps.
        seed: seed of random layers.
        lr: name and value of the learning rate in an error message.
        after_step: called with the number of each step, after it.
        name: name of the stage for the progress.
    """

    module: nn.Module
    optimizer: torch.optim.Optimizer
    steps: int
    seed: int
    lr: str
    after_step: Callable[[int], None] | None = None
    name: str = "pretraining"


def descend(descent: Descent, batches: Iterable[Sequence[torch.Tensor]], checkpoint: Checkpoint, device: str, progress: Progress) -> None:
    """Train from the step of the checkpoint.

    Raises:
        TrainingError: the loss became infinite or not a number.
    """
    fabric, first, optimizer = launch(device), checkpoint.first, descent.optimizer
    schedule = LambdaLR(optimizer, lambda step: warm_cosine(first + step, descent.steps, WARM_UP_FRACTION))
    model, optimizer = fabric.setup(descent.module, optimizer)
    restore_optimizer(optimizer, checkpoint.moments)
    for step, batch in enumerate(batches, first + 1):
        torch.manual_seed(draw_seed(descent.seed, step - 1))  # for networks with stochastic depth
        loss = model(*fabric.to_device(tuple(batch)))
        fabric.backward(loss)
        fabric.clip_gradients(model, optimizer, max_norm=CLIP_NORM, error_if_nonfinite=False)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if descent.after_step is not None:
            descent.after_step(step)
        if not math.isfinite(float(loss.detach())):
            raise TrainingError(f"the loss became {float(loss.detach())} at step {step}. Lower {descent.lr}.")
        if step % checkpoint.every == 0 and step < descent.steps:
            checkpoint.save(optimizer, step)
        progress(descent.name, step, descent.steps)


class Checkpoint:
    """Checkpoint in safetensors format: networks, EMA, and moments of the optimizer.

    Args:
        path: file of the checkpoint.
        module: networks of the training. Its buffers contain all other state.
        every: steps between two checkpoints.
        identity: hash of all inputs of the training. A checkpoint with another identity is not resumed.
        inputs: words for these inputs in an error message.
    """

    def __init__(self, path: Path, module: nn.Module, every: int, *, identity: str, inputs: str) -> None:
        self.path = path
        self.identity = identity
        self.inputs = inputs
        self.module = module
        self.every = every
        self.first = 0
        self.seconds_before = 0.0
        self.moments: dict[str, torch.Tensor] = {}
        self._started = time.monotonic()

    def restore(self) -> int:
        """Load the checkpoint, if it exists, and return the step to continue with.

        Raises:
            ConfigError: the checkpoint cannot be read, or belongs to another recipe.
        """
        if not self.path.is_file():
            return 0
        try:
            with safetensors.safe_open(self.path, "pt") as file:
                facts = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (safe_open is no dict)
        except (OSError, safetensors.SafetensorError) as error:
            raise ConfigError(f"{self.path} cannot be read: {first_line(error)} Delete it to start again.") from error
        if facts.get("identity") != self.identity:
            raise ConfigError(f"{self.path} belongs to another {self.inputs}, or these changed. Choose another --out, or delete the file.")
        self.moments = {key: value for key, value in tensors.items() if key.startswith("optimizer.")}
        self.module.load_state_dict({key: value for key, value in tensors.items() if key not in self.moments})
        self.first, self.seconds_before = int(facts["step"]), float(facts["seconds"])
        return self.first

    def save(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Write the state after step ``step``."""
        known = {**self.module.state_dict(), **optimizer_tensors(optimizer)}
        tensors = {key: value.detach().cpu().contiguous() for key, value in known.items()}
        seconds = self.seconds_before + time.monotonic() - self._started
        facts = {"identity": self.identity, "step": str(step), "seconds": f"{seconds:.1f}"}
        write_bytes(self.path, safetensors.torch.save(tensors, facts))
