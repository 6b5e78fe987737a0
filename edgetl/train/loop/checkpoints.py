"""Checkpoints: saved states from which a stopped or killed training is resumed.

Each state is one file. It is written atomically, and its name contains the hash of its bytes. The last two states are kept: if one file is
damaged, the training resumes from the other.
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
    """State of a training after ``step`` steps.

    Attributes:
        step: Optimizer steps done.
        tensors: Tensors by name. Empty for a new training.
        facts: Other values, as JSON.
    """

    step: int = 0
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


class Checkpoints:
    """Folder with the saved states of a training.

    Args:
        folder: Folder beside the future run.
        job: Inputs of the training: options, images, starting weights.
        interval_s: Time between two saved states, s.
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
        """Write ``state``, and remove all but the last two states.

        Raises:
            StorageError: If the file cannot be written, for example because the disk is full. Earlier states are unchanged.
        """
        data = safetensors.torch.save(state.tensors, {FACTS: json.dumps({**state.facts, JOB: self.job.model_dump(mode="json")})})
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for stale in self.folder.glob(f"{STAGING_MARK}????????-step-*.safetensors"):  # from a process that was killed while saving
                stale.unlink(missing_ok=True)
            write_bytes(self.folder / f"step-{state.step:08d}-{hashlib.sha256(data).hexdigest()[:16]}.safetensors", data)
            for _, path in self._found()[KEPT:]:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise storage_error(self.folder, error) from error
        self._saved_s = time.monotonic()

    def newest(self) -> SavedState | None:
        """Read the newest undamaged state, and remove newer damaged ones. None if there is no state.

        Raises:
            ConfigError: If the state belongs to a training with other inputs.
        """
        for step, path in self._found():
            data = read_plain(path)
            if hashlib.sha256(data).hexdigest()[:16] == path.stem.rpartition("-")[2]:
                facts = _read_facts(path)
                facts.pop(JOB, None)
                job = read_job(path)
                found = ["the version of edgetl"] if job is None else differences(job, self.job)
                if found:
                    raise ConfigError(
                        f"{self.folder} has the state of a different training: {'; '.join(found)}. Resume it with its own options: "
                        f"{resume_command(self.out)}. Or start again with --overwrite."
                    )
                return SavedState(step, safetensors.torch.load(data), facts)
            _log.warning("%s is damaged. The state before it is used.", path)
            path.unlink(missing_ok=True)
        return None

    @property
    def out(self) -> Path:
        """Folder of the future run."""
        return self.folder.with_name(self.folder.name.removesuffix(CHECKPOINTS_SUFFIX))

    def remove(self) -> None:
        """Remove the saved states. Files that edgetl did not write are kept."""
        remove_side_folder(self.folder)

    def _found(self) -> list[tuple[int, Path]]:
        """Return steps and files, the newest first."""
        return saved_states(self.folder)[::-1]


def _read_facts(path: Path) -> dict[str, Any]:
    with safetensors.safe_open(path, "pt") as file:
        facts: dict[str, Any] = json.loads((file.metadata() or {}).get(FACTS, "{}"))
    return facts


def capture(state: LoopState, network: nn.Module, ema: ModelEmaV3 | None, optimizer: torch.optim.Optimizer) -> SavedState:
    """Copy the state that a resumed training needs: weights, EMA, best weights, optimizer, metrics."""
    tensors = {f"model.{key}": value for key, value in network.state_dict().items()}
    if ema is not None:
        tensors |= {f"ema.{key}": value for key, value in ema.module.state_dict().items()}
    tensors |= {f"best.{key}": value for key, value in state.best.items()} | optimizer_tensors(optimizer)
    facts = {key: value for key, value in vars(state).items() if key != "best"}
    return SavedState(state.step, {key: value.detach().cpu().clone().contiguous() for key, value in tensors.items()}, facts)


def restore(saved: SavedState, network: nn.Module, ema: ModelEmaV3 | None, optimizer: torch.optim.Optimizer) -> LoopState:
    """Load ``saved`` into the network, its EMA and the optimizer. Without tensors (a new training), they are unchanged."""
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
    """Return moments and step counts of ``optimizer``, named by the index of the parameter: ``optimizer.INDEX.NAME``."""
    return {
        f"optimizer.{index}.{name}": value
        for index, parameter in enumerate(_parameters(optimizer))
        for name, value in optimizer.state[parameter].items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, torch.Tensor]) -> None:
    """Load the tensors of ``optimizer_tensors`` into a resumed AdamW, in the memory layout of its parameters."""
    for index, parameter in enumerate(_parameters(optimizer)):
        for name in _MOMENTS:
            if (value := saved.get(f"optimizer.{index}.{name}")) is not None:
                moment = torch.empty_like(parameter, requires_grad=False)
                optimizer.state[parameter][name] = value if name == "step" else moment.copy_(value)


def _parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
