"""Distributed training of one network with several processes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from edgetl.train.artifacts.run import open_run
from tests.command import edgetl
from tests.conftest import write_colors

OPTIONS = ["--backbone", "test_resnet", "--random-weights", "--input-size", "32", "--epochs", "6", "--batch-size", "8", "--seed", "1"]


def _record(done: subprocess.CompletedProcess[str]) -> dict[str, object]:
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


@pytest.mark.slow
def test_two_processes_reach_the_accuracy_of_one_and_only_the_first_writes(tmp_path: Path) -> None:
    data = write_colors(tmp_path / "colors", 30)
    alone = _record(edgetl("train", str(data), *OPTIONS, "--out", str(tmp_path / "alone"), "--json"))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "edgetl.cli.app"]
    command = [*launch, "train", str(data), *OPTIONS, "--out", str(tmp_path / "both"), "--json"]
    both = _record(subprocess.run(command, capture_output=True, text=True, check=False))
    accuracy = [open_run(tmp_path / name).record.validation.accuracy for name in ("alone", "both")]
    assert abs(accuracy[0].value - accuracy[1].value) <= 2 / accuracy[0].n, "at most two validation images differ"
    assert accuracy[1].value >= 0.8
    assert both["plan"] == alone["plan"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone", "both", "colors"]


@pytest.mark.slow
def test_two_machines_train_one_network(tmp_path: Path) -> None:
    data = write_colors(tmp_path / "colors", 30)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    rendezvous = {**os.environ, "PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": str(port)}
    command = [
        sys.executable,
        "-m",
        "edgetl.cli.app",
        "train",
        str(data),
        *OPTIONS,
        "--out",
        str(tmp_path / "run"),
        "--num-nodes",
        "2",
        "--json",
    ]
    machines = [
        subprocess.Popen(command, env={**rendezvous, "PET_NODE_RANK": str(node)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for node in range(2)
    ]
    outputs = [machine.communicate() for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], outputs
    assert json.loads(outputs[0][0])["name"] == "run" and not outputs[1][0], "only the first machine prints"
    assert open_run(tmp_path / "run").record.validation.accuracy.value >= 0.8


@pytest.mark.slow
def test_devices_option_starts_processes_and_an_error_stops_all_of_them(tmp_path: Path) -> None:
    data = write_colors(tmp_path / "colors", 12)
    (tmp_path / "run").mkdir()
    done = edgetl("train", str(data), *OPTIONS, "--out", str(tmp_path / "run"), "--devices", "2")
    assert done.returncode != 0 and "exists already" in done.stderr
    done = edgetl("train", str(data), *OPTIONS, "--out", str(tmp_path / "run"), "--devices", "2", "--overwrite", "--json")
    assert _record(done)["name"] == "run"


_ONE_FAILS = """
import sys
from pathlib import Path
from edgetl.errors import TrainingError
from edgetl.train.loop.processes import gather, launch, rank, results_folder
launch("cpu")
if rank() == 1:
    sys.exit(0)  # as after an error of its own. torchrun does not end the other processes
try:
    with results_folder(Path(sys.argv[1]), inputs={}, overwrite=False):
        gather(["key"])
except TrainingError as error:
    print(error)
"""


@pytest.mark.slow
def test_the_loss_of_another_process_is_an_error_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(_ONE_FAILS)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(tmp_path / "script.py")]
    done = subprocess.run([*launch, str(tmp_path / "out")], capture_output=True, text=True, check=False)
    assert "process 0 of 2 lost the connection to another process" in done.stdout, done.stderr
    assert not (tmp_path / "out").exists()
