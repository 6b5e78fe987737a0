"""Training time compared with a plain torch and timm loop for the same task, in one run.

``python -m bench.comparisons.training_time``. 600 photographs of trashnet, the ImageNet MobileNetV2 at 224 px, batch size 32. The plain
loop runs every image through the complete network in every epoch, including the frozen layers. Both accuracies are on the same validation
images.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import timm
import torch
from timm.data import create_transform, resolve_data_config
from torch import nn
from torch.utils.data import DataLoader, Dataset

from bench.accuracy.strategies import BACKBONE
from bench.paths import SHARED
from edgetl.core.images.decode import load_image
from edgetl.data.folder import Sample, scan
from edgetl.data.loading import stratified
from edgetl.data.split import Splits
from edgetl.train.config.options import TrainConfig
from edgetl.train.networks.stages import choose_stages, find_stages
from edgetl.train.workflows.finetune import fine_tune

IMAGES, VALIDATION, EPOCHS, BATCH = 600, 300, 20, 32


class _Images(Dataset[tuple[torch.Tensor, int]]):
    def __init__(self, samples: Sequence[Sample], transform: nn.Module) -> None:
        self.samples = samples
        self.transform = transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        sample = self.samples[index]
        return self.transform(load_image(sample.path)), sample.label


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.comparisons.training_time", description=__doc__)
    parser.add_argument("--job", choices=("probe", "partial"), action="append", help="[default: both]")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    given = parser.parse_args()
    folder = scan(SHARED / "data/trashnet")
    chosen = stratified(folder.samples, IMAGES + VALIDATION)
    # Every third image is a validation image. `stratified` alternates the classes, so both parts contain all classes.
    val = tuple(item for index, item in enumerate(chosen) if index // len(folder.labels) % 3 == 2)[:VALIDATION]
    known = {id(item) for item in val}
    splits = Splits(folder, tuple(item for item in chosen if id(item) not in known)[:IMAGES], val, ())
    print(f"{len(splits.train)} training and {len(splits.val)} validation images, {given.epochs} epochs of the plain loop")
    print("| job | plain loop, s | accuracy | edgetl, s | accuracy | speedup |\n|---|---|---|---|---|---|")
    for job in given.job or ("probe", "partial"):
        choices = (
            [{"augmented_views": 1}, {"augmented_views": 4}]
            if job == "probe"
            else [{"epochs": given.epochs, "augmented_views": 1, "patience": 1000}]
        )
        slow, accuracy = _plain_loop(splits, given.epochs, "0.5" if job == "partial" else None)
        for choice in choices:
            config = TrainConfig.from_options(**{"backbone": BACKBONE, "strategy": job, "unfreeze": "0.5", "batch_size": BATCH, **choice})
            with tempfile.TemporaryDirectory() as work:
                begin = time.perf_counter()
                record = fine_tune(splits, config, Path(work) / "run").record
                seconds = time.perf_counter() - begin
            name = f"{job}, {', '.join(f'{key} {value}' for key, value in choice.items() if key != 'patience')}"
            found = record.validation.accuracy.value
            print(f"| {name} | {slow:.1f} | {accuracy:.4f} | {seconds:.1f} | {found:.4f} | {slow / seconds:.1f} |", flush=True)


def _plain_loop(splits: Splits, epochs: int, unfreeze: str | None) -> tuple[float, float]:
    """Train with a plain torch loop. Return the seconds and the final validation accuracy."""
    torch.manual_seed(0)
    begin = time.perf_counter()
    model = timm.create_model(BACKBONE, pretrained=True, num_classes=len(splits.folder.labels))
    stages = find_stages(model, "classifier")
    trained = choose_stages(stages, unfreeze) if unfreeze else stages[-1:]
    names = {name for stage in trained for name in stage.parameters}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
    data = resolve_data_config({}, model=model)
    shown = _Images(splits.train, create_transform(**data, is_training=True, no_aug=False, auto_augment=None))
    batches = DataLoader(shown, BATCH, shuffle=True, drop_last=True)
    val = DataLoader(_Images(splits.val, create_transform(**data)), BATCH)
    optimizer = torch.optim.AdamW([item for item in model.parameters() if item.requires_grad], 1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(batches))
    for _ in range(epochs):
        model.train()
        for images, labels in batches:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    model.eval()
    with torch.inference_mode():
        correct = [(model(images).argmax(dim=1) == labels).float().mean() * len(labels) for images, labels in val]
    return time.perf_counter() - begin, float(np.sum([float(item) for item in correct]) / len(splits.val))


if __name__ == "__main__":
    main()
