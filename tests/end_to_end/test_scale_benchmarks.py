"""Benchmarks at scale, on a few small images: growth of batch scoring, and kills of a fine-tuning on shards."""

from __future__ import annotations

import re
from argparse import Namespace
from pathlib import Path

import pytest

from bench import scale, scale_training
from tests.command import edgetl
from tests.data.shards import colored, write_shard, write_shards
from tests.device.bundles import write_bundle


def test_growth_has_a_rate_for_each_number_of_images_shards_and_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(scale, "SHARDS", 2)
    monkeypatch.setattr(scale, "GROWTH_SHARDS", (1,))
    monkeypatch.setattr(scale, "_predict", _predict)
    write_shards(tmp_path / "shards-32", shards=2, images=16)
    write_shards(tmp_path / "shards-32-in-1", shards=1, images=32)
    given = Namespace(images=32, rounds=1, work=tmp_path, bundle=write_bundle(tmp_path / "bundle", 1))
    scale.growth(given, f"{tmp_path}/shards-32/*.tar")
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()[2:]]
    assert [[int(cell) for cell in row[:3]] for row in rows] == [[32, 2, 1], [32, 1, 1], [32, 2, 2]]
    rates = [[float(cell.replace(",", "")) for cell in row[3:]] for row in rows]
    assert all(rate > 0 and rate >= with_start for rate, with_start in rates)


def _predict(bundle: Path, pattern: str, out: Path, processes: int) -> Namespace:
    """Predict without the start of an interpreter."""
    done = edgetl("predict", bundle, pattern, "--out", out, "--processes", processes, "--threads", 1)
    assert done.returncode == 0, done.stderr
    return Namespace(communicate=lambda: None)


@pytest.mark.slow
def test_a_killed_fine_tuning_has_the_weights_of_an_undisturbed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("webdataset")
    monkeypatch.setattr(scale_training, "FEW_SHARDS", 2)
    for shard in range(2):
        files = {}
        for index in range(40):
            files[f"{shard}-{index}.png"], files[f"{shard}-{index}.cls"] = colored(40 * shard + index), f"{index % 2}".encode()
        write_shard(tmp_path / f"shards/{shard:05d}.tar", files)
    scale_training.resume(Namespace(work=tmp_path, strategies=("full",), kill_steps=40, kills=1))
    printed = capsys.readouterr().out
    assert re.fullmatch(r"resume: full, 1 kills \(last saved steps: \d+\), \d times resumed, weights bit-identical\n", printed), printed
