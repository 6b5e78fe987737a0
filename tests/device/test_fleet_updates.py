"""Update module of Mender and systemd units in ``packaging/``: the module runs state by state as Mender calls it, with real commands."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgetl.core.store.state import StoreState, read_state, rolled_back
from edgetl.device.keys import generate_key, read_private_key
from edgetl.device.runner.systemd import UnitPaths, unit
from edgetl.device.signature import sign_bundle
from edgetl.device.transport import pack
from edgetl.errors import DowngradeError, InstallError, UnknownKeyError
from tests.device.bundles import add_release, network, release_in_use, write_bundle

PACKAGING = Path(__file__).parents[2] / "packaging"
MODULE = PACKAGING / "mender" / "edgetl"
UNITS = sorted((PACKAGING / "systemd").iterdir())

pytestmark = pytest.mark.skipif(shutil.which("sh") is None, reason="needs a POSIX shell")


class Mender:
    """Mender client: the tree of files that a payload gets, and the calls of the update module (update-modules-v3-file-api.md)."""

    def __init__(self, root: Path, payload: Path) -> None:
        self.store, self.tree = root / "store", root / "payloads" / "0000" / "tree"
        shutil.rmtree(self.tree, ignore_errors=True)
        for folder in ("files", "header", "tmp"):
            (self.tree / folder).mkdir(parents=True)
        for name, text in (("version", "3"), ("current_artifact_name", "digits-1"), ("current_device_type", "camera")):
            (self.tree / name).write_text(text)
        shutil.copy(payload, self.tree / "files")
        program = root / "edgetl"
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m edgetl.cli.app "$@"\n')
        program.chmod(0o755)
        settings = root / "edgetl-update"
        settings.write_text(f'EDGETL="{program}"\nEDGETL_STORE="{self.store}"\nEDGETL_TRUST="{root / "trust"}"\nEDGETL_WATCH_S=0\n')
        self._environment = {**os.environ, "EDGETL_SETTINGS": str(settings)}

    def start(self, state: str) -> subprocess.Popen[str]:
        """Call the module for a state."""
        return subprocess.Popen(
            ["sh", str(MODULE), state, str(self.tree)],
            cwd=self.tree,
            env=self._environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def call(self, state: str) -> tuple[int, str]:
        """Call the module for a state, and return its exit code and output."""
        with self.start(state) as process:
            out, err = process.communicate()
        return process.returncode, out + err

    def deploy(self) -> list[tuple[str, int]]:
        """Run the states of a deployment, as Mender does: a failure leads to a rollback."""
        assert self.call("SupportsRollback") == (0, "Yes\n")
        states = [("Download", self.call("Download")[0])]
        for state in ("ArtifactInstall", "ArtifactCommit"):
            states.append((state, self.call(state)[0]))
            if states[-1][1]:
                states += [(state, self.call(state)[0]) for state in ("ArtifactRollback", "ArtifactFailure")]
                break
            assert self.call("NeedsArtifactReboot") == (0, "No\n")
        return [*states, ("Cleanup", self.call("Cleanup")[0])]

    @property
    def state(self) -> StoreState:
        return read_state(self.store)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Transport files: signed releases 1 and 2, a release 3 with wrong scores, and a release 4 of another key."""
    root = tmp_path_factory.mktemp("files")
    for key in ("release", "other"):
        generate_key(root / f"{key}.key")
    for name, key, model in (
        ("1", "release", None),
        ("1 again", "release", None),
        ("2", "release", None),
        ("3", "release", network(0.5)),
        ("4", "other", None),
    ):
        bundle = write_bundle(root / name, int(name[0]), model=model, note=name)
        sign_bundle(bundle, read_private_key(root / f"{key}.key"))
        pack(bundle, root / f"{name}.edgetl")
    (root / "trust").mkdir()
    shutil.copy(root / "release.pub", root / "trust")
    return {path.stem: path for path in root.glob("*.edgetl")} | {"trust": root / "trust", "1 folder": root / "1"}


@pytest.fixture
def device(tmp_path: Path, files: dict[str, Path]) -> Path:
    """Device with the confirmed release 1."""
    shutil.copytree(files["trust"], tmp_path / "trust")
    add_release(tmp_path / "store", files["1 folder"])
    return tmp_path


def test_a_good_release_is_installed_and_committed(device: Path, files: dict[str, Path]) -> None:
    mender = Mender(device, files["2"])
    assert [code for _, code in mender.deploy()] == [0, 0, 0, 0]
    state = mender.state
    assert state.active is not None and state.active.release == 2 and state.probation is None and state.active.key is not None
    assert state.history[-1].action == "confirm" and release_in_use(device / "store") == 2
    # The same deployment again changes nothing, and a rollback of it keeps the release that was active before.
    again = Mender(device, files["2"])
    assert [again.call(name)[0] for name in ("ArtifactInstall", "ArtifactRollback")] == [0, 0]
    assert again.state == state


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("3", InstallError.exit_code, "release 3 failed its self-test"),
        ("4", UnknownKeyError.exit_code, "which is not trusted"),
        pytest.param("1 again", DowngradeError.exit_code, "release 1 is older than release 2", marks=pytest.mark.slow),
    ],
)
def test_a_refused_release_leaves_the_active_one(device: Path, files: dict[str, Path], name: str, code: int, message: str) -> None:
    mender = Mender(device, files[name])
    # Release 2 was active until an operator returned to release 1.
    (mender.store / "state.json").write_text(mender.state.model_copy(update={"high_water": 2}).model_dump_json())
    before = mender.state
    found, text = mender.call("ArtifactInstall")
    assert found == code and message in " ".join(text.replace("│", " ").split()), text
    assert mender.call("ArtifactRollback")[0] == 0
    assert mender.state == before and release_in_use(device / "store") == 1


