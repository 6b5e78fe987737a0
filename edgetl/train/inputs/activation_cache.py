"""What the frozen half of a network says of each training picture, computed once and kept on the disk while the other half trains."""

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

from edgetl.core.files.portable import reserve_space
from edgetl.core.progress import Progress, silent
from edgetl.data.folder import Sample
from edgetl.data.loading import Target, batches, target_of
from edgetl.data.split import Splits
from edgetl.train.config.options import TrainConfig
from edgetl.train.config.plan import steps_per_epoch
from edgetl.train.inputs.dataset import ImageDataset, in_order, make_sampler
from edgetl.train.inputs.features import FeatureFunction, choose_engine
from edgetl.train.networks.backbone import Backbone
from edgetl.train.networks.partition import split_frozen
from edgetl.train.networks.stages import Stage

_log = logging.getLogger(__name__)

EXAMPLES = 4
LARGEST_HALF = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class Workplace:
    """Where a training runs.

    Attributes:
        device: ``cpu`` or ``cuda``.
        folder: for temporary files.
        progress: told after each piece of work.
    """

    device: str
    folder: Path
    progress: Progress = silent


@dataclass(frozen=True)
class Cached:
    """The trainable half of a network, and its inputs.

    Attributes:
        backbone: whose model begins at the border; its parameters keep their names.
        train: batches of activations and labels, one for each step.
        val: the validation images' activations.
        views: how many random pictures of each training image there are.
    """

    backbone: Backbone
    train: DataLoader[tuple[torch.Tensor, Target]]
    val: DataLoader[tuple[torch.Tensor, Target]]
    views: int


class _Activations(Dataset[tuple[torch.Tensor, Target]]):
    """Rows of a memory map, float16 on the disk; an index counts images through all epochs, and an epoch shows one of the views."""

    def __init__(self, rows: NDArray[np.float16], labels: Sequence[Target], views: int) -> None:
        self.rows = rows
        self.labels = labels
        self.views = views

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, Target]:
        epoch, place = divmod(index, len(self.labels))
        row = self.rows[(epoch % self.views) * len(self.labels) + place]
        return torch.from_numpy(row.astype(np.float32)), self.labels[place]


def cache_activations(
    backbone: Backbone, trained: Sequence[Stage], splits: Splits, augment: v2.Transform | None, config: TrainConfig,
    *, steps: range, place: Workplace, replay: Sequence[Sample] = (),
) -> Cached | None:  # fmt: skip
    """Run the frozen half of ``backbone`` on ``config.cache_views`` random views of each training image and on the validation images.

    Args:
        backbone: the whole network.
        trained: the stages that learn.
        splits: training and validation images.
        augment: makes a random view; none means one view, the evaluation's.
        config: seed, batch size, bounds.
        steps: of the training.
        place: its folder takes the memory maps, and the caller removes it.
        replay: images that are shown again beside the training images.

    Returns:
        None where the network cannot be cut there, or its activations would take more than ``config.cache_gb`` on the disk.
    """
    train, val = [*splits.train, *replay], splits.val or splits.train
    model, spec = backbone.model.eval(), backbone.spec
    example = next(batches(train[:EXAMPLES], spec))
    parts = split_frozen(model, trained, torch.from_numpy(example))
    if parts is None:
        _log.info("the frozen layers of %s run at each step: it cannot be cut there", backbone.architecture)
        return None
    with torch.no_grad():
        shape = tuple(parts.frozen(torch.from_numpy(example)).shape[1:])
    epochs = math.ceil(steps.stop / steps_per_epoch(len(splits.train), config.optim.batch_size))
    views = min(config.run.cache_views if augment else 1, _count_views(config, shape, len(train), len(val), epochs))
    if views < 1:
        _log.info("the frozen layers run at each step: their outputs would take more than %g GB (--cache-gb)", config.run.cache_gb)
        return None
    run = choose_engine(parts.frozen, example, views * len(train) + len(val), place.device)
    pictures = ImageDataset(train, spec, augment=augment, seed=config.run.seed, epochs=views)
    rows = _fill(place.folder / "train.npy", pictures, shape, run, config, place.progress)
    seen = ImageDataset(val, spec, augment=None, seed=config.run.seed)
    val_rows = _fill(place.folder / "val.npy", seen, shape, run, config, place.progress)
    sampler = make_sampler([sample.label for sample in splits.train], config, steps, len(replay))
    return Cached(
        replace(backbone, model=parts.trainable),
        DataLoader(_Activations(rows, [target_of(sample) for sample in train], views), batch_sampler=sampler),
        DataLoader(_Activations(val_rows, [target_of(sample) for sample in val], 1), config.optim.batch_size),
        views,
    )


def _count_views(config: TrainConfig, shape: tuple[int, ...], train: int, val: int, epochs: int) -> int:
    """As many as the whole training has epochs (a resumed one must see the same), as were asked for, and as fit on the disk."""
    room = int(config.run.cache_gb * 1e9 / (2 * math.prod(shape))) - val
    return min(config.run.cache_views, epochs, room // max(1, train))


def _fill(
    path: Path, images: ImageDataset, shape: tuple[int, ...], run: FeatureFunction, config: TrainConfig, progress: Progress
) -> NDArray[np.float16]:
    """Float16 ``[len(images), *shape]`` in a memory map at ``path``."""
    rows: np.memmap[Any, np.dtype[np.float16]] = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=(len(images), *shape))
    with path.open("r+b") as file:  # a full disk is an error now, and not a bus error when a page is written
        reserve_space(file, path.stat().st_size)
    done = 0
    for batch, _ in in_order(images, config):
        out = run(batch.numpy())
        rows[done : done + len(out)] = np.clip(out, -LARGEST_HALF, LARGEST_HALF)
        done += len(out)
        progress("running the frozen layers", done, len(images))
    rows.flush()
    return rows
