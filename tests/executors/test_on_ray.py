"""Ray executor: on this host, and on a cluster of three hosts whose workers fail."""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from pathlib import Path
from socket import gethostname

import pytest

from edgetl.core.system.host import versions
from edgetl.errors import ConfigError, DataError, EngineError, MissingExtraError
from edgetl.executors import on_ray
from edgetl.executors.choice import executor_on
from edgetl.executors.on_ray import Ray, _enter
from tests.command import edgetl
from tests.data.shards import write_shards
from tests.device.bundles import write_bundle
from tests.executors.clusters import Cluster
from tests.executors.tasks import crash, fill_memory, refuse, square
from tests.namespaces import can_make_namespaces

SHARDS, IMAGES = 12, 400
# Repetitions with a worker that fails.
REPETITIONS = 30
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")
EDGETL = (sys.executable, "-c", "from edgetl.cli.app import main; main()")


def test_missing_ray_is_an_error_with_the_pip_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_ray, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"ray is not installed\. Install it with: pip install .*\[ray\]"):
        list(executor_on("ray", None).map(square, [1]))


def test_an_unknown_executor_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"--on spark: no such executor\. Use local, ray, or ray:HOST:PORT"):
        executor_on("spark", 1)
    with pytest.raises(ConfigError, match=r"--on ray:: no such executor"):
        executor_on("ray:", None)


def test_a_host_with_another_version_or_without_the_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    version = versions()["edgetl"]
    (tmp_path / "shared").mkdir()
    assert _enter(str(tmp_path / "shared"), version) is None and Path.cwd() == tmp_path / "shared"
    other = _enter(str(tmp_path), "0.0.1")
    assert other is not None and other.kind == "ConfigError"
    assert other.message.startswith(f"the host {gethostname()} has edgetl {version}, and this host 0.0.1.")
    missing = _enter(str(tmp_path / "none"), version)
    assert missing is not None and missing.kind == "ConfigError"
    assert "none: No such file or directory. Start the command in a folder that all" in missing.message


@pytest.mark.slow
@needs_ray
def test_results_on_one_host_are_in_order_and_a_mistake_of_the_user_is_final(tmp_path: Path) -> None:
    assert list(executor_on("ray", None).map(square, [0, 1, 2])) == [0, 1, 4]
    with pytest.raises(DataError, match=f"host {gethostname()}: there is no such folder"):
        list(executor_on("ray", None).map(refuse, [tmp_path / "calls"]))
    assert (tmp_path / "calls").read_text() == "call\n"
    with pytest.raises(ConfigError, match=r"--cpus-per-task 10000: the largest host of the Ray cluster has \d+ CPUs"):
        list(executor_on("ray", None, cpus=10_000).map(square, [1]))
    lost: list[str] = []
    list(Ray(retries=0).map(crash, [1], failed=lambda item, error: lost.append(f"{item}: {error}")))
    assert lost[0].startswith("1: a task failed 1 times on the Ray cluster")


@pytest.mark.slow
@needs_ray
def test_a_task_that_needs_too_much_memory_is_not_repeated_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_memory_usage_threshold", "0.01")
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "100")
    monkeypatch.delenv("RAY_task_oom_retries", raising=False)
    with pytest.raises(EngineError, match=r"a task failed 2 times on the Ray cluster: .* low on memory"):
        list(Ray(retries=1).map(fill_memory, [600_000_000]))


@pytest.mark.slow
@needs_ray
@pytest.mark.skipif(not can_make_namespaces(), reason="network namespaces need root and the command ip")
def test_a_cluster_that_loses_a_worker_completes_without_loss(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "colors", 1)
    (tmp_path / "shards").mkdir()
    write_shards(tmp_path / "shards", shards=SHARDS, images=IMAGES)
    inputs = str(tmp_path / "shards/*.tar")
    assert edgetl("predict", bundle, inputs, "--out", tmp_path / "local", "--shards", SHARDS).returncode == 0
    assert edgetl("merge", tmp_path / "local").returncode == 0
    expected = (tmp_path / "local/predictions.jsonl").read_bytes()
    with Cluster(cpus=2) as cluster:
        for repetition in range(REPETITIONS):
            out, lost = tmp_path / f"out-{repetition}", 1 + repetition % 2
            driver = cluster.popen(
                *EDGETL, "predict", bundle, inputs, "--out", out, "--shards", str(SHARDS), "--on", f"ray:{cluster.address}", "--json"
            )
            while driver.poll() is None and not list(out.glob("*.done")):
                time.sleep(0.02)
            cluster.kill(lost)
            printed, errors = driver.communicate(timeout=300)
            assert driver.returncode == 0, errors
            assert json.loads(printed)["counts"]["images"] == SHARDS * IMAGES
            assert edgetl("merge", out).returncode == 0
            assert (out / "predictions.jsonl").read_bytes() == expected
            cluster.start_worker(lost)
