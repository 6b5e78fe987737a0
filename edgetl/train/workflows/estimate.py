"""Training estimate (``edgetl plan``): steps, time and memory of each strategy on this machine, from a few measured batches."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from edgetl.core.config import StrictModel
from edgetl.core.files.names import printable
from edgetl.core.progress import Progress, silent
from edgetl.data.scan_notes import ScanNote
from edgetl.train.config.anomaly.options import refuse_anomaly
from edgetl.train.config.options import TrainConfig
from edgetl.train.config.plan import Plan
from edgetl.train.config.resolve import check_conflicts, resolve
from edgetl.train.config.tasks import pool_few_images, scan_images, split_images
from edgetl.train.heads.linear import MAX_FOLDS
from edgetl.train.inputs.dataset import ImageDataset
from edgetl.train.loop.processes import Execution
from edgetl.train.networks.partition import split_frozen
from edgetl.train.networks.stages import set_trainable
from edgetl.train.workflows.finetune import choose_device, prepare
from edgetl.train.workflows.optimization import Training

MEASURED = ("probe", "partial", "full")
# Number of images that are decoded to time the decoding, and number of repetitions of a step, of which the fastest counts.
DECODED = 16
REPEATS = 2
# The weight, its gradient, AdamW's two moments, and the moving average (EMA).
NUMBERS_PER_WEIGHT = 5


class Estimate(StrictModel):
    """Estimated cost of one strategy.

    Attributes:
        plan: strategy, steps and rates after the data-dependent defaults.
        chosen: True if the given options select this strategy.
        validation_images: number of validation images. 0: cross-validation on the training images replaces them.
        trained_m: trained weights, millions.
        minutes: duration of the training, min. Other load on the machine increases it.
        memory_mb: memory for trained weights, gradients, optimizer moments and the activations of one batch, 10^6 bytes. The memory of
            the libraries is not included.
    """

    plan: Plan
    chosen: bool
    validation_images: int
    trained_m: float
    minutes: float
    memory_mb: float


class Estimates(StrictModel):
    """Estimates of all strategies, as printed by ``edgetl plan --json``.

    Attributes:
        data: folder of the images.
        backbone: name of the backbone.
        images: number of training images.
        device: ``cpu`` or ``cuda``.
        strategies: estimate of each strategy.
        notes: files that the scan left out or read in an unusual way.
    """

    data: str
    backbone: str
    images: int
    device: str
    strategies: tuple[Estimate, ...]
    notes: tuple[ScanNote, ...] = ()


def estimate(data: Path, config: TrainConfig, *, progress: Progress = silent) -> Estimates:
    """Estimate steps, time and memory of each strategy from a few measured batches. No network is trained.

    Args:
        data: image folder.
        config: training options.
        progress: called for each measured strategy.

    Raises:
        ConfigError: options conflict.
        DataError: the folder cannot be used.
        BackboneError: the backbone cannot be found or loaded.
    """
    refuse_anomaly(config.data.task, "it has no optimizer steps to estimate")
    check_conflicts(config)
    folder = scan_images(data, config.data, progress=progress)
    divided = split_images(folder, config, progress=progress)
    device = choose_device(config.run.device)
    found = []
    for index, strategy in enumerate(MEASURED):
        progress("measuring", index, len(MEASURED))
        given = config.with_options(strategy=strategy)
        splits = pool_few_images(divided, given)
        job = resolve(given, splits)
        backbone, plan = prepare(splits, job)
        found.append(measure_training(Training(backbone, splits, job.config, plan, Execution(device, Path()))))
    job = resolve(config, pool_few_images(divided, config))
    chosen = tuple(item.model_copy(update={"chosen": item.plan.strategy == job.strategy}) for item in found)
    return Estimates(
        data=printable(data), backbone=config.backbone.name, images=job.images, device=device, strategies=chosen, notes=divided.notes
    )


def measure_training(training: Training) -> Estimate:
    """Estimate the cost of a training from a few measured batches. The network of ``training`` must not be used afterwards."""
    backbone, splits, config, plan, device = training.backbone, training.splits, training.config, training.plan, training.execution.device
    images = ImageDataset(splits.train, backbone.spec, augment=None, seed=config.run.seed)
    load = _seconds(lambda: [images[index % len(splits.train)] for index in range(DECODED)], repeats=1) / DECODED
    size = min(config.optim.batch_size, len(splits.train))
    batch = torch.randn(size, 3, *backbone.spec.input_size, device=device)
    model = backbone.model.to(device).eval()
    with torch.no_grad():
        forward = _seconds(lambda: model(batch)) / size
    counted = len(splits.train) * config.head.augmented_views + len(splits.val) + len(splits.test)
    seconds, memory, trained = counted * (load + forward), 0.0, sum(parameter.numel() for parameter in backbone.head.parameters())
    if plan.steps:
        trainings = 1 + MAX_FOLDS if splits.cross_validated else 1
        stages = training.trained
        cached = plan.strategy == "partial" and config.run.cache_views and not plan.mixup
        parts = split_frozen(model.cpu(), stages, batch[:2].cpu()) if cached else None
        trainable = parts.trainable.to(device) if parts else model.to(device)
        if parts:
            with torch.no_grad():
                batch = parts.frozen.to(device)(batch)
            seconds += trainings * config.run.cache_views * len(splits.train) * (load + forward)
        set_trainable(trainable.train(), stages, freeze_batchnorm=plan.freeze_batchnorm)
        trained = sum(parameter.numel() for parameter in trainable.parameters() if parameter.requires_grad)
        step, memory = _step(trainable, batch)
        seconds += trainings * plan.steps * (step + (0.0 if parts else load * size))
    memory_mb = (memory + 4 * NUMBERS_PER_WEIGHT * trained) / 1e6
    return Estimate(
        plan=plan,
        chosen=False,
        validation_images=len(splits.val),
        trained_m=round(trained / 1e6, 3),
        minutes=round(seconds / 60, 2),
        memory_mb=round(memory_mb, 1),
    )


def _step(model: nn.Module, batch: torch.Tensor) -> tuple[float, float]:
    """Return the duration of one training step, s, and the size of the activations that it saves for the backward pass, bytes."""
    kept = 0

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += tensor.numel() * tensor.element_size()
        return tensor

    def step() -> None:
        model(batch).square().mean().backward()

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        step()
    return _seconds(step), float(kept)


def _seconds(work: Callable[[], object], *, repeats: int = REPEATS) -> float:
    """Return the duration of the fastest of ``repeats`` calls, s."""
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return min(times)
