"""Several processes that train one network, as ``torchrun`` starts them: which of them this is, and what they tell each other."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.distributed as dist

from edgetl.core.output.folders import Inputs, new_folder


def world() -> int:
    """Processes in all."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Which of them this is; 0 alone writes and speaks."""
    return int(os.environ.get("RANK", "0"))


def on_this_machine() -> int:
    """Processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def join(device: str) -> None:
    """Meet the other processes, and take the GPU that is this one's."""
    if world() == 1:
        return
    if device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device == "cuda" else "gloo")


@contextmanager
def results_folder(out: Path, *, inputs: Inputs, overwrite: bool) -> Iterator[Path]:
    """``new_folder`` for the first process, and a folder that is thrown away for any other; all leave it together."""
    if rank() == 0:
        with new_folder(out, inputs=inputs, overwrite=overwrite) as folder:
            yield folder
    else:
        with TemporaryDirectory(prefix="edgetl-rank-") as thrown_away:
            yield Path(thrown_away)
    if world() > 1:
        dist.barrier()


def first_says(*values: float, device: torch.device) -> tuple[float, ...]:
    """The first process's values, so that all decide alike."""
    if world() == 1:
        return values
    told = torch.tensor(values, dtype=torch.float64 if device.type == "cpu" else torch.float32, device=device)
    dist.broadcast(told, 0)
    return tuple(told.tolist())


def any_says(value: bool, device: torch.device) -> bool:
    """Whether one of the processes says so."""
    if world() == 1:
        return value
    told = torch.tensor(int(value), device=device)
    dist.all_reduce(told, dist.ReduceOp.MAX)
    return bool(told)
