"""What every training by gradient steps shares: Lightning's loop with its choices made, the schedule, and a resumable optimizer."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn

from edgetl.errors import TrainingError
from edgetl.train.loop.ranks import on_this_machine, world

_MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # what AdamW keeps of a parameter


@contextmanager
def explained(batch_size: int) -> Iterator[None]:
    """Memory that runs out inside torch, as a sentence.

    Raises:
        TrainingError: of the GPU, or the shared memory that loader processes hand their pictures over in.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TrainingError(f"the GPU's memory is full with batches of {batch_size}. Lower --batch-size or --input-size.") from error
    except RuntimeError as error:
        if "shared memory" not in str(error) and "DataLoader worker" not in str(error):
            raise
        raise TrainingError(
            f"a process that loads images ended: {str(error).strip().splitlines()[-1]} Loaders need room in /dev/shm (in a container: "
            f"--shm-size); use --workers 0 to load without them."
        ) from error


def fit(module: L.LightningModule, batches: Iterable[Any], callbacks: Sequence[Callback], *, device: str, clip_norm: float) -> None:
    """Run ``module`` once over ``batches``: bf16 on a GPU, gradients clipped at ``clip_norm``, nothing logged or saved but by callbacks."""
    # Lightning sets its own level and handler when it is imported; what it says there is not about the user's images.
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    trainer = L.Trainer(
        accelerator="gpu" if device == "cuda" else "cpu",
        devices=on_this_machine(),
        num_nodes=world() // on_this_machine(),
        # Which parameters learn may change from step to step (progressive).
        strategy="ddp_find_unused_parameters_true" if world() > 1 else "auto",
        use_distributed_sampler=False,  # a step's batch is dealt out by edgetl.train.inputs.dataset
        precision="bf16-mixed" if device == "cuda" else "32-true",  # half precision pays on a GPU only
        max_epochs=1,
        gradient_clip_val=clip_norm,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[*callbacks],
    )
    with warnings.catch_warnings():
        # Lightning's hints about loader processes and logging intervals concern choices that were made on purpose.
        warnings.filterwarnings("ignore", module=r"lightning\..*")
        warnings.filterwarnings("ignore", message=r".*(does not have many workers|LeafSpec|pin_memory).*")
        trainer.fit(module, batches)


def warm_cosine(step: int, steps: int, warm_share: float) -> float:
    """Factor of the learning rate: linear over the first ``warm_share`` of the steps, times half a cosine to 0 over all of them."""
    return min(1.0, (step + 1) / max(1.0, warm_share * steps)) * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))


def scheduled(optimizer: torch.optim.Optimizer, steps: int, warm_share: float, *, first: int) -> dict[str, Any]:
    """``optimizer`` with ``warm_cosine`` by step, from step ``first`` on, as Lightning wants them."""
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warm_cosine(first + step, steps, warm_share))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def moments(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """What ``optimizer`` knows of its parameters, by their place among them."""
    return {
        f"optimizer.{index}.{name}": value
        for index, parameter in enumerate(_parameters(optimizer))
        for name, value in optimizer.state[parameter].items()
    }


def give_moments(optimizer: torch.optim.Optimizer, saved: dict[str, torch.Tensor]) -> None:
    """Give a resumed AdamW what ``moments`` took from it."""
    for index, parameter in enumerate(_parameters(optimizer)):
        for name in _MOMENTS:
            if (value := saved.get(f"optimizer.{index}.{name}")) is not None:
                optimizer.state[parameter][name] = value if name == "step" else _laid_out_as(parameter, value)


def _laid_out_as(parameter: nn.Parameter, value: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(parameter, requires_grad=False).copy_(value)


def _parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
