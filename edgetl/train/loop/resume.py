"""Resuming a stopped training (``--resume``): the job that its saved states describe, and what differs between two jobs. Needs no torch."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import safetensors
from pydantic import JsonValue

from edgetl.core.bundle import RUN_RECORD_NAME, is_run
from edgetl.core.config import StrictModel, load_json, parse_json
from edgetl.core.options import flat
from edgetl.core.output.ownership import CHECKPOINTS_SUFFIX, COMPARE_SUFFIX
from edgetl.errors import ConfigError, EdgetlError
from edgetl.train.config.options import TrainConfig

STATE_NAME = re.compile(r"step-(\d{8})-([0-9a-f]{16})\.safetensors")
FACTS = "facts"
JOB = "job"

PLAN = "plan: "
# Options that do not change the weights, and paths whose contents are compared by their hashes.
FREE = frozenset({"workers", "checkpoint_s", "license_policy", "license", "loggers", "device", "compile", "cache_gb", "keep"})
HASHED = frozenset({"backbone", "weights", "weights_dir", "labels"})


class Job(StrictModel):
    """Inputs of a training, kept in each of its saved states.

    Attributes:
        data: the folder of the images.
        options: those that were given, by their flat names; the others are defaults.
        resolved: further inputs that determine the weights: images, starting weights, plan, versions; by name, as text.
    """

    data: str
    options: dict[str, JsonValue]
    resolved: dict[str, str]

    @property
    def config(self) -> TrainConfig:
        """The configuration with these options."""
        return TrainConfig.from_options(**self.options)


def find_job(out: Path) -> Job | None:
    """Job of the stopped training of ``out``; none where nothing was saved.

    Raises:
        ConfigError: a finished run of a comparison is damaged.
    """
    for states in (out.with_name(f"{out.name}{CHECKPOINTS_SUFFIX}"), *_side_folders(out, CHECKPOINTS_SUFFIX)):
        for _, path in reversed(saved_states(states)):
            if (job := read_job(path)) is not None:
                return _of_call(job, states)
    finished = [folder for folder in _side_folders(out, "") if is_run(folder)]
    return _of_call(_job_of_run(finished[0]), finished[0]) if finished else None


def _job_of_run(run: Path) -> Job:
    try:
        record, splits = (load_json((run / name).read_bytes()) for name in (RUN_RECORD_NAME, "splits.json"))
        config = TrainConfig.model_validate(record["config"])
        return Job(
            data=splits["root"], options={name: value for name, value in config.given().items() if name in record["given"]}, resolved={}
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"{run} is damaged and cannot be resumed. Begin again with --overwrite.") from error


def read_job(state: Path) -> Job | None:
    """The job in a saved state; none in a damaged one, or one of an older version."""
    try:
        with safetensors.safe_open(state, "numpy") as file:
            facts = json.loads((file.metadata() or {}).get(FACTS, "{}"))
        job = parse_json(json.dumps(facts[JOB]).encode(), Job, ConfigError, name=str(state))
        TrainConfig.from_options(**job.options)  # an older version had other options
        return job
    except (OSError, safetensors.SafetensorError, ValueError, KeyError, TypeError, EdgetlError):
        return None


def saved_states(folder: Path) -> list[tuple[int, Path]]:
    """Steps and files of the states in ``folder``, the oldest first."""
    if not folder.is_dir():
        return []
    matches = [(match, path) for path in folder.iterdir() if (match := STATE_NAME.fullmatch(path.name))]
    return sorted((int(match[1]), path) for match, path in matches)


def differences(before: Job, now: Job) -> list[str]:
    """Differences of two jobs that change the weights, with both values; options have their names on the command line."""
    old, new = (flat(job.config) for job in (before, now))
    options = [
        f"--{name.replace('_', '-')} {_shown(old[name])}, now {_shown(new[name])}"
        for name in sorted(old.keys() - FREE - HASHED)
        if old[name] != new[name]
    ]
    return options + [
        f"{name} {before.resolved.get(name)}, now {now.resolved.get(name)}"
        for name in sorted(before.resolved.keys() | now.resolved.keys())
        # A different plan is reported only if no option explains it.
        if before.resolved.get(name) != now.resolved.get(name) and not (options and name.startswith(PLAN))
    ]


def describe_saved(out: Path) -> str | None:
    """Describe the saved state of a stopped training of ``out`` and the command that resumes it; none where nothing is saved."""
    folders = (out.with_name(f"{out.name}{CHECKPOINTS_SUFFIX}"), *_side_folders(out, CHECKPOINTS_SUFFIX))
    found = [f"the state after step {saved[-1][0]} is in {folder}" for folder in folders if (saved := saved_states(folder))]
    found += [f"{folder} is finished" for folder in _side_folders(out, "") if is_run(folder)]
    return f"Saved: {'; '.join(found)}. Go on with: {resume_command(out)}" if found else None


def resume_command(out: Path) -> str:
    """Command that resumes the training of ``out``, or the comparison that ``out`` belongs to."""
    if out.parent.name.endswith(COMPARE_SUFFIX):
        out = out.parent.with_name(out.parent.name.removesuffix(COMPARE_SUFFIX))
    return f"edgetl train --out {shlex.quote(str(out))} --resume"


def _of_call(job: Job, folder: Path) -> Job:
    """The job of the whole call, of which ``folder`` may belong to one of several runs."""
    compared = folder.parent.name.endswith(COMPARE_SUFFIX)
    return job.model_copy(update={"options": {**job.options, "strategy": "compare"}}) if compared else job


def _side_folders(out: Path, suffix: str) -> list[Path]:
    parent = out.with_name(f"{out.name}{COMPARE_SUFFIX}")
    return [path for path in sorted(parent.iterdir()) if path.is_dir() and path.name.endswith(suffix)] if parent.is_dir() else []


def _shown(value: Any) -> str:
    return "not given" if value is None else value if isinstance(value, str) else json.dumps(value)
