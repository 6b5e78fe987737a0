"""Stopped trainings: Ctrl-C, SIGTERM and ``--resume``."""

from __future__ import annotations

import json
import shutil
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from edgetl.errors import CancelledError, ConfigError, StoppedError
from edgetl.train.artifacts.run import open_run
from edgetl.train.loop.resume import describe_saved, find_job, resume_command
from edgetl.train.workflows.train import train
from tests.command import Command, edgetl
from tests.train.conftest import small_config

_config = partial(small_config, epochs=3, batch_size=8, augmented_views=1, strategy="full", checkpoint_s=0.001)


def _stop_at(step: int, number: signal.Signals) -> Any:
    def progress(stage: str, done: int, total: int) -> None:
        if stage == "fine-tuning" and done == step:
            signal.raise_signal(number)

    return progress


@pytest.mark.parametrize(("number", "kind"), [(signal.SIGINT, CancelledError), (signal.SIGTERM, StoppedError)])
def test_signal_saves_the_state_after_the_step_and_reports_the_resume_command(
    colors: Path, tmp_path: Path, number: signal.Signals, kind: type[StoppedError]
) -> None:
    before = signal.getsignal(number)
    out = tmp_path / "my run"
    with pytest.raises(
        kind, match=r"interrupted after step 3 of \d+\. The state is saved in .*my run\.checkpoints.*edgetl train --out '.*my run' --resume"
    ):
        train(colors, _config(), out, progress=_stop_at(3, number))
    assert signal.getsignal(number) is before
    assert not out.exists() and "the state after step 3" in str(describe_saved(out))
    job = find_job(out)
    assert job is not None and job.config == _config() and Path(job.data) == colors.resolve()


def test_exit_codes_match_the_signals() -> None:
    assert (CancelledError.exit_code, StoppedError.exit_code) == (128 + signal.SIGINT, 128 + signal.SIGTERM)


def test_resume_accepts_other_workers_and_paths_and_rejects_another_job(colors: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(StoppedError):
        train(colors, _config(), out, progress=_stop_at(3, signal.SIGTERM))
    for changes, message in (
        ({"lr": 0.01}, "--lr not given, now 0.01"),
        ({"epochs": 4, "batch_size": 4}, "--batch-size 8, now 4; --epochs 3, now 4"),
        ({"backbone": "test_byobnet"}, "backbone test_resnet .*now test_byobnet"),
    ):
        with pytest.raises(ConfigError, match=message):
            train(colors, _config(**changes), out, resume=True)
    moved = colors.rename(tmp_path / "moved")
    (moved / "red" / "000.png").rename(tmp_path / "gone.png")
    with pytest.raises(ConfigError, match=r"images 36 \(.*\), now 35 \("):
        train(moved, _config(), out, resume=True)
    (tmp_path / "gone.png").rename(moved / "red" / "000.png")
    run = train(moved, _config(workers=1, checkpoint_s=5.0, loggers="csv", license_policy="any"), out, resume=True)
    assert run.record.config.data.workers == 1
    whole = train(moved, _config(), tmp_path / "whole")
    assert run.record.files["weights.safetensors"] == whole.record.files["weights.safetensors"]


def test_resume_of_a_complete_run_prints_it_and_removes_its_states(colors: Path, tmp_path: Path) -> None:
    out, states = tmp_path / "run", tmp_path / "run.checkpoints"
    with pytest.raises(StoppedError):
        train(colors, _config(epochs=1), out, progress=_stop_at(1, signal.SIGTERM))
    shutil.copytree(states, tmp_path / "kept")
    train(colors, _config(epochs=1), out, resume=True)
    shutil.copytree(tmp_path / "kept", states)  # as if it was killed before it removed them
    digest = (out / "run.json").read_bytes()
    done = edgetl("train", "--out", out, "--resume")
    assert done.returncode == 0 and "is complete: nothing is left to resume" in done.stderr, done.stderr
    assert "next: edgetl export" in done.stdout and not states.exists() and (out / "run.json").read_bytes() == digest
    for changes, message in (
        ({"lr": 0.01}, "--lr not given, now 0.01"),
        ({"backbone": "test_byobnet"}, "--backbone test_resnet, now test_by"),
    ):
        with pytest.raises(ConfigError, match=f"is the complete run of a different training: {message}"):
            train(colors, _config(epochs=1, **changes), out, resume=True)
    with pytest.raises(ConfigError, match=r"different training: images .*colors, now .*other.* replace the run with --overwrite"):
        train(tmp_path / "other", _config(epochs=1), out, resume=True)


def test_training_over_a_stopped_run_reports_the_resume_command(colors: Path, tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        train(colors, _config(), tmp_path / "run", progress=_stop_at(2, signal.SIGTERM))
    with pytest.raises(ConfigError, match=r"Continue with edgetl train --out .*/run --resume, or start again with --overwrite"):
        train(colors, _config(), tmp_path / "run")


def test_ctrl_c_prints_a_resume_command_without_options(colors: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = ["--backbone", "test_resnet", "--random-weights", "--input-size", 32, "--strategy", "full", "--epochs", 30, "--workers", 2]
    command = Command("train", colors, "--out", out, *options, "--seed", 7)
    while command.is_running() and not list(tmp_path.glob("run.checkpoints/step-*")):
        time.sleep(0.05)
    command.signal(signal.SIGINT)
    stopped = command.wait()
    text = stopped.stderr
    assert stopped.returncode == 130 and "Traceback" not in text, text
    last = text.rstrip().splitlines()[-1]
    assert last.startswith("interrupted after step") and last.endswith(f"edgetl train --out {out} --resume"), text
    other = edgetl("train", "--out", out, "--resume", "--epochs", 3)
    assert other.returncode == ConfigError.exit_code and "--epochs 30, now 3" in other.stderr
    job = find_job(out)
    assert job is not None and (job.config.run.seed, job.config.optim.epochs, job.config.backbone.input_size) == (7, 30, (32, 32))
    done = edgetl("train", "--out", out, "--resume", "--json")
    assert done.returncode == 0 and "resuming after step" in done.stderr, done.stderr
    assert json.loads(done.stdout)["config"]["run"]["seed"] == 7 and open_run(out).record.config == job.config


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_before_the_first_step_prints_one_line_and_leaves_no_files(
    colors: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    command = Command("train", colors, "--out", tmp_path / "run", "--strategy", "probe")
    command.signal(number, at="strategy probe")
    stopped = command.wait()
    text = stopped.stderr
    assert stopped.returncode == code, text
    assert "Traceback" not in text and text.rstrip().splitlines()[-1] == "interrupted; no incomplete output was kept."
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("run")] == []


def test_resume_without_data_or_state_reports_what_is_missing(tmp_path: Path) -> None:
    done = edgetl("train", "--out", tmp_path / "run", "--resume")
    assert done.returncode == ConfigError.exit_code and "Only --resume with a saved state works without DATA" in done.stderr


def test_resume_command_of_a_run_in_a_comparison_is_that_of_the_comparison(tmp_path: Path) -> None:
    assert resume_command(tmp_path / "a.compare" / "partial") == f"edgetl train --out {tmp_path / 'a'} --resume"
