"""Training from shards: order, batches, probe, fine-tuning, resume and processes."""

from __future__ import annotations

import io
import logging
import os
import signal
import subprocess
import sys
import tarfile
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from edgetl.core.preprocess import PreprocessSpec
from edgetl.core.progress import silent
from edgetl.core.tasks import OutputDecoding
from edgetl.data.folder import scan
from edgetl.data.packing.shards import pack_shards
from edgetl.data.shards.index import SplitRule
from edgetl.data.shards.scan import scan_shards
from edgetl.errors import ConfigError, DataError, MissingExtraError, StoppedError
from edgetl.runtime.evaluation import EvaluationConfig, images_to_evaluate
from edgetl.train.artifacts.run import open_run
from edgetl.train.config.sharding import conflicts
from edgetl.train.config.weights_dir import EMBEDDED_BACKBONE
from edgetl.train.heads.linear import fit_penalized, spread
from edgetl.train.heads.modules import LabeledFeatures
from edgetl.train.heads.streamed.logistic import fit_streamed
from edgetl.train.inputs.features import FrozenFeatures
from edgetl.train.inputs.samplers import BatchOptions
from edgetl.train.inputs.shards.batches import ShardBatches
from edgetl.train.inputs.shards.features import stream_features
from edgetl.train.inputs.shards.order import MOST_LANES, make_order
from edgetl.train.workflows.estimate import estimate
from edgetl.train.workflows.preview import draw_preview
from edgetl.train.workflows.train import train
from tests.command import edgetl
from tests.conftest import write_colors
from tests.namespaces import Hosts, can_make_namespaces
from tests.train.conftest import small_config

pytest.importorskip("webdataset")

_config = partial(small_config, epochs=3, batch_size=4, checkpoint_s=0.001)
SPEC = PreprocessSpec(input_size=(32, 32))


@pytest.fixture
def shards(colors: Path, tmp_path: Path) -> Path:
    """Four shards of nine images."""
    pack_shards(scan(colors), tmp_path / "shards", images_per_shard=9, inputs={})
    return tmp_path / "shards"


def _stop(stage: str, at: int) -> Any:
    def progress(found: str, done: int, total: int) -> None:
        if found == stage and done >= at:
            signal.raise_signal(signal.SIGTERM)

    return progress


