"""Benchmarks at scale, on a few small images: growth of batch scoring."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest

from bench import scale
from tests.command import edgetl
from tests.data.shards import write_shards
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
    assert all(float(cell.replace(",", "")) >= 0 for row in rows for cell in row[3:])


def _predict(bundle: Path, pattern: str, out: Path, processes: int) -> Namespace:
    """Predict without the start of an interpreter."""
    done = edgetl("predict", bundle, pattern, "--out", out, "--processes", processes, "--threads", 1)
    assert done.returncode == 0, done.stderr
    return Namespace(communicate=lambda: None)
