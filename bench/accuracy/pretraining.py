"""Distillation from a larger network on unlabeled images of the user. ``edgetl distill`` is the command.

``python -m bench.accuracy.pretraining``. The training images of a set train a backbone to predict the features of the larger network,
without their labels. A linear probe before and after it is fitted on 20 images of each class and on all training images, and tested on the
other quarter of the images. ``bench.accuracy.self_supervised`` measures training without a larger network.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from sklearn.model_selection import StratifiedShuffleSplit
from timm.optim import param_groups_weight_decay
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torchvision.transforms import InterpolationMode, v2

from bench.paths import SHARED
from edgetl.core.images.decode import load_image
from edgetl.core.preprocess import Side
from edgetl.core.system.host import fingerprint, versions
from edgetl.data.folder import Sample, scan
from edgetl.data.loading import labels_of
from edgetl.train.artifacts.loading.load import load_backbone
from edgetl.train.config.options import TrainConfig
from edgetl.train.config.weights_dir import EMBEDDED_BACKBONE
from edgetl.train.heads.linear import fit_logistic
from edgetl.train.heads.modules import LabeledFeatures
from edgetl.train.inputs.features import FeatureFunction, FrozenFeatures, choose_engine
from edgetl.train.loop.optimizer import warm_cosine
from edgetl.train.networks.backbone import Backbone, feature_extractor

SETS = ("trashnet", "sign-digits", "pacs/sketch")
MOBILENET = f"local-dir:{SHARED / 'weights/mobilenetv2_100.imagenet'}"
BACKBONES = {"embedded": EMBEDDED_BACKBONE, "mobilenetv2": MOBILENET}
FEW = 20
# Different samples of 20 labeled images per class. Their accuracies are averaged.
DRAWS = 3
BATCH = 64
WARM_UP = 0.1
CLIP_NORM = 5.0
# Batches that give the scale of the teacher's features and the start of the linear map.
FIRST_BATCHES = 16
RIDGE, SMALLEST_SPREAD = 0.1, 1e-2
# Number of images to report to `choose_engine`: large, because converting the teacher to a faster engine always pays off.
MANY = 10**6


@dataclass(frozen=True)
class Options:
    """Options of a continued pretraining.

    Attributes:
        epochs: passes over the images.
        side: height and width of a training image, px.
        probe_side: height and width of the input of the linear probe, px.
        seed: seed of the split, the views and the new layers.
        lr: highest learning rate of AdamW.
        teacher_scale: side of the teacher's images relative to ``side``.
        stored: shorter edge of the images in memory, px.
    """

    epochs: int
    side: Side
    probe_side: Side
    seed: int
    lr: float
    teacher_scale: int
    stored: int


class Row(NamedTuple):
    """Test accuracies of a method with 20 images per class and with all, and the CPU time of its training, s."""

    method: str
    accuracies: list[float]
    seconds: float


def main() -> None:
    """Print one row for each set, backbone and seed."""
    parser = argparse.ArgumentParser(prog="python -m bench.accuracy.pretraining", description=__doc__)
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--backbones", default=",".join(BACKBONES), help="embedded, mobilenetv2, or both with a comma")
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--lr", type=float, default=1e-3, help="highest learning rate of AdamW")
    parser.add_argument("--teacher-scale", type=int, default=1, help="side of the teacher's images relative to --side")
    parser.add_argument("--stored", type=int, default=160, help="shorter edge of the images in memory, px")
    parser.add_argument("--side", type=int, default=96, help="height and width of a training image, px")
    parser.add_argument("--probe-side", type=int, default=128, help="height and width of the input of the linear probe, px")
    given = parser.parse_args()
    if not (SHARED / "data").is_dir():
        parser.exit(0, f"nothing was measured: the reference images are not at {SHARED}. Set EDGETL_SHARED to their folder.\n")
    host = fingerprint()
    print(f"{given.epochs} epochs at {given.side} px, teacher at {given.teacher_scale * given.side} px, lr {given.lr:g}")
    print(f"{host['cpu']}, {host['flags']}; torch {versions()['torch']}, timm {versions()['timm']}")
    print(f"| set | backbone | seed | method | {FEW} per class | all labels | CPU s |\n" + "|---" * 7 + "|")
    wanted = itertools.product(given.sets.split(","), given.backbones.split(","), map(int, given.seeds.split(",")))
    for name, backbone, seed in wanted:
        options = Options(given.epochs, given.side, given.probe_side, seed, given.lr, given.teacher_scale, given.stored)
        for row in measure(SHARED / "data" / name, BACKBONES[backbone], options):
            figures = " | ".join(f"{value:.4f}" for value in row.accuracies)
            print(f"| {name} | {backbone} | {seed} | {row.method} | {figures} | {row.seconds:.0f} |", flush=True)


def measure(root: Path, name: str, options: Options) -> Iterator[Row]:
    """Yield the test accuracies of the linear probe of a backbone, before and after the distillation."""
    folder = scan(root)
    labels = labels_of(folder.samples)
    ((train, test),) = StratifiedShuffleSplit(1, test_size=0.25, random_state=options.seed).split(labels, labels)
    size = (options.probe_side, options.probe_side)
    backbone = load_backbone(TrainConfig.from_options(backbone=name, input_size=size).backbone, 2)
    original = feature_extractor(backbone.model, backbone.head_name)

    def probe(network: nn.Module) -> list[float]:
        return test_probe(FrozenFeatures(network, backbone.spec, images=len(labels))(folder.samples), labels, train, test)

    yield Row("none", probe(copy.deepcopy(original)), 0.0)
    images = read_images([folder.samples[index] for index in train], options.stored)
    begin = time.process_time()
    torch.manual_seed(options.seed)
    network = copy.deepcopy(original).to(memory_format=torch.channels_last)
    distill(network, backbone, images, options)
    seconds = time.process_time() - begin
    yield Row("distillation", probe(network.eval()), seconds)


def test_probe(features: NDArray[np.float32], labels: NDArray[np.int64], train: NDArray[np.int64], test: NDArray[np.int64]) -> list[float]:
    """Return the test accuracies with 20 labeled images per class and with all training images."""
    found = []
    for rows in (*(draw_few(labels, train, draw) for draw in range(DRAWS)), train):
        head = fit_logistic(LabeledFeatures(features[rows], labels[rows]), int(labels.max()) + 1, seed=0)
        predicted = (features[test] @ head.weight.T + head.bias).argmax(axis=1)
        found.append(float((predicted == labels[test]).mean()))
    return [float(np.mean(found[:DRAWS])), found[DRAWS]]


def draw_few(labels: NDArray[np.int64], train: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Draw 20 of the training images of each class."""
    order = np.random.default_rng(seed).permutation(train)
    return np.concatenate([order[labels[order] == label][:FEW] for label in np.unique(labels)])