def _batches(
    shards: Path, steps: range, *, size: int = 4, workers: int = 0, shard: tuple[int, int] = (0, 1)
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    found = scan_shards(shards, SplitRule(seed=0, val=0.25, test=0.25))[1]
    return list(ShardBatches(found, BatchOptions(size, workers=workers, shard=shard), steps, SPEC, None))


@pytest.mark.parametrize(
    ("counts", "batch_size"), [((5, 0, 7, 4, 8), 4), ((5, 0, 7, 4, 8), 5), ((30,) * 40, 32), ((30,) * 40, 33), ((1, 90, 1, 1), 4)]
)
def test_each_epoch_has_each_image_once(counts: tuple[int, ...], batch_size: int) -> None:
    order = make_order(counts, batch_size, seed=3, processes=1)
    for epoch in range(3):
        steps = range(epoch * order.epoch_steps, (epoch + 1) * order.epoch_steps)
        used = []
        for lane in range(order.lanes):
            passes = list(order.passes(lane, steps))
            assert sum(count for _, count in passes) == sum(order.images(lane, step) for step in steps)
            used += [(found.shard, found.skip + place) for found, count in passes for place in range(count)]
        assert len(used) == len(set(used)) == sum(counts) // batch_size * batch_size
        assert all(place < counts[shard] for shard, place in used)


@pytest.mark.parametrize("shards", [1, 5, 20, 32, 100])
def test_each_batch_mixes_more_than_half_of_the_possible_shards_in_nearly_equal_parts(shards: int) -> None:
    for batch_size in range(1, 257):
        order = make_order((30,) * shards, batch_size, seed=0, processes=1)
        most = min(MOST_LANES, shards, batch_size)
        assert most / 2 < order.lanes <= most
        steps = range(2 * order.epoch_steps)
        for step in (*steps[:3], *steps[-3:]):
            parts = [order.images(lane, step) for lane in range(order.lanes)]
            assert sum(parts) == batch_size and max(parts) - min(parts) <= 1 <= min(parts)
        whole = [sum(order.images(lane, step) for step in steps) for lane in range(order.lanes)]
        assert max(whole) - min(whole) <= 2  # once per epoch


def test_processes_that_divide_a_divisor_of_the_batch_size_have_equal_parts() -> None:
    for batch_size, processes in ((32, 8), (33, 11), (45, 3), (74, 2), (96, 32)):
        order = make_order((30,) * 40, batch_size, seed=0, processes=processes)
        for step in range(5):
            parts = [sum(order.images(lane, step) for lane in range(rank, order.lanes, processes)) for rank in range(processes)]
            assert parts == [batch_size // processes] * processes


@pytest.mark.parametrize("batch_size", [4, 7])
def test_the_order_continues_at_any_step(batch_size: int) -> None:
    order = make_order((5, 3, 7, 4, 8), batch_size, seed=3, processes=1)
    for lane in range(order.lanes):
        whole = [(found.seed, found.skip + place) for found, count in order.passes(lane, range(20)) for place in range(count)]
        for start in range(20):
            rest = [(found.seed, found.skip + place) for found, count in order.passes(lane, range(start, 20)) for place in range(count)]
            assert whole[sum(order.images(lane, step) for step in range(start)) :] == rest


def test_lanes_that_cannot_be_divided_among_processes_are_an_error() -> None:
    with pytest.raises(
        ConfigError, match=r"4 shards with training images and a batch size of 8 form 4 lanes.*3 processes.*--batch-size 9\."
    ):
        make_order((1, 1, 1, 1), 8, seed=0, processes=3)
    make_order((1, 1, 1, 1), 9, seed=0, processes=3)
    with pytest.raises(ConfigError, match="at least as many shards as processes"):
        make_order((1, 1), 8, seed=0, processes=4)


@pytest.mark.parametrize("size", [4, 5])
def test_batches_do_not_depend_on_the_start_and_the_loaders(shards: Path, size: int) -> None:
    whole = _batches(shards, range(6), size=size)
    assert [len(labels) for _, labels in whole] == [size] * 6
    for images, labels in islice(whole, 1):
        assert images.shape == (size, 3, 32, 32) and labels.dtype == torch.int64
    for (left, known), (right, found) in zip(whole[3:], _batches(shards, range(3, 6), size=size, workers=2), strict=True):
        assert torch.equal(left, right) and torch.equal(known, found)


def test_batches_do_not_depend_on_the_processes(shards: Path) -> None:
    whole, parts = _batches(shards, range(2)), [_batches(shards, range(2), shard=(rank, 2)) for rank in (0, 1)]
    for step in range(2):
        both = torch.cat([parts[0][step][0], parts[1][step][0]])
        assert sorted(row.sum().item() for row in both) == sorted(row.sum().item() for row in whole[step][0])


def test_the_streamed_fit_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 300)
    features = (rng.normal(size=(300, 5)) * [1, 2, 3, 1, 1] + labels[:, None] * [1, 0, 2, 0, 0] + 10).astype(np.float32)
    val = LabeledFeatures(features[200:], labels[200:])

    def chunks() -> Any:
        return ((features[start : start + 70][: 200 - start], labels[start : start + 70][: 200 - start]) for start in (0, 70, 140))

    head, accuracy = fit_streamed(chunks, val, np.ones(3))
    rows = features[:200]
    mean, std = rows.mean(axis=0), spread(rows)
    fitted = fit_penalized(((rows - mean) / std).astype(np.float64), labels[:200], head.penalty)
    wanted = fitted.predict_proba((rows - mean) / std)
    outputs = rows @ head.weight.T + head.bias
    scores = np.exp(outputs - outputs.max(axis=1, keepdims=True))
    assert np.abs(scores / scores.sum(axis=1, keepdims=True) - wanted).max() < 0.02
    assert accuracy == (outputs.argmax(axis=1) == labels[:200]).mean()


def test_a_sharded_probe_continues_and_has_the_record_of_its_shards(shards: Path, tmp_path: Path) -> None:
    train(shards, _config(strategy="probe"), tmp_path / "whole")
    out, config = tmp_path / "run", _config(strategy="probe")
    with pytest.raises(KeyboardInterrupt):
        train(shards, config, out, progress=_interrupt("computing features", 10))
    with pytest.raises(ConfigError, match="was stopped"):
        train(shards, config, out)
    run = train(shards, config, out, resume=True)
    assert not out.with_name("run.checkpoints").exists()
    assert (out / "weights.safetensors").read_bytes() == (tmp_path / "whole/weights.safetensors").read_bytes()
    splits = run.splits()
    assert (
        splits.shards is not None
        and sum(splits.shards.images.values()) == 36
        and run.record.images["train"] == splits.shards.images["train"]
    )
    assert run.record.data_fingerprint == splits.shards.digest and splits.shards.rule == SplitRule(seed=0, val=0.25, test=0.25)
    assert len(run.samples("val")) == splits.shards.listed["val"] and not [item for item in splits.entries if Path(item.path).is_absolute()]


@pytest.mark.parametrize("changed", ["backbone", "preprocessing", "weights"])
def test_features_of_another_network_are_computed_again_with_a_message(
    shards: Path, tmp_path: Path, changed: str, caplog: pytest.LogCaptureFixture
) -> None:
    others: dict[str, dict[str, Any]] = {
        "backbone": {"backbone": "test_byobnet"},
        "preprocessing": {"mean": (0.5, 0.4, 0.3)},
        "weights": {"seed": 1, "val": 0.2},
    }
    out, config = tmp_path / "run", _config(strategy="probe").with_options(**others[changed])
    with pytest.raises(KeyboardInterrupt):
        train(shards, _config(strategy="probe"), out, progress=_interrupt("computing features", 10))
    with pytest.raises(ConfigError, match="has the state of a different training"):
        train(shards, config, out, resume=True)
    for state in out.with_name("run.checkpoints").glob("step-*"):
        state.unlink()  # the features are not enough to find the difference
    with caplog.at_level(logging.WARNING, "edgetl"):
        train(shards, config, out)
    assert "features-0 has features of another backbone, other weights or another preprocessing" in caplog.text
    train(shards, config, tmp_path / "whole")
    assert (out / "weights.safetensors").read_bytes() == (tmp_path / "whole/weights.safetensors").read_bytes()


def _interrupt(stage: str, at: int) -> Any:
    def progress(found: str, done: int, total: int) -> None:
        if found == stage and done >= at:
            raise KeyboardInterrupt

    return progress


@pytest.mark.slow
def test_a_stopped_fine_tuning_on_shards_has_the_weights_of_an_uninterrupted_one(shards: Path, tmp_path: Path) -> None:
    config = _config(strategy="full")
    train(shards, config, tmp_path / "whole")
    with pytest.raises(StoppedError):
        train(shards, config, tmp_path / "run", progress=_stop("fine-tuning", 7))
    train(shards, config, tmp_path / "run", resume=True)
    assert (tmp_path / "run/weights.safetensors").read_bytes() == (tmp_path / "whole/weights.safetensors").read_bytes()


def test_unreadable_images_are_left_out_of_the_batches_and_reported(tmp_path: Path) -> None:
    shard = tmp_path / "a.tar"
    with tarfile.open(shard, "w") as archive:
        for number in range(13):
            _add(archive, f"{number}.png", b"damaged" if number == 5 else _png(number))
            _add(archive, f"{number}.cls", str(number % 2).encode())
            _add(archive, f"{number}.json", b'{"split": "val"}' if number == 12 else b'{"split": "train"}')
    found = scan_shards(shard, SplitRule(seed=0, val=0.0, test=0.0))[1]
    batches = ShardBatches(found, BatchOptions(4, workers=0), range(3), SPEC, None)
    assert sorted(len(labels) for _, labels in batches) == [3, 4, 4] and list(batches.unreadable) == ["5"]
    changed = replace(found, train_counts=(13,))
    with pytest.raises(DataError, match=r"a.tar changed during the training"):
        list(ShardBatches(changed, BatchOptions(4, workers=0), range(6), SPEC, None))


def test_features_of_a_shard_without_readable_images_and_of_a_process_without_shards(tmp_path: Path) -> None:
    for name, numbers in (("a", range(13)), ("b", range(13, 14))):
        with tarfile.open(tmp_path / f"{name}.tar", "w") as archive:
            for number in numbers:
                _add(archive, f"{number}.png", b"damaged" if name == "b" else _png(number))
                _add(archive, f"{number}.cls", str(number % 2).encode())
                _add(archive, f"{number}.json", b'{"split": "val"}' if number == 12 else b'{"split": "train"}')
    found = scan_shards(tmp_path / "{b,a}.tar", SplitRule(seed=0, val=0.0, test=0.0))[1]
    network = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    extract = FrozenFeatures(network.eval(), SPEC, device="cpu", batch_size=4, images=13)
    table = stream_features(found, [0, 1], extract, tmp_path / "features", network="", progress=silent)
    assert table.unreadable == ("13",) and table.rows == 13
    assert [features.shape for features, _ in table.chunks()] == [(12, 3)]
    empty = stream_features(found, [], extract, tmp_path / "no shards", network="", progress=silent)
    assert not list(empty.chunks()) and empty.folder.is_dir()


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))


