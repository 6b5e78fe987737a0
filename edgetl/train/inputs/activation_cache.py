"""Activation cache: run the frozen layers once per image, store the outputs on disk, and train only the other layers."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from edgetl.core.files.platforms import reserve_space
from edgetl.core.progress import Progress, silent
from edgetl.data.loading import Target, batches, target_of
from edgetl.train.config.plan import steps_per_epoch
from edgetl.train.inputs.dataset import Batches, ImageDataset, TrainingBatches, TrainingImages, in_order
from edgetl.train.inputs.features import FeatureFunction, choose_engine
from edgetl.train.inputs.samplers import BatchOptions, make_sampler
from edgetl.train.networks.backbone import Backbone
from edgetl.train.networks.partition import split_frozen
from edgetl.train.networks.stages import Stage

_log = logging.getLogger(__name__)

EXAMPLES = 4
LARGEST = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class CacheOptions:
    """Options of the activation cache.

    Attributes:
        trained: Stages that are trained.
        views: Largest number of random views per training image.
        max_gb: Largest size on disk, GB.
        folder: Folder of the memory maps. The caller removes it.
        progress: Callback, called after each batch.
    """

    trained: Sequence[Stage]
    views: int
    max_gb: float
    folder: Path
    progress: Progress = silent


@dataclass(eq=False)
class _Activations(Dataset[tuple[torch.Tensor, Target]]):
    """Cached activations in a memory map, float16. An index counts images over all epochs. Each epoch uses one view of each image."""

    rows: NDArray[np.float16]
    labels: Sequence[Target]
    views: int

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, Target]:
        epoch, place = divmod(index, len(self.labels))
        row = self.rows[(epoch % self.views) * len(self.labels) + place]
        return torch.from_numpy(row.astype(np.float32)), self.labels[place]


def cache_activations(
    backbone: Backbone, images: TrainingImages, augment: v2.Transform | None, options: BatchOptions, *, steps: range, cache: CacheOptions
) -> TrainingBatches | None:
    """Run the frozen layers of ``backbone`` on the validation images and on views of the training images made by ``augment``.

    Returns:
        Batches of the stored activations for ``steps``, and the trainable part of the network. None if the network cannot be split before
        the first trained stage, or the activations would need more than ``cache.max_gb``.
    """
    train, spec = [*images.train, *images.replay], backbone.spec
    example = next(batches(train[:EXAMPLES], spec))
    parts = split_frozen(backbone.model.eval(), cache.trained, torch.from_numpy(example))
    if parts is None:
        _log.info("activation cache is off: %s cannot be split before its first trained stage", backbone.architecture)
        return None
    with torch.no_grad():
        shape = tuple(parts.frozen(torch.from_numpy(example)).shape[1:])
    # Count all epochs of the training, also those before a resume. A resumed training then uses the same views.
    epochs = math.ceil(steps.stop / steps_per_epoch(len(images.train), options.batch_size))
    capacity = int(cache.max_gb * 1e9 / (2 * math.prod(shape))) - len(images.val)
    views = min(cache.views if augment else 1, epochs, capacity // len(train))
    if views < 1:
        _log.info("activation cache is off: it would need more than %g GB. Raise --cache-gb to use it.", cache.max_gb)
        return None
    run = choose_engine(parts.frozen, example, views * len(train) + len(images.val), options.device)
    augmented = ImageDataset(train, spec, augment=augment, seed=options.seed, epochs=views)
    rows = _fill(cache.folder / "train.npy", shape, run, in_order(augmented, options), cache.progress)
    val: Batches | None = None
    if images.val:
        val_rows = _fill(cache.folder / "val.npy", shape, run, in_order(ImageDataset(images.val, spec), options), cache.progress)
        val = DataLoader(_Activations(val_rows, [target_of(sample) for sample in images.val], 1), options.batch_size)
    sampler = make_sampler(len(images.train), options, steps, len(images.replay))
    return TrainingBatches(
        replace(backbone, model=parts.trainable),
        DataLoader(_Activations(rows, [target_of(sample) for sample in train], views), batch_sampler=sampler),
        val,
    )


def _fill(
    path: Path, shape: tuple[int, ...], run: FeatureFunction, loader: DataLoader[tuple[torch.Tensor, Target]], progress: Progress
) -> NDArray[np.float16]:
    """Compute activations, and write them to a memory map at ``path``, float16 ``[images, *shape]``."""
    count = len(loader.dataset)  # type: ignore[arg-type]  # ImageDataset has a length
    rows: np.memmap[Any, np.dtype[np.float16]] = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=(count, *shape))
    with path.open("r+b") as file:  # a full disk then raises an error here, instead of a bus error when a page is written
        reserve_space(file, path.stat().st_size)
    done = 0
    for batch, _ in loader:
        out = run(batch.numpy())
        rows[done : done + len(out)] = np.clip(out, -LARGEST, LARGEST)
        done += len(out)
        progress("running the frozen layers", done, count)
    rows.flush()
    return rows
