"""Strategies and continual learning with ImageNet weights: ``python -m bench.accuracy.transfer --strategies`` and ``--continual``."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.paths import SHARED
from edgetl.core.preprocess import Side
from edgetl.train.artifacts.run import Run
from edgetl.train.config.options import TrainConfig
from edgetl.train.workflows.train import train

BACKBONE = f"local-dir:{SHARED}/weights/mobilenetv2_100.imagenet"
PREVIOUS, NEW = "pacs/photo", "pacs/sketch"
CONTINUAL: dict[str, dict[str, Any]] = {
    "none": {},
    "l2sp 0.01": {"l2sp": 0.01},
    "wise": {"wise_ft": True},
    "lwf 1": {"lwf": 1.0},
    "ewc 100": {"ewc": 100.0},
    "replay": {"replay": True},
    "progressive": {"forgetting": "progressive"},
    "replay + lwf 1": {"replay": True, "lwf": 1.0},
}


def compare_strategies(sets: Sequence[str], strategies: Sequence[str], seeds: int, side: int | None) -> None:
    """Print the test accuracy of each strategy on 70/15/15 splits: mean and standard deviation over seeds."""
    size: tuple[Side, Side] | None = (side, side) if side else None
    print(f"ImageNet MobileNetV2, 70/15/15, test accuracy, mean of {seeds} seeds (standard deviation; seconds per run)")
    print(f"| images | {' | '.join(strategies)} |\n|---|{'---|' * len(strategies)}")
    for name in sets:
        cells = []
        for strategy in strategies:
            found, begin = [], time.monotonic()
            for seed in range(seeds):
                with tempfile.TemporaryDirectory() as work:
                    config = TrainConfig.from_options(backbone=BACKBONE, strategy=strategy, seed=seed, input_size=size)
                    test = train(SHARED / "data" / name, config, Path(work) / "run").record.test
                assert test is not None
                found.append(test.accuracy.value)
                print(f"<!-- {name} {strategy} seed {seed}: {found[-1]:.4f}, {time.monotonic() - begin:.0f} s so far -->", flush=True)
            cells.append(f"{np.mean(found):.4f} ({np.std(found):.4f}; {(time.monotonic() - begin) / seeds:.0f} s)")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def compare_continual(seeds: int, side: int, names: Sequence[str], *, epochs: int | None = None) -> None:
    """Fine-tune all stages of a network for photographs on sketches of the same classes, with each method of continual learning."""
    steps = f"{epochs} epochs" if epochs else "default number of epochs"
    print(f"{PREVIOUS} to {NEW}, strategy full, {steps}, {side} px, ImageNet MobileNetV2, mean of {seeds} seeds (standard deviation)")
    columns = "continual learning", "photographs before", "photographs after", "drop", "sketches", "seconds"
    print(f"| {' | '.join(columns)} |\n" + "|---" * len(columns) + "|")
    with tempfile.TemporaryDirectory() as work:
        parents = [_photographs(Path(work) / f"photo-{seed}", side, seed, epochs) for seed in range(seeds)]
        for name in names:
            rows = [
                _train_sketches(parent, {**CONTINUAL[name], "epochs": epochs}, Path(work) / f"{seed}-{name}", seed)
                for seed, parent in enumerate(parents)
            ]
            cells = " | ".join(f"{np.mean(column):.4f} ({np.std(column):.4f})" for column in list(zip(*rows, strict=True))[:4])
            print(f"| {name} | {cells} | {np.mean([row[4] for row in rows]):.0f} |", flush=True)


def _photographs(out: Path, side: int, seed: int, epochs: int | None) -> Run:
    config = TrainConfig.from_options(backbone=BACKBONE, strategy="partial", seed=seed, input_size=(side, side), epochs=epochs)
    return train(SHARED / "data" / PREVIOUS, config, out)


def _train_sketches(parent: Run, options: dict[str, Any], out: Path, seed: int) -> tuple[float, float, float, float, float]:
    given = {**options, "replay": str(parent.path)} if "replay" in options else options
    config = TrainConfig.from_options(**{"backbone": str(parent.path), "strategy": "full", "seed": seed, **given})
    record = train(SHARED / "data" / NEW, config, out).record
    assert record.forgetting and record.test
    return record.forgetting.before, record.forgetting.after, record.forgetting.drop, record.test.accuracy.value, record.seconds