def _png(seed: int) -> bytes:
    data = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(data, "PNG")
    return data.getvalue()


def test_options_that_need_all_images_are_refused_together(shards: Path, tmp_path: Path) -> None:
    config = _config(strategy="compare", balance="sampler", exclude=("*.png",))
    with pytest.raises(ConfigError, match=r"--strategy compare, --balance sampler, --exclude: not supported with shards") as refused:
        train(shards, config, tmp_path / "run")
    assert "edgetl pack" not in str(refused.value)
    config = _config(near_duplicates="ignore", allow_leakage=True, cache_views=2)
    with pytest.raises(
        ConfigError, match=r"--near-duplicates, --allow-leakage, --cache-views: not supported with shards.*`edgetl pack` does"
    ):
        train(shards, config, tmp_path / "run")


def test_the_augmentation_preview_reads_shards(shards: Path, tmp_path: Path) -> None:
    draw_preview(shards, _config(), tmp_path / "preview.png")
    assert (tmp_path / "preview.png").stat().st_size > 1000


def test_commands_that_need_a_folder_name_the_one_that_reads_shards(shards: Path) -> None:
    with pytest.raises(DataError, match=r"are shards, which only edgetl train and edgetl predict read\. Give the folder of their images"):
        estimate(shards, _config())
    with pytest.raises(DataError, match=r"are shards, which only edgetl train and edgetl predict read\. Give the folder of their images"):
        images_to_evaluate(shards, EvaluationConfig(), OutputDecoding("classification", ("blue", "red")), frozenset())


