"""Checkpoints: saved states of a training, from which it is resumed after a kill.

One file a state, written atomically, with the hash of its bytes in its name. The last two are kept, so that one damaged file costs a minute
and not a training.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from timm.utils import ModelEmaV3
from torch import nn

from edgetl.core.files.atomic import STAGING_MARK, storage_error, write_bytes
from edgetl.core.files.regular import read_plain
from edgetl.core.output.folders import remove_side_folder
from edgetl.core.output.ownership import CHECKPOINTS_SUFFIX
from edgetl.errors import ConfigError
from edgetl.train.loop.resume import FACTS, JOB, Job, differences, read_job, resume_command, saved_states
from edgetl.train.loop.validation import LoopState

_log = logging.getLogger(__name__)

KEPT = 2
CHECKPOINT_S = 60.0
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # AdamW's state of a parameter


@dataclass(frozen=True)
class SavedState:
    """State of a training after ``step`` steps: its tensors by name, and the rest as JSON. Without tensors, a new training."""

    step: int = 0
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


class Checkpoints:
    """Folder with the saved states of a training.

    Args:
        folder: beside the future run.
        job: of the training: options, images, starting weights.
        interval_s: seconds after which a new state is due.
    """

    def __init__(self, folder: Path, job: Job, *, interval_s: float = CHECKPOINT_S) -> None:
        self.folder = folder
        self.job = job
        self.interval_s = interval_s
        self._saved_s = time.monotonic()

    @property
    def due(self) -> bool:
        """True if the last state is older than the interval."""
        return time.monotonic() - self._saved_s > self.interval_s

    def save(self, state: SavedState) -> None:
        """Write ``state`` and remove all but the last two.

        Raises:
            StorageError: the disk is full; what was there before is still there.
        """
        data = safetensors.torch.save(state.tensors, {FACTS: json.dumps({**state.facts, JOB: self.job.model_dump(mode="json")})})
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for left in self.folder.glob(f"{STAGING_MARK}????????-step-*.safetensors"):  # of a process that was killed while it saved
                left.unlink(missing_ok=True)
            write_bytes(self.folder / f"step-{state.step:08d}-{hashlib.sha256(data).hexdigest()[:16]}.safetensors", data)
            for _, path in self._found()[KEPT:]:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise storage_error(self.folder, error) from error
        self._saved_s = time.monotonic()

    def newest(self) -> SavedState | None:
        """The newest state whose bytes are those that were written; none where there is none.

        Raises:
            ConfigError: it belongs to another training.
        """
        for step, path in self._found():
            data = read_plain(path)
            if hashlib.sha256(data).hexdigest()[:16] == path.stem.rpartition("-")[2]:
                facts = _read_facts(path)
                facts.pop(JOB, None)
                job = read_job(path)
                apart = ["the version of edgetl"] if job is None else differences(job, self.job)
                if apart:
                    raise ConfigError(
                        f"{self.folder} holds another training: {'; '.join(apart)}. Go on with its own options, which need not be "
                        f"repeated: {resume_command(self.out)}. Or begin again with --overwrite."
                    )
                return SavedState(step, safetensors.torch.load(data), facts)
            _log.warning("%s is damaged; the state before it is used", path)
            path.unlink(missing_ok=True)
        return None

    @property
    def out(self) -> Path:
        """Folder of the future run."""
        return self.folder.with_name(self.folder.name.removesuffix(CHECKPOINTS_SUFFIX))

    def remove(self) -> None:
        """Remove the saved states. Files that edgetl did not write stay."""
        remove_side_folder(self.folder)

    def _found(self) -> list[tuple[int, Path]]:
        """Steps and files, the newest first."""
        return saved_states(self.folder)[::-1]


def _read_facts(path: Path) -> dict[str, Any]:
    with safetensors.safe_open(path, "pt") as file:
        facts: dict[str, Any] = json.loads((file.metadata() or {}).get(FACTS, "{}"))
    return facts


def capture(state: LoopState, network: nn.Module, ema: ModelEmaV3 | None, optimizer: torch.optim.Optimizer) -> SavedState:
    """Copy everything that a resumed training needs: weights, moving average, best weights, optimizer, figures."""
    tensors = {f"model.{key}": value for key, value in network.state_dict().items()}
    if ema is not None:
        tensors |= {f"ema.{key}": value for key, value in ema.module.state_dict().items()}
    tensors |= {f"best.{key}": value for key, value in state.best.items()} | optimizer_tensors(optimizer)
    facts = {key: value for key, value in vars(state).items() if key != "best"}
    return SavedState(state.step, {key: value.detach().cpu().clone().contiguous() for key, value in tensors.items()}, facts)


def restore(saved: SavedState, network: nn.Module, ema: ModelEmaV3 | None, optimizer: torch.optim.Optimizer) -> LoopState:
    """Load ``saved`` into the network, its moving average and the optimizer; a new training leaves them as they are."""
    parts: dict[str, dict[str, torch.Tensor]] = {"model": {}, "ema": {}, "best": {}, "optimizer": {}}
    for key, value in saved.tensors.items():
        kind, _, name = key.partition(".")
        parts[kind][key if kind == "optimizer" else name] = value
    if saved.tensors:
        network.load_state_dict(parts["model"])
        if ema is not None:
            ema.module.load_state_dict(parts["ema"])
        restore_optimizer(optimizer, parts["optimizer"])
    return LoopState(best=parts["best"], **saved.facts)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Moments and step counts of ``optimizer``, named by the parameters' places: ``optimizer.PLACE.NAME``."""
    return {
        f"optimizer.{index}.{name}": value
        for index, parameter in enumerate(_parameters(optimizer))
        for name, value in optimizer.state[parameter].items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, torch.Tensor]) -> None:
    """Give a resumed AdamW the tensors of ``optimizer_tensors``, in the memory layout of its parameters."""
    for index, parameter in enumerate(_parameters(optimizer)):
        for name in _MOMENTS:
            if (value := saved.get(f"optimizer.{index}.{name}")) is not None:
                moment = torch.empty_like(parameter, requires_grad=False)
                optimizer.state[parameter][name] = value if name == "step" else moment.copy_(value)


def _parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
