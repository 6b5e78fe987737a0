"""Training processes: ranks and devices (DDP), stop requests by signals, and out-of-memory errors."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType, TracebackType
from typing import Any

import threadpoolctl
import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy

from edgetl.core.output.folders import Inputs, new_folder
from edgetl.core.progress import Progress, silent
from edgetl.errors import CancelledError, StoppedError, TrainingError, first_line


@dataclass(frozen=True)
class Execution:
    """Execution settings of a training.

    Attributes:
        device: ``cpu`` or ``cuda``.
        folder: Run folder. Temporary files are also written there.
        progress: Progress callback.
        seed: Random seed.
        batch_size: Number of images in a training step, and in a batch of feature extraction.
    """

    device: str
    folder: Path
    progress: Progress = silent
    seed: int = 0
    batch_size: int = 32


def world_size() -> int:
    """Return the number of processes, as set by ``torchrun``. It is available before the process group is initialized."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Return the rank of this process. Only rank 0 writes files and reports."""
    return int(os.environ.get("RANK", "0"))


def use_threads(threads: int | None) -> None:
    """Set the number of threads of torch, and of the linear algebra of NumPy, in this process. None changes nothing."""
    if threads is not None:
        torch.set_num_threads(threads)
        threadpoolctl.threadpool_limits(threads)


def launch(device: str) -> Fabric:
    """Launch Fabric on ``device`` (``cpu`` or ``cuda``) with the processes that ``torchrun`` started, and wait for all of them.

    The precision is bf16 on a GPU, and float32 on a CPU, where bf16 is not faster.
    """
    logging.getLogger("lightning_fabric").setLevel(logging.ERROR)  # hide messages about processes and precision
    local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    fabric = Fabric(
        accelerator=device,
        devices=local_processes,
        num_nodes=world_size() // local_processes,
        # The trainable parameters change between steps with the strategy progressive.
        strategy=DDPStrategy(find_unused_parameters=True) if world_size() > 1 else "auto",
        precision="bf16-mixed" if device == "cuda" else "32-true",
    )
    fabric.launch()
    return fabric


def gather(keys: Iterable[str]) -> list[str]:
    """Return the distinct ``keys`` of all processes, sorted."""
    found: list[list[str] | None] = [list(keys)]
    if world_size() > 1:
        found = [None] * world_size()
        dist.all_gather_object(found, list(keys))
    return sorted({key for part in found for key in part or ()})


def wait_for_processes() -> None:
    """Wait until every process of the training is here."""
    if world_size() > 1:
        dist.barrier()


@contextmanager
def results_folder(out: Path, *, inputs: Inputs, overwrite: bool) -> Iterator[Path]:
    """Create the run folder in rank 0, and a temporary folder in every other rank. All ranks leave the context together.

    Raises:
        TrainingError: another process ended with an error, so that this one cannot continue.
    """
    try:
        if rank() == 0:
            with new_folder(out, inputs=inputs, overwrite=overwrite) as folder:
                yield folder
        else:
            with TemporaryDirectory(prefix="edgetl-rank-") as discarded:
                yield Path(discarded)
        wait_for_processes()
    except RuntimeError as error:
        # gloo has no error class of its own.
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise TrainingError(
            f"process {rank()} of {world_size()} lost the connection to another process. If that process ended with an error, its message "
            f"has the reason."
        ) from error


@contextmanager
def explain_torch_errors(batch_size: int) -> Iterator[None]:
    """Convert torch's memory and compiler errors to errors with a remedy.

    Raises:
        TrainingError: If the GPU memory or the shared memory of loader processes is full, or if torch cannot compile the network.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TrainingError(f"the GPU memory is full with a batch size of {batch_size}. Lower --batch-size or --input-size.") from error
    except torch._dynamo.exc.TorchDynamoException as error:
        raise TrainingError(f"--compile: torch cannot compile this network: {first_line(error)} Remove --compile.") from error
    except RuntimeError as error:
        if "shared memory" not in str(error) and "DataLoader worker" not in str(error):
            raise
        raise TrainingError(
            f"a loader process ended: {str(error).strip().splitlines()[-1]} Loader processes need space in /dev/shm (in a container: raise "
            f"--shm-size). Or use --workers 0 to load images in the main process."
        ) from error


class StopRequest:
    """Signal handler: inside the ``with`` block, the first SIGTERM or SIGINT (Ctrl-C) sets ``requested``.

    A second SIGTERM ends the process at once. A second SIGINT calls the previous handler. Signals are handled in the main thread only. A
    SIGINT that was ignored before (``nohup``) is still ignored.
    """

    def __init__(self) -> None:
        self.requested = False
        self._number = signal.SIGTERM
        self._before: dict[signal.Signals, Any] = {}

    def error(self, text: str) -> StoppedError | CancelledError:
        """Return the error for the received signal: ``CancelledError`` for SIGINT, else ``StoppedError``."""
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
