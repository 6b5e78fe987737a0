"""Throughput of training: images per second with all stages unfrozen, compared with timm's training loop and the same network.

``python -m bench.comparisons.training_loop``. Both loops decode, augment and train on the same photographs (trashnet) with the same batch
size, precision (bf16 on a GPU) and optimizer, in turn. The first fifth of the steps is not counted. timm's loop is that of its
``train.py``: ``create_loader`` (with prefetcher on a GPU), ``create_optimizer_v2``, autocast, clipping. The output names the GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import timm
import torch
from timm.data import ImageDataset, create_loader, resolve_data_config
from timm.optim import create_optimizer_v2
from torch import nn

from bench.paths import SHARED
from edgetl.core.system.host import available_cores, fingerprint
from edgetl.data.folder import scan
from edgetl.data.split import Splits, split
from edgetl.train.config.options import TrainConfig
from edgetl.train.config.resolve import resolve
from edgetl.train.inputs.dataset import default_workers
from edgetl.train.loop.processes import Execution
from edgetl.train.workflows.finetune import choose_device, prepare
from edgetl.train.workflows.optimization import Training, optimize

BACKBONE = "mobilenetv2_100"
WARM_UP_RATIO = 0.2
ROUNDS = 2


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.comparisons.training_loop", description=__doc__)
    parser.add_argument("--backbone", default=BACKBONE, help="timm name; weights are random, which does not change the speed")
    parser.add_argument("--data", type=Path, default=SHARED / "data/trashnet")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--workers", type=int, help="loader processes of both loops [default: edgetl's default]")
    given = parser.parse_args()
    device = choose_device("auto")
    shown = torch.cuda.get_device_name() if device == "cuda" else f"{fingerprint()['cpu']}, {available_cores()} cores"
    print(f"{shown}; {given.backbone}, batch {given.batch_size}, {given.steps} steps, {ROUNDS} rounds in turn, torch {torch.__version__}")
    by_edgetl, by_timm = [], []
    for _ in range(ROUNDS):
        by_timm.append(_timm(given, device))
        by_edgetl.append(_edgetl(given, device))
    print(f"| timm: images/s | edgetl: images/s | ratio |\n|---|---|---|\n| {_cell(by_timm)} | {_cell(by_edgetl)} | ", end="")
    print(f"{np.median(by_edgetl) / np.median(by_timm):.2f} |")


def _cell(values: list[float]) -> str:
    return f"{np.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def _edgetl(given: argparse.Namespace, device: str) -> float:
    splits = split(scan(given.data))
    epochs = -(-given.steps * given.batch_size // len(splits.train))
    config = TrainConfig.from_options(
        backbone=given.backbone,
        pretrained=False,
        strategy="full",
        epochs=epochs,
        batch_size=given.batch_size,
        workers=given.workers,
        patience=1000,
    )
    backbone, plan = prepare(splits, resolve(config, splits))
    times: list[float] = []

    def note(stage: str, done: int, total: int) -> None:
        if stage == "fine-tuning":
            _wait(device)
            times.append(time.perf_counter())
            assert done <= total

    # Validation is not part of the comparison. Two images take almost no time.
    few = Splits(splits.folder, splits.train, splits.val[:2], ())
    plan = plan.model_copy(update={"steps": given.steps, "augment": "light"})
    with tempfile.TemporaryDirectory() as work:
        optimize(Training(backbone, few, config, plan, Execution(device, Path(work), note)))
    return _rate(times, given)


def _timm(given: argparse.Namespace, device: str) -> float:
    model = timm.create_model(given.backbone, num_classes=6).to(device).to(memory_format=torch.channels_last).train()
    data = resolve_data_config({}, model=model)
    workers = default_workers() if given.workers is None else given.workers
    # timm's loader keeps its processes between epochs, which requires at least one process.
    loader = create_loader(
        ImageDataset(str(given.data)),
        data["input_size"],
        given.batch_size,
        is_training=True,
        use_prefetcher=device == "cuda",
        mean=data["mean"],
        std=data["std"],
        interpolation="bicubic",
        color_jitter=0.2,
        num_workers=workers,
        device=torch.device(device),
        persistent_workers=workers > 0,
    )
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-4, weight_decay=0.01)
    loss_of = nn.CrossEntropyLoss(label_smoothing=0.05)
    half = torch.autocast("cuda", torch.bfloat16) if device == "cuda" else contextlib.nullcontext()
    times = []
    for images, labels in islice(_endless(loader), given.steps):
        images, labels = images.to(device, memory_format=torch.channels_last), labels.to(device)
        with half:
            loss = loss_of(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        _wait(device)
        times.append(time.perf_counter())
    return _rate(times, given)


def _endless(loader: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    while True:
        yield from loader


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _rate(times: list[float], given: argparse.Namespace) -> float:
    first = max(1, round(WARM_UP_RATIO * len(times)))
    return given.batch_size * (len(times) - first) / (times[-1] - times[first - 1])


if __name__ == "__main__":
    main()