def test_an_interruption_between_installation_and_commit_is_rolled_back(device: Path, files: dict[str, Path]) -> None:
    """After a power failure Mender does not commit, but rolls back. It repeats a rollback that was interrupted."""
    mender = Mender(device, files["2"])
    assert mender.call("ArtifactInstall")[0] == 0
    (mender.tree / "tmp" / "installed").unlink()
    active = mender.state.active
    assert active is not None and active.release == 2
    assert [mender.call(name)[0] for name in ("ArtifactRollback", "ArtifactRollback", "ArtifactFailure", "Cleanup")] == [0] * 4
    assert release_in_use(device / "store") == 1 and [item.record.release for item in mender.state.rejected] == [2]


@pytest.mark.slow
def test_a_killed_installation_is_rolled_back(device: Path, files: dict[str, Path]) -> None:
    mender = Mender(device, files["2"])
    with mender.start("ArtifactInstall") as process:
        while not (mender.store / "releases").exists() or len(list((mender.store / "releases").iterdir())) < 2:
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
    assert mender.call("ArtifactRollback")[0] == 0 and release_in_use(device / "store") == 1


@pytest.mark.slow
def test_a_release_that_was_rolled_back_before_the_commit_fails_the_deployment(device: Path, files: dict[str, Path]) -> None:
    mender = Mender(device, files["2"])
    assert mender.call("ArtifactInstall")[0] == 0
    state = mender.state
    (mender.store / "state.json").write_text(rolled_back(state, "3 processes crashed.").model_dump_json())
    code, text = mender.call("ArtifactCommit")
    assert code == 1 and "3processescrashed." in text
    assert mender.call("ArtifactRollback")[0] == 0 and release_in_use(device / "store") == 1


@pytest.mark.slow
def test_the_first_release_stays_without_an_earlier_one(tmp_path: Path, files: dict[str, Path]) -> None:
    shutil.copytree(files["trust"], tmp_path / "trust")
    mender = Mender(tmp_path, files["1"])
    assert mender.call("ArtifactInstall")[0] == 0
    code, text = mender.call("ArtifactRollback")
    assert code == 0 and "there was no release before the update" in text and release_in_use(tmp_path / "store") == 1


def test_the_update_module_ignores_unknown_states(device: Path, files: dict[str, Path]) -> None:
    mender = Mender(device, files["2"])
    assert [mender.call(name) for name in ("Download", "ArtifactFailure", "Cleanup", "NewState")] == [(0, "")] * 4
    assert mender.call("ProvidePayloadFileSizes") == (0, "No\n")
    (mender.tree / "files" / "more").write_text("x")
    code, text = mender.call("ArtifactInstall")
    assert code == 1 and "exactly one file" in text


def test_the_update_module_passes_shellcheck() -> None:
    program = shutil.which("shellcheck")
    if program is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run([program, "--shell", "sh", str(MODULE)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_systemd_units_are_valid(tmp_path: Path) -> None:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd is not installed")
    for path in UNITS:
        (tmp_path / path.name).write_text(path.read_text("utf-8").replace("/opt/edgetl/bin/edgetl", "/bin/true"))
    paths = [str(tmp_path / path.name) for path in UNITS]
    done = subprocess.run([program, "verify", "--man=no", *paths], capture_output=True, text=True, check=False)
    # Keys of newer versions are ignored by earlier ones.
    newer = ("RestartSteps", "RestartMaxDelaySec")
    lines = [line for line in done.stderr.splitlines() if str(tmp_path) in line and not any(key in line for key in newer)]
    assert done.returncode == 0 and not lines, done.stderr


def test_the_unit_of_the_runner_is_that_of_edgetl_run() -> None:
    text = (PACKAGING / "systemd" / "edgetl-run.service").read_text("utf-8")
    command = next(line for line in text.splitlines() if line.startswith("ExecStart=")).removeprefix("ExecStart=").split()
    paths = UnitPaths((Path("/srv/edgetl/incoming"),), camera=False)
    tune = [command[0], "tune", command[2]]
    printed = unit(command, paths, user="edgetl", endless=True, memory_max_mb=1200, after_start=tune)
    own = {"StateDirectory=edgetl", "LogsDirectory=edgetl", "RuntimeDirectory=edgetl"}
    lines = [line for line in text.splitlines() if line not in own and not line.startswith("#")]
    assert [line for line in lines if line] == [line for line in printed.splitlines() if line and not line.startswith("#")]


def test_the_timer_spreads_the_devices() -> None:
    text = (PACKAGING / "systemd" / "edgetl-update.timer").read_text("utf-8")
    assert "RandomizedDelaySec=4h" in text and "FixedRandomDelay=yes" in text and "Persistent=yes" in text
    assert f"500 devices request the file every {4 * 3600 / 500:.0f} s" in text


def test_commands_of_the_units_exist() -> None:
    from tests.serve.test_packaging import _options

    for path in (MODULE, *UNITS):
        for line in path.read_text("utf-8").splitlines():
            words = line.split("edgetl ", 1)[-1].split()
            if words and words[0] in ("install", "run", "status", "confirm", "rollback") and "edgetl" in line and not line.startswith("#"):
                used = {word for word in words if word.startswith("--")}
                assert used <= _options(words[0]), line
