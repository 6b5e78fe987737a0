"""Distillation without labels: a small backbone learns to predict the features of a larger network on the images of a folder."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from timm.optim import param_groups_weight_decay
from torch import nn
from torch.utils.data import DataLoader
from torchvision.transforms import InterpolationMode, v2

from edgetl.core.licenses import most_restrictive
from edgetl.core.output.folders import locked_folder
from edgetl.core.preprocess import PreprocessSpec
from edgetl.core.progress import Progress, silent
from edgetl.data.folder import Sample
from edgetl.data.loading import Target
from edgetl.errors import ConfigError
from edgetl.pretrain.loop import CHECKPOINT_NAME, CHECKPOINT_STEPS, Checkpoint, Descent, descend
from edgetl.pretrain.options import DistillConfig
from edgetl.pretrain.unlabeled.inputs import CropSide, Inputs, load_start, read_inputs
from edgetl.pretrain.unlabeled.writer import check_empty, publish
from edgetl.train.artifacts.continued import ContinuedRecord
from edgetl.train.artifacts.loading.build import fixed_size
from edgetl.train.artifacts.loading.lineage import seen_by_ancestors
from edgetl.train.artifacts.loading.load import load_backbone
from edgetl.train.config.options import BackboneConfig, TrainConfig
from edgetl.train.config.plan import steps_per_epoch
from edgetl.train.inputs.dataset import TrainingImages, training_batches
from edgetl.train.inputs.features import FeatureFunction, choose_engine
from edgetl.train.networks.backbone import Backbone, feature_extractor

# Images from which the linear map and the scale of the teacher's features are measured.
FIRST_IMAGES = 1000
# Ridge strength of this map, relative to the mean square of the backbone's features.
RIDGE = 0.1
SMALLEST_SPREAD = 1e-2
SMALLEST_CROP = 0.3
# Sides are multiples of 32 px, the stride of most networks.
SIDE = CropSide(0.75, 32)
WEIGHT_DECAY = 0.02
# Number of images to report to `choose_engine`: large, because converting the teacher to a faster engine always pays off.
MANY = 10**6


def distill_unlabeled(data: Path, out: Path, config: TrainConfig, own: DistillConfig, *, progress: Progress = silent) -> ContinuedRecord:
    """Distill a larger network into a backbone on the images of a folder, without labels, and write the backbone into ``out``.

    The backbone learns to predict the teacher's features of the same random crops through a linear map (FitNets: Romero et al. 2015,
    arXiv:1412.6550). The map starts as a ridge regression from the features of the start.

    A checkpoint is written at regular intervals. After an interruption, the same call continues from it.

    Args:
        data: folder of images. Folders in it have no meaning.
        out: folder to write, in timm's format: ``load_backbone`` loads it as ``local-dir:OUT``.
        config: options of the start, device and seed.
        own: teacher and options of the training.
        progress: called for each image and step.

    Returns:
        The record in ``distillation.json``.

    Raises:
        ConfigError: there is no teacher, it is the start itself, or ``out`` has other files, or overlaps ``data``.
        DataError: there are fewer than ``MIN_IMAGES`` different images.
        BackboneError: a network cannot be loaded, or the start is not a timm network.
        TrainingError: the loss became infinite or not a number.
    """
    started = time.monotonic()
    with locked_folder(out, inputs={"the folder of images": data}):
        check_empty(out)
        seen = seen_by_ancestors(config.backbone, own.teacher)
        training = _prepare(data, config, own, progress)
        before, path = training.explained(), out / CHECKPOINT_NAME
        identity = training.inputs.identity(own.model_dump_json())
        checkpoint = Checkpoint(path, training.module, CHECKPOINT_STEPS, identity=identity, inputs="backbone, teacher, images or options")
        _train(training, own, checkpoint, progress)
        seconds = round(time.monotonic() - started + checkpoint.seconds_before, 1)
        measured = {"explained_before": before, "explained": training.explained()}
        facts = {"method": "distillation", "teacher": training.teacher.name, "steps": own.steps, "seconds": seconds, **measured}
        return publish(out, training.inputs, training.module.network, seen=seen, facts=facts)


def _train(training: _Training, own: DistillConfig, checkpoint: Checkpoint, progress: Progress) -> None:
    """Train from the step of the checkpoint, if there is one."""
    module, inputs = training.module, training.inputs
    batches = training.batches(inputs.train, range(checkpoint.restore(), own.steps))
    optimizer = torch.optim.AdamW(param_groups_weight_decay(module, WEIGHT_DECAY), lr=own.lr)
    descent = Descent(module.train(), optimizer, own.steps, inputs.options.seed, f"--lr (now {own.lr:g})")
    descend(descent, batches, checkpoint, inputs.options.device, progress)


@dataclass(frozen=True)
class _Training:
    """Networks and images of a distillation.

    Attributes:
        inputs: start and images. The lineage of the start has that of the teacher.
        teacher: the teacher.
        module: loss, with the network that trains.
    """

    inputs: Inputs
    teacher: Backbone
    module: FeatureDistillation

    def batches(self, samples: Sequence[Sample], steps: range) -> DataLoader[tuple[torch.Tensor, Target]]:
        """Load the random views of ``steps``: images, normalized for the start, and labels, which are not used."""
        spec = self.inputs.spec
        return training_batches(TrainingImages(samples, ()), spec, _augmentation(spec), self.inputs.options, steps=steps)

    def explained(self) -> float:
        """Return the explained variance (see ``ContinuedRecord``) on one random view of each held image."""
        held = self.inputs.held
        return self.module.explained(self.batches(held, range(steps_per_epoch(len(held), self.inputs.options.batch_size))))


def _prepare(data: Path, config: TrainConfig, own: DistillConfig, progress: Progress) -> _Training:
    """Load both networks, read the images, and fit the first linear map."""
    start, teacher = _load(config.backbone, own)
    inputs = read_inputs(data, start, config, SIDE, own.batch_size, progress)
    torch.manual_seed(config.run.seed)
    network = feature_extractor(start.model, start.head_name).to(memory_format=torch.channels_last)
    module = FeatureDistillation(network, _teacher_features(teacher, inputs.spec, inputs.options.device), start.head.in_features)
    training = _Training(inputs, teacher, module)
    count = min(steps_per_epoch(len(inputs.train), own.batch_size), math.ceil(FIRST_IMAGES / own.batch_size))
    module.fit([images for images, _ in training.batches(inputs.train, range(count))])
    return training


def _load(config: BackboneConfig, own: DistillConfig) -> tuple[Backbone, Backbone]:
    """Load the start, with the license and the lineage of both networks, and the teacher."""
    if own.teacher is None:
        raise ConfigError("there is no teacher. Give a larger network with --teacher, such as a run or a name of `edgetl models`.")
    start = load_start(config)
    teacher = load_backbone(BackboneConfig(name=own.teacher, weights_dir=config.weights_dir), 2)
    if teacher.weights_sha256 is not None and teacher.weights_sha256 == start.weights_sha256:
        raise ConfigError(f"the teacher {own.teacher} is the backbone itself. Give a larger network with --teacher.")
    parents = (*(parent.model_copy(update={"kind": "teacher"}) for parent in teacher.parents), *start.parents)
    license = most_restrictive(parent.license for parent in parents)
    return replace(start, parents=parents, license=license), teacher


def _augmentation(spec: PreprocessSpec) -> v2.Transform:
    """Random crops, flips and colors. The targets change with the view, so a flipped digit has the features of a flipped digit."""
    crop = v2.RandomResizedCrop(spec.input_size, scale=(SMALLEST_CROP, 1.0), interpolation=InterpolationMode.BICUBIC)
    return v2.Compose([crop, v2.RandomHorizontalFlip(), v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4)], 0.6)])


class _Renormalized(nn.Module):
    """Network for images that are normalized for another one. A network with a fixed size gets resized images."""

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, network: nn.Module, own: PreprocessSpec, other: PreprocessSpec, *, resize: bool) -> None:
        super().__init__()
        self.network, self.size = network, own.input_size if resize else None
        theirs, ours = ((torch.tensor(item.mean), torch.tensor(item.std)) for item in (other, own))
        self.register_buffer("scale", (theirs[1] / ours[1]).view(3, 1, 1))
        self.register_buffer("shift", ((theirs[0] - ours[0]) / ours[1]).view(3, 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        images = images * self.scale + self.shift
        if self.size is not None:
            images = F.interpolate(images, self.size, mode="bicubic")
        features: torch.Tensor = self.network(images)
        return features


def _teacher_features(teacher: Backbone, spec: PreprocessSpec, device: str) -> FeatureFunction:
    """Return the function from images, normalized as in ``spec``, to the teacher's features."""
    network = feature_extractor(teacher.model, teacher.head_name)
    network = _Renormalized(network, teacher.spec, spec, resize=fixed_size(teacher.model)).eval()
    return choose_engine(network, np.zeros((2, 3, *spec.input_size), np.float32), MANY, device)