def test_a_missing_library_is_reported_before_the_scan(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conflicts, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"webdataset is not installed. A training on a folder of images does not need it"):
        train(shards, _config(), tmp_path / "run")


@pytest.mark.slow
def test_two_processes_train_on_shards_as_one(tmp_path: Path) -> None:
    pack_shards(scan(write_colors(tmp_path / "colors", 30)), tmp_path / "shards", images_per_shard=10, inputs={})
    # Its BatchNorm is frozen. Statistics of BatchNorm would be those of one process.
    options = ["--backbone", EMBEDDED_BACKBONE, "--input-size", "32", "--epochs", "2", "--batch-size", "8"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "edgetl.cli.app"]
    # The fit of a probe ends at a tolerance of its gradient.
    for strategy, most in (("full", 1e-3), ("probe", 2e-2)):
        command = ["train", str(tmp_path / "shards"), *options, "--strategy", strategy, "--out"]
        alone = edgetl(*command, str(tmp_path / f"{strategy}-alone"))
        assert alone.returncode == 0, alone.stderr
        both = subprocess.run([*launch, *command, str(tmp_path / f"{strategy}-both")], capture_output=True, text=True, check=False)
        assert both.returncode == 0, both.stderr
        found = [open_run(tmp_path / f"{strategy}-{name}").load_model().state_dict() for name in ("alone", "both")]
        largest = max(float((found[0][name].float() - found[1][name].float()).abs().max()) for name in found[0])
        assert largest < most, strategy


