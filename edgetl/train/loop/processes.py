"""Processes of a training: ranks and devices (DDP), stop requests by signals, and memory that runs out."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType, TracebackType
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric import Fabric
from lightning.fabric.strategies import DDPStrategy

from edgetl.core.output.folders import Inputs, new_folder
from edgetl.core.progress import Progress, silent
from edgetl.errors import CancelledError, StoppedError, TrainingError, first_line


@dataclass(frozen=True)
class Execution:
    """Execution of a training.

    Attributes:
        device: ``cpu`` or ``cuda``.
        folder: of the run; temporary files go below it.
        progress: called after each piece of work.
        seed: of everything random.
        batch_size: images of a step, and of a feature pass.
    """

    device: str
    folder: Path
    progress: Progress = silent
    seed: int = 0
    batch_size: int = 32


def world_size() -> int:
    """Number of processes, as ``torchrun`` states it before the first of them has met the others."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Number of this process; 0 alone writes and reports."""
    return int(os.environ.get("RANK", "0"))


def launch(device: str) -> Fabric:
    """Fabric for ``device`` (``cpu`` or ``cuda``) and the processes that ``torchrun`` started; waits until they have met.

    bf16 on a GPU only: it does not pay on a CPU.
    """
    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)  # its lines on processes and precision are not about the user's images
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    fabric = Fabric(
        accelerator=device,
        devices=here,
        num_nodes=world_size() // here,
        # Parameters that train may change from step to step (progressive).
        strategy=DDPStrategy(find_unused_parameters=True) if world_size() > 1 else "auto",
        precision="bf16-mixed" if device == "cuda" else "32-true",
    )
    fabric.launch()
    return fabric


@contextmanager
def results_folder(out: Path, *, inputs: Inputs, overwrite: bool) -> Iterator[Path]:
    """``new_folder`` for the first process, and a temporary folder for any other; all leave it together."""
    if rank() == 0:
        with new_folder(out, inputs=inputs, overwrite=overwrite) as folder:
            yield folder
    else:
        with TemporaryDirectory(prefix="edgetl-rank-") as discarded:
            yield Path(discarded)
    if world_size() > 1:
        dist.barrier()


@contextmanager
def explain_torch_errors(batch_size: int) -> Iterator[None]:
    """Explain torch's errors of memory and of its compiler.

    Raises:
        TrainingError: the GPU's memory is full, or the shared memory through which loader processes pass images; or torch cannot compile.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TrainingError(f"the GPU's memory is full with batches of {batch_size}. Lower --batch-size or --input-size.") from error
    except torch._dynamo.exc.TorchDynamoException as error:
        raise TrainingError(f"--compile: torch cannot compile this network: {first_line(error)} Remove --compile.") from error
    except RuntimeError as error:
        if "shared memory" not in str(error) and "DataLoader worker" not in str(error):
            raise
        raise TrainingError(
            f"a process that loads images ended: {str(error).strip().splitlines()[-1]} Loaders need room in /dev/shm (in a container: "
            f"--shm-size); use --workers 0 to load without them."
        ) from error


class StopRequest:
    """Signal handler: while entered, the first SIGTERM or SIGINT (Ctrl-C) sets ``requested``.

    A second SIGTERM ends the process at once; for a second SIGINT the former handler runs. It has an effect in the main thread only. An
    ignored SIGINT (``nohup``) stays ignored.
    """

    def __init__(self) -> None:
        self.requested = False
        self._number = signal.SIGTERM
        self._before: dict[signal.Signals, Any] = {}

    def error(self, text: str) -> StoppedError | CancelledError:
        """The error that ends a training after the signal that came."""
        return CancelledError(text) if self._number == signal.SIGINT else StoppedError(text)

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            found = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
            self._before = {number: handler for number, handler in found.items() if handler is not signal.SIG_IGN}
            for number in self._before:
                signal.signal(number, self._request)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGTERM:
            os._exit(StoppedError.exit_code)
        before = self._before[signal.Signals(number)]
        if self.requested and callable(before):
            before(number, frame)
        self.requested, self._number = True, signal.Signals(number)