def read_images(samples: Sequence[Sample], edge: int) -> list[Image.Image]:
    """Read images into memory, with a shorter edge of ``edge`` px."""
    images = []
    for sample in samples:
        image = load_image(sample.path)
        scale = edge / min(image.size)
        width, height = (round(length * scale) for length in image.size)
        images.append(image.resize((width, height), Image.Resampling.BICUBIC))
    return images


def draw_batches(
    images: list[Image.Image], view: Callable[[Image.Image], Any], options: Options, views: int
) -> Iterator[list[torch.Tensor]]:
    """Yield batches of ``views`` random views of each image, each float32 ``[batch, 3, side, side]``."""
    for epoch in range(options.epochs):
        order = np.random.default_rng([options.seed, epoch]).permutation(len(images))
        for start in range(0, len(order) - BATCH + 1, BATCH):
            chosen = [images[index] for index in order[start : start + BATCH]]
            yield [torch.stack([view(image) for image in chosen]) for _ in range(views)]


def descend(module: nn.Module, batches: Iterator[list[torch.Tensor]], steps: int, lr: float) -> None:
    """Train by AdamW. ``module`` maps the views of a batch to the loss."""
    optimizer = torch.optim.AdamW(param_groups_weight_decay(module, 0.02), lr=lr)
    schedule = LambdaLR(optimizer, lambda step: warm_cosine(step, steps, WARM_UP))
    module.train()
    for views in batches:
        loss = module(*(view.contiguous(memory_format=torch.channels_last) for view in views))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()


def distill(network: nn.Module, backbone: Backbone, images: list[Image.Image], options: Options) -> None:
    """Distillation of the features of the ImageNet MobileNetV2 (FitNets: Romero et al. 2015, arXiv:1412.6550)."""
    side = options.teacher_scale * options.side
    teacher = load_backbone(TrainConfig.from_options(backbone=MOBILENET, input_size=(side, side)).backbone, 2)
    frozen = feature_extractor(teacher.model, teacher.head_name)
    engine = choose_engine(frozen, np.zeros((2, 3, side, side), np.float32), MANY, "cpu")
    view = v2.Compose([*weak_view(side), v2.Normalize(backbone.spec.mean, backbone.spec.std)])
    first = itertools.islice(draw_batches(images, view, options, 1), FIRST_BATCHES)
    module = Distillation(network, engine, [views[0] for views in first], scale=options.teacher_scale)
    descend(module, draw_batches(images, view, options, 1), count_steps(images, options), options.lr)


class Distillation(nn.Module):
    """Loss of the features of ``student`` beside the standardized features of ``teacher``, through a linear map.

    The map starts as the ridge regression from the features of the student before the training. The teacher's images are larger than the
    student's by the factor ``scale``.
    """

    def __init__(self, student: nn.Module, teacher: FeatureFunction, first: list[torch.Tensor], *, scale: int) -> None:
        super().__init__()
        self.student, self._teacher = nn.Sequential(nn.AvgPool2d(scale), student).eval(), teacher
        targets = torch.cat([self._targets(batch) for batch in first])
        with torch.no_grad():
            inputs = torch.cat([self.student(batch) for batch in first])
        self._mean, self._spread = targets.mean(dim=0), targets.std(dim=0) + SMALLEST_SPREAD
        self.map = nn.Linear(inputs.shape[1], targets.shape[1])
        center = inputs.mean(dim=0)
        rows, wanted = (inputs - center).double(), ((targets - self._mean) / self._spread).double()
        gram = rows.T @ rows
        gram += RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
        kernel = torch.linalg.solve(gram, rows.T @ wanted).T.float()
        with torch.no_grad():
            self.map.weight.copy_(kernel)
            self.map.bias.copy_(-kernel @ center)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the smooth-L1 error of the features of ``images``."""
        return F.smooth_l1_loss(self.map(self.student(images)), (self._targets(images) - self._mean) / self._spread)

    def _targets(self, images: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self._teacher(images.contiguous().numpy()))


def weak_view(side: int) -> list[nn.Module]:
    """Random crop, flip and colors for the distillation, whose teacher needs realistic images."""
    return [
        v2.RandomResizedCrop(side, scale=(0.3, 1.0), interpolation=InterpolationMode.BICUBIC),
        v2.RandomHorizontalFlip(),
        v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4)], 0.6),
        v2.PILToTensor(),
        v2.ToDtype(torch.float32, scale=True),
    ]


def count_steps(images: list[Image.Image], options: Options) -> int:
    """Return the number of optimizer steps."""
    return options.epochs * (len(images) // BATCH)


if __name__ == "__main__":
    main()
