"""Resume (``--resume``): read the job of a stopped training from its saved states, and compare two jobs. Needs no torch."""

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

# Inputs that depend on options: all names that start with PLAN, and the preprocessing.
PLAN, PREPROCESSING = "plan: ", "preprocessing"
# FREE: options that do not change the weights. HASHED: options whose files are compared by their hashes.
FREE = frozenset({"workers", "checkpoint_s", "license_policy", "license", "loggers", "device", "compile", "cache_gb", "keep"})
HASHED = frozenset({"backbone", "weights", "weights_dir", "labels"})


class Job(StrictModel):
    """Inputs of a training. They are stored in each saved state.

    Attributes:
        data: Folder of the images.
        options: Options that were given, by their flat names. The others have their defaults.
        resolved: Other inputs that determine the weights, by name, as text: images, starting weights, plan, versions.
    """

    data: str
    options: dict[str, JsonValue]
    resolved: dict[str, str]

    @property
    def config(self) -> TrainConfig:
        """Configuration with these options."""
        return TrainConfig.from_options(**self.options)


def find_job(out: Path) -> Job | None:
    """Find the job of the stopped training of ``out``, or of its complete run. None if nothing was saved.

    Raises:
        ConfigError: If a finished run is damaged.
    """
    for states in (out.with_name(f"{out.name}{CHECKPOINTS_SUFFIX}"), *_side_folders(out, CHECKPOINTS_SUFFIX)):
        for _, path in reversed(saved_states(states)):
            if (job := read_job(path)) is not None:
                return _of_call(job, states)
    finished = [folder for folder in _side_folders(out, "") if is_run(folder)]
    if finished:
        return _of_call(_job_of_run(finished[0]), finished[0])
    return _job_of_run(out) if is_run(out) else None


def check_complete(run: Path, data: Path, options: dict[str, JsonValue]) -> bool:
    """Check that a complete run is that of a training with these images and options, so that nothing is left to resume.

    Returns:
        True if the saved states beside it, if any, are of the same training. They are then of no use.

    Raises:
        ConfigError: the images or the options differ, or the run is damaged.
    """
    done = _job_of_run(run)
    wanted = Job(data=str(data.absolute()), options=options, resolved={})
    if found := _differences_of_calls(done, wanted):
        raise ConfigError(
            f"{run} is the complete run of a different training: {'; '.join(found)}. Choose another --out, or replace the run with "
            f"--overwrite."
        )
    jobs = [read_job(path) for _, path in saved_states(run.with_name(f"{run.name}{CHECKPOINTS_SUFFIX}"))]
    return all(job is not None and not _differences_of_calls(done, job) for job in jobs)


def _differences_of_calls(before: Job, now: Job) -> list[str]:
    """List the differences of the images and options of two jobs. Files are compared by their paths."""
    old, new = (flat(job.config) for job in (before, now))
    found = differences(*(job.model_copy(update={"resolved": {}}) for job in (before, now)))
    found += [
        f"--{name.replace('_', '-')} {_format(old[name])}, now {_format(new[name])}" for name in sorted(HASHED) if old[name] != new[name]
    ]
    same = before.data == now.data or Path(before.data).resolve() == Path(now.data).resolve()
    return found if same else [*found, f"images {before.data}, now {now.data}"]


def _job_of_run(run: Path) -> Job:
    try:
        record, splits = (load_json((run / name).read_bytes()) for name in (RUN_RECORD_NAME, "splits.json"))
        config = TrainConfig.model_validate(record["config"])
        data = splits["shards"]["pattern"] if splits.get("shards") else splits["root"]
        return Job(data=data, options={name: value for name, value in config.given().items() if name in record["given"]}, resolved={})
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"{run} is damaged and cannot be resumed. Start again with --overwrite.") from error


def read_job(state: Path) -> Job | None:
    """Read the job of a saved state. None if the state is damaged or has the format of an older version."""
    try:
        with safetensors.safe_open(state, "numpy") as file:
            facts = json.loads((file.metadata() or {}).get(FACTS, "{}"))
        job = parse_json(json.dumps(facts[JOB]).encode(), Job, ConfigError, name=str(state))
        TrainConfig.from_options(**job.options)  # fails for options of an older version
        return job
    except (OSError, safetensors.SafetensorError, ValueError, KeyError, TypeError, EdgetlError):
        return None


def saved_states(folder: Path) -> list[tuple[int, Path]]:
    """Return the steps and files of the saved states in ``folder``, the oldest first."""
    if not folder.is_dir():
        return []
    matches = [(match, path) for path in folder.iterdir() if (match := STATE_NAME.fullmatch(path.name))]
    return sorted((int(match[1]), path) for match, path in matches)


def differences(before: Job, now: Job) -> list[str]:
    """List the differences of two jobs that change the weights, with both values. Options have their command-line names."""
    old, new = (flat(job.config) for job in (before, now))
    options = [
        f"--{name.replace('_', '-')} {_format(old[name])}, now {_format(new[name])}"
        for name in sorted(old.keys() - FREE - HASHED)
        if old[name] != new[name]
    ]
    return options + [
        f"{name} {before.resolved.get(name)}, now {now.resolved.get(name)}"
        for name in sorted(before.resolved.keys() | now.resolved.keys())
        # A different plan or preprocessing is reported only if no option differs.
        if before.resolved.get(name) != now.resolved.get(name) and not (options and name.startswith((PLAN, PREPROCESSING)))
    ]


def describe_saved(out: Path) -> str | None:
    """Describe the saved state of a stopped training of ``out``, and the command that resumes it. None if nothing is saved."""
    folders = (out.with_name(f"{out.name}{CHECKPOINTS_SUFFIX}"), *_side_folders(out, CHECKPOINTS_SUFFIX))
    found = [f"the state after step {saved[-1][0]} in {folder}" for folder in folders if (saved := saved_states(folder))]
    found += [f"the finished run {folder}" for folder in _side_folders(out, "") if is_run(folder)]
    return f"Saved: {', '.join(found)}. Resume with: {resume_command(out)}" if found else None


def resume_command(out: Path) -> str:
    """Return the command that resumes the training of ``out``, or the comparison that ``out`` belongs to."""
    if out.parent.name.endswith(COMPARE_SUFFIX):
        out = out.parent.with_name(out.parent.name.removesuffix(COMPARE_SUFFIX))
    return f"edgetl train --out {shlex.quote(str(out))} --resume"


def _of_call(job: Job, folder: Path) -> Job:
    """Return the job of the command that started the run of ``folder``. For a run of a comparison, this is the whole comparison."""
    compared = folder.parent.name.endswith(COMPARE_SUFFIX)
    return job.model_copy(update={"options": {**job.options, "strategy": "compare"}}) if compared else job


def _side_folders(out: Path, suffix: str) -> list[Path]:
    parent = out.with_name(f"{out.name}{COMPARE_SUFFIX}")
    return [path for path in sorted(parent.iterdir()) if path.is_dir() and path.name.endswith(suffix)] if parent.is_dir() else []


def _format(value: Any) -> str:
    return "not given" if value is None else value if isinstance(value, str) else json.dumps(value)
