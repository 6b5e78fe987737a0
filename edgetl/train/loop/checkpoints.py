"""The state of a training on disk, from which it goes on after a kill.

One file a state: whole or not at all, flushed to the disk, with the hash of its bytes in its name; the last two are kept, so that one
damaged file costs a minute and not a training.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from edgetl.core.files.atomic import STAGING_MARK, storage_error, write_bytes
from edgetl.core.files.plain import read_plain
from edgetl.core.output.folders import remove_side_folder
from edgetl.core.output.recognition import CHECKPOINTS_SUFFIX
from edgetl.errors import ConfigError
from edgetl.train.loop.resume import FACTS, JOB, Job, differences, read_job, resume_command, saved_states

_log = logging.getLogger(__name__)

KEPT = 2


@dataclass(frozen=True)
class State:
    """A training after ``step`` steps: its tensors by name, and what else it must know, as JSON."""

    step: int
    tensors: dict[str, torch.Tensor]
    facts: dict[str, Any]


class Checkpoints:
    """Folder with the saved states of a training.

    Args:
        folder: beside the future run.
        job: of the training: options, images, starting weights.
    """

    def __init__(self, folder: Path, job: Job) -> None:
        self.folder = folder
        self.job = job

    def save(self, state: State) -> None:
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

    def newest(self) -> State | None:
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
                return State(step, safetensors.torch.load(data), facts)
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