@pytest.mark.slow
@pytest.mark.skipif(not can_make_namespaces(), reason="network namespaces need root and the command ip")
@pytest.mark.parametrize(("strategy", "most"), [("full", 1e-3), ("probe", 2e-2)])
def test_two_hosts_train_on_shards_as_one_process(tmp_path: Path, strategy: str, most: float) -> None:
    pack_shards(scan(write_colors(tmp_path / "colors", 30)), tmp_path / "shards", images_per_shard=10, inputs={})
    options = ["--backbone", EMBEDDED_BACKBONE, "--input-size", 32, "--epochs", 2, "--batch-size", 8, "--strategy", strategy]
    command = ["train", tmp_path / "shards", *options, "--json", "--out"]
    alone = edgetl(*command, tmp_path / "alone")
    assert alone.returncode == 0, alone.stderr
    with Hosts(2) as hosts:
        endpoint = f"--rdzv-endpoint={hosts.address(0)}:29500"
        launch = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", endpoint]
        started = []
        for number in range(2):
            # Both hosts have the name of this machine, so that torchrun cannot find out which of them the endpoint names.
            own = [f"--local-addr={hosts.address(number)}", f"--rdzv-conf=is_host={number == 0}", "-m", "edgetl.cli.app"]
            # gloo connects to the address of this device; otherwise to that of the host name, which both hosts share.
            environment = {**os.environ, "GLOO_SOCKET_IFNAME": "e0", "OMP_NUM_THREADS": "1"}
            started.append(hosts.popen(number, *launch, *own, *command, tmp_path / "both", environment=environment))
        outputs = [process.communicate(timeout=300) for process in started]
    assert [process.returncode for process in started] == [0, 0], outputs
    assert sum(bool(output) for output, _ in outputs) == 1, "only the first process prints"
    runs = [open_run(tmp_path / name) for name in ("alone", "both")]
    found = [run.load_model().state_dict() for run in runs]
    assert max(float((found[0][name].float() - found[1][name].float()).abs().max()) for name in found[0]) < most
    assert runs[0].record.validation.accuracy == runs[1].record.validation.accuracy


@pytest.mark.slow
def test_a_sharded_run_exports_with_calibration_and_gate_images_from_the_shards(tmp_path: Path) -> None:
    pack_shards(scan(write_colors(tmp_path / "colors", 40)), tmp_path / "shards", images_per_shard=30, inputs={})
    command = ["train", tmp_path / "shards", "--backbone", "test_resnet", "--random-weights", "--input-size", "32", "--epochs", "4"]
    trained = edgetl(*command, "--strategy", "full", "--batch-size", "8", "--out", tmp_path / "run")
    assert trained.returncode == 0, trained.stderr
    exported = edgetl("export", tmp_path / "run", "--out", tmp_path / "bundle", "--format", "onnx", "--precision", "fp32,int8")
    assert exported.returncode == 0, exported.stderr
    assert edgetl("verify", tmp_path / "bundle").returncode == 0
    assert edgetl("report", tmp_path / "run", "--out", tmp_path / "report.html").returncode == 0