class FeatureDistillation(nn.Module):
    """Loss: smooth-L1 error between a linear map of a network's features and the standardized features of a teacher.

    Args:
        network: network without a head, ``[batch, 3, H, W]`` → ``[batch, width]``.
        teacher: function from the same images to the teacher's features.
        width: number of features of ``network``.
    """

    target_mean: torch.Tensor
    target_spread: torch.Tensor

    def __init__(self, network: nn.Module, teacher: FeatureFunction, width: int) -> None:
        super().__init__()
        self.network, self.width, self._teacher = network, width, teacher

    @torch.no_grad()
    def fit(self, batches: Sequence[torch.Tensor]) -> None:
        """Measure the scale of the teacher's features, and fit the linear map by ridge regression. Both networks are not changed."""
        targets = torch.cat([self._targets(images) for images in batches])
        features = torch.cat([self.network.eval()(images) for images in batches])
        self.register_buffer("target_mean", targets.mean(dim=0))
        self.register_buffer("target_spread", targets.std(dim=0) + SMALLEST_SPREAD)
        center = features.mean(dim=0)
        rows, wanted = (features - center).double(), self._standardized(targets).double()
        gram = rows.T @ rows
        gram += RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
        kernel = torch.linalg.solve(gram, rows.T @ wanted).T.float()
        self.map = nn.Linear(self.width, targets.shape[1])
        self.map.weight.copy_(kernel)
        self.map.bias.copy_(-kernel @ center)

    def forward(self, images: torch.Tensor, _: torch.Tensor | None = None) -> torch.Tensor:
        """Return the loss for ``images``, float32 ``[batch, 3, H, W]``. Labels are not used."""
        features = self.network(images.contiguous(memory_format=torch.channels_last))
        return F.smooth_l1_loss(self.map(features), self._standardized(self._targets(images)))

    @torch.no_grad()
    def explained(self, batches: Iterable[Sequence[torch.Tensor]]) -> float:
        """Return the ratio of the variance of the teacher's features that the map explains, 1 at best. May be negative."""
        self.eval()
        pairs = [(self.map(self.network(images)), self._standardized(self._targets(images))) for images, _ in batches]
        predicted, targets = (torch.cat(part) for part in zip(*pairs, strict=True))
        return float(1 - (predicted - targets).square().sum() / (targets - targets.mean(dim=0)).square().sum())

    def _targets(self, images: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self._teacher(images.contiguous().cpu().numpy())).to(images.device)

    def _standardized(self, targets: torch.Tensor) -> torch.Tensor:
        return (targets - self.target_mean) / self.target_spread
