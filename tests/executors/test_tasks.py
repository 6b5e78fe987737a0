"""Comparisons whose candidates are tasks: the same results as in one process, and failed candidates."""

from __future__ import annotations

import importlib.util
import logging
import pickle
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from threadpoolctl import threadpool_limits

from edgetl.core.contract import Contract
from edgetl.core.system.host import available_cores
from edgetl.errors import ConfigError, ContractError, EngineError
from edgetl.executors import on_ray
from edgetl.executors.executor import Executor
from edgetl.executors.local import Local
from edgetl.executors.on_ray import Ray
from edgetl.executors.tasks import TaskConfig, Tasks, tasks_of
from edgetl.export.backbone_search import FitResult, fit
from edgetl.export.config import ExportConfig, FitConfig
from edgetl.train.artifacts.run import Run, open_run
from edgetl.train.config.options import TrainConfig
from edgetl.train.config.ranking import RankConfig, Ranking
from edgetl.train.workflows.rank import rank
from edgetl.train.workflows.train import train, train_in_tasks
from tests.command import edgetl
from tests.conftest import write_colors
from tests.executors.clusters import Cluster
from tests.namespaces import can_make_namespaces

needs_ray = pytest.param(
    "ray", marks=[pytest.mark.slow, pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")]
)
EDGETL = (sys.executable, "-c", "from edgetl.cli.app import main; main()")
NAMES = ("random:test_resnet", "no_such_net", "random:test_byobnet")
SMALL: dict[str, Any] = {
    "backbone": "test_resnet",
    "pretrained": False,
    "input_size": (32, 32),
    "val": 0.25,
    "workers": 0,
    "epochs": 2,
    "batch_size": 8,
    "augmented_views": 1,
}


class Pickled:
    """Executor in this process. Functions, items and results are pickled, as between processes. Tasks with ``lost`` in them fail."""

    def __init__(self, lost: str = "nothing") -> None:
        self._lost = lost

    def map(
        self, function: Callable[[Any], Any], items: Sequence[Any], /, *, failed: Callable[[Any, EngineError], Any] | None = None
    ) -> Iterator[Any]:
        """Yield the results in the order of the items."""
        for item in items:
            if self._lost in repr(item):
                assert failed is not None
                yield failed(item, EngineError("a task failed 3 times: its process ended with signal 9."))
            else:
                called, given = pickle.loads(pickle.dumps((function, item)))
                yield pickle.loads(pickle.dumps(called(given)))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Use one thread in this process. Tasks set their number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield
    torch.set_num_threads(before)


def _executor(name: str) -> Executor:
    return Pickled() if name == "pickled" else Ray() if name == "ray" else Local(2)


@cache
def _rank_here(data: Path, config: RankConfig) -> dict[str, Any]:
    return _figures(rank(data, config))


def _figures(ranking: Ranking) -> dict[str, Any]:
    """Return the ranking without its times."""
    return ranking.model_dump(exclude={"seconds": True, "ranked": {"__all__": {"latency_ms"}}})


def _trained(run: Run) -> tuple[Any, ...]:
    """Return the choice, the figures and the hash of the weights."""
    table = [(item.strategy, item.steps, item.validation) for item in run.record.compared]
    return run.record.plan, table, run.record.validation, run.record.test, run.record.files["weights.safetensors"]


def test_candidates_run_in_this_process_unless_an_executor_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tasks_of(TaskConfig()) is None
    local = tasks_of(TaskConfig(processes=2))
    assert local is not None and isinstance(local.executor, Local) and local.threads == max(1, available_cores() // 2)
    given = tasks_of(TaskConfig(processes=1, cpus_per_task=available_cores()))
    assert given is not None and given.threads == available_cores()
    monkeypatch.setattr(on_ray, "find_spec", lambda _: True)
    cluster = tasks_of(TaskConfig(on="ray:10.0.0.1:6379"))
    assert cluster is not None and isinstance(cluster.executor, Ray) and cluster.threads == 1
    with pytest.raises(ConfigError, match=r"--cpus-per-task needs --processes N or --on ray"):
        tasks_of(TaskConfig(cpus_per_task=2))
    with pytest.raises(ConfigError, match=r"--on ray uses the CPUs of the cluster\. Remove it"):
        tasks_of(TaskConfig(on="ray", processes=2))


def test_the_cores_of_this_host_limit_processes_and_their_threads(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for module in ("choice", "tasks"):
        monkeypatch.setattr(f"edgetl.executors.{module}.available_cores", lambda: 4)
    with pytest.raises(ConfigError, match=r"--cpus-per-task 5: this host has 4 cores\. Lower the number"):
        tasks_of(TaskConfig(processes=1, cpus_per_task=5))
    with caplog.at_level(logging.WARNING, "edgetl"):
        for processes, cpus, most in ((4, None, 4), (2, 2, 2), (64, None, 4), (3, 2, 2), (4, 3, 1)):
            found = tasks_of(TaskConfig(processes=processes, cpus_per_task=cpus))
            assert found is not None and isinstance(found.executor, Local) and found.executor.processes == most
    assert [record.getMessage().partition(": ")[0] for record in caplog.records] == ["--processes 64", "--processes 3", "--processes 4"]
    assert caplog.messages[1].endswith("with 4 cores and tasks of 2 CPUs, this host runs 2 at the same time")


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", ["pickled", pytest.param("local", marks=pytest.mark.slow), needs_ray])
def test_a_ranking_in_tasks_equals_that_of_one_process(digits: Path, name: str) -> None:
    config = RankConfig(candidates=NAMES, images=24, confirm=int(name != "pickled"))
    stages: list[tuple[str, int, int]] = []
    found = rank(digits, config, tasks=Tasks(_executor(name), 1, lambda *call: stages.append(call)))
    assert _figures(found) == _rank_here(digits, config)
    assert {item.name for item in found.ranked} == {NAMES[0], NAMES[2]} and found.left_out[0].name == NAMES[1]
    assert stages[:4] == [("scoring at 128 px", done, 3) for done in range(4)]


def test_a_candidate_whose_process_is_lost_is_left_out_by_name(digits: Path) -> None:
    found = rank(digits, RankConfig(candidates=NAMES, images=24), tasks=Tasks(Pickled("given='random:test_byobnet'")))
    assert [item.name for item in found.ranked] == [NAMES[0]]
    assert found.left_out[-1].name == NAMES[2] and "signal 9" in found.left_out[-1].reason


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", ["pickled", pytest.param("local", marks=pytest.mark.slow), needs_ray])
def test_strategies_in_tasks_equal_those_of_one_process(colors: Path, tmp_path: Path, name: str) -> None:
    config = TrainConfig.from_options(strategy="compare", **SMALL)
    here = train(colors, config, tmp_path / "here")
    tasks = Tasks(_executor(name))
    found = train_in_tasks(colors, config, tmp_path / "run", tasks)
    assert _trained(found) == _trained(here)
    for strategy in ("probe", "partial", "full"):
        runs = [open_run(tmp_path / f"{out}.compare" / strategy) for out in ("here", "run")]
        assert runs[0].record.files["weights.safetensors"] == runs[1].record.files["weights.safetensors"]
    with pytest.raises(ConfigError, match="exists already"):
        train_in_tasks(colors, config, tmp_path / "run", tasks)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")
@pytest.mark.skipif(not can_make_namespaces(), reason="network namespaces need root and the command ip")
def test_a_cluster_that_loses_a_worker_in_a_training_has_the_same_result(colors: Path, tmp_path: Path) -> None:
    options = {**SMALL, "strategy": "compare", "epochs": 20, "checkpoint_s": 0.1}
    here = train(colors, TrainConfig.from_options(**options), tmp_path / "here")
    given = "--strategy compare --backbone test_resnet --random-weights --input-size 32 --val 0.25 --workers 0 --epochs 20 --batch-size 8"
    with Cluster(cpus=2) as cluster:
        on = ("--augmented-views", "1", "--checkpoint-s", "0.1", "--on", f"ray:{cluster.address}")
        driver = cluster.popen(*EDGETL, "train", colors, "--out", tmp_path / "run", *given.split(), *on)
        while driver.poll() is None and not list((tmp_path / "run.compare").glob("*.checkpoints/*")):
            time.sleep(0.02)
        cluster.kill(1)
        _, errors = driver.communicate(timeout=600)
    assert driver.returncode == 0, errors
    found = open_run(tmp_path / "run")
    assert _trained(found)[1:] == _trained(here)[1:]


def test_a_lost_strategy_is_named_and_the_finished_ones_are_kept(colors: Path, tmp_path: Path) -> None:
    config = TrainConfig.from_options(strategy="compare", **SMALL)
    with pytest.raises(EngineError, match="strategy partial: a task failed 3 times"):
        train_in_tasks(colors, config, tmp_path / "run", Tasks(Pickled("strategy='partial'")))
    with pytest.raises(ConfigError, match="contains the runs of a stopped comparison"):
        train_in_tasks(colors, config, tmp_path / "run", Tasks(Pickled()))
    probe = tmp_path / "run.compare/probe/run.json"
    before = probe.stat().st_mtime_ns
    assert len(train_in_tasks(colors, config, tmp_path / "run", Tasks(Pickled()), resume=True).record.compared) == 3
    assert probe.stat().st_mtime_ns == before


def test_only_the_strategy_compare_has_tasks(colors: Path, tmp_path: Path) -> None:
    done = edgetl("train", colors, "--out", tmp_path / "run", "--processes", "2")
    assert done.returncode == 3 and "--on and --processes need --strategy compare" in done.stderr


def _fit(data: Path, out: Path, tasks: Tasks | None, max_size_mb: float) -> FitResult:
    config = FitConfig(
        rank=RankConfig(candidates=("edgetl_small", "random:test_resnet"), images=24),
        train=TrainConfig.from_options(strategy="probe", augmented_views=1, input_size=(64, 64)),
        export=ExportConfig(formats=("onnx",), precisions=("fp32",), gate_images=60),
        contract=Contract(max_size_mb=max_size_mb),
    )
    return fit(data, config, out, tasks=tasks)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FitResult]:
    """Images, and the result of ``fit`` in this process with one thread."""
    root = tmp_path_factory.mktemp("fit")
    data, before = write_colors(root / "colors", 12), torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        result = _fit(data, root / "out", None, 4)
    torch.set_num_threads(before)
    return data, result


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", ["local", needs_ray])
def test_a_fit_in_tasks_chooses_the_bundle_of_one_process(fitted: tuple[Path, FitResult], tmp_path: Path, name: str) -> None:
    data, here = fitted
    found = _fit(data, tmp_path / "fit", Tasks(_executor(name)), 4)
    assert {path.name for path in (tmp_path / "fit").iterdir()} == {"run", "bundle", "fit.json"}
    choices = [[(item.backbone, item.outcome) for item in result.record.tried] for result in (here, found)]
    assert choices[0] == choices[1] == [("edgetl_small", "chosen")]
    assert _trained(open_run(found.run)) == _trained(open_run(here.run))
    assert [item.files for item in found.bundle.manifest.variants] == [item.files for item in here.bundle.manifest.variants]


@pytest.mark.slow
def test_a_backbone_whose_training_is_lost_is_refused_by_name(colors: Path, tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=r"edgetl_small: a task failed 3 times: its process ended with signal 9"):
        _fit(colors, tmp_path / "fit", Tasks(Pickled("BackboneTask(")), 4)
    assert not (tmp_path / "fit").exists()
