"""Distillation in a pretraining: frozen teacher, and student with its auxiliary layers."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from timm.optim import param_groups_weight_decay
from timm.utils import ModelEmaV3
from torch import nn

from edgetl.errors import BackboneError
from edgetl.pretrain.compression import Coordinates, stage_maps
from edgetl.pretrain.images import Views
from edgetl.pretrain.recipe import Recipe
from edgetl.train.artifacts.loading.build import build_saved
from edgetl.train.artifacts.loading.catalogue import Teacher
from edgetl.train.config.weights_dir import LOCAL_DIR, local_dir_weights, sha256_of
from edgetl.train.inputs.features import choose_engine
from edgetl.train.networks.backbone import feature_extractor, find_head
from edgetl.train.networks.distillation import distillation_loss

# Number of batches over which the mean and the principal components of the teacher's features are measured.
STATISTICS_STEPS = 24
COMPONENTS = 256
SMALLEST_SPREAD = 1e-2
# Components are divided by the square root of their standard deviation (half whitening). Smaller standard deviations count as this
# fraction of the largest.
SMALLEST_COMPONENT = 0.05
LABEL_SMOOTHING = 0.1
# Number of images to report to `choose_engine`: large, because converting the teacher to a faster engine always pays off.
MANY = 10**6


@dataclass(frozen=True)
class TeacherNetwork:
    """Frozen distillation teacher.

    Attributes:
        origin: name, architecture, license and hash of the weights.
        model: the whole network, on the CPU and in evaluation mode.
        head_name: name of its classifier.
    """

    origin: Teacher
    model: nn.Module
    head_name: str

    @property
    def head(self) -> nn.Linear:
        """Classifier of the teacher, a linear layer on pooled features."""
        head = self.model.get_submodule(self.head_name)
        assert isinstance(head, nn.Linear)
        return head


def load_teacher(name: str, weights: Path | None, *, pads_as_torch: bool) -> TeacherNetwork:
    """Load the teacher, with its own classes, from a folder in timm's format.

    Args:
        name: name of the folder.
        weights: parent folder.
        pads_as_torch: use PyTorch's padding even if the teacher's configuration has TensorFlow's. The feature maps of a teacher that is
            compressed must be aligned with the student's. At odd input sizes both paddings are equal.

    Raises:
        BackboneError: the folder is missing, or the teacher cannot be built or has another normalization than the recipes.
    """
    folder = weights / name if weights else None
    if folder is None or not (folder / "config.json").is_file():
        raise BackboneError(f"the recipe's teacher {name} is not in {weights or 'any folder'}. Give its parent folder with --weights-dir.")
    changes = {"pad_type": ""} if pads_as_torch else {}
    model, saved = build_saved(f"{LOCAL_DIR}{folder}", pretrained=True, classes=None, **changes)
    model.eval()
    cfg = saved.pretrained_cfg
    if tuple(cfg["mean"]) != (0.5, 0.5, 0.5) or tuple(cfg["std"]) != (0.5, 0.5, 0.5):
        raise BackboneError(
            f"the teacher {name} needs images with mean {cfg['mean']} and std {cfg['std']}, but recipes use mean 0.5 and std 0.5 (-1..1). "
            f"Choose another teacher."
        )
    facts = {"name": name, "architecture": saved.architecture, "license": cfg.get("license")}
    origin = Teacher.model_validate({**facts, "weights_sha256": sha256_of(local_dir_weights(folder))})
    return TeacherNetwork(origin, model.requires_grad_(False), find_head(model))


class TeacherFeatures:
    """Teacher features: pooled features, and the feature maps of its stages in the coordinates of a compressed student.

    Args:
        teacher: the frozen teacher.
        coordinates: basis of each stage of the student. Without them only pooled features are computed.
        side: height and width of an image, px.
        device: ``cpu`` or ``cuda``.
    """

    def __init__(self, teacher: TeacherNetwork, coordinates: list[Coordinates], side: int, device: str) -> None:
        self.network = teacher
        self._shapes = [] if not coordinates else _map_shapes(teacher.model, coordinates, side)
        network = _FlatMaps(teacher.model, coordinates) if coordinates else feature_extractor(teacher.model, teacher.head_name)
        self._engine = choose_engine(network, np.zeros((2, 3, side, side), np.float32), MANY, device)

    def __call__(self, images: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return pooled features, float32 ``[batch, width]``, and feature maps ``[batch, channels, h, w]``, on the images' device."""
        outputs = torch.from_numpy(self._engine(images.detach().float().cpu().numpy())).to(images.device)
        if not self._shapes:
            return outputs, []
        parts = torch.split(outputs, [math.prod(shape) for shape in self._shapes], dim=1)
        maps = [part.view(-1, *shape) for part, shape in zip(parts, self._shapes, strict=True)]
        return maps[-1].mean(dim=(2, 3)), maps


class _FlatMaps(nn.Module):
    """All feature maps of a network, flattened to one row per image. The maps of the stages are in a student's coordinates."""

    def __init__(self, network: nn.Module, coordinates: list[Coordinates]) -> None:
        super().__init__()
        self.network = copy.deepcopy(network)
        for index, basis in enumerate(coordinates):  # buffers move to a device together with the network
            self.register_buffer(f"mean_{index}", basis.mean)
            self.register_buffer(f"basis_{index}", basis.basis)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        *stages, head = stage_maps(self.network, images)
        bases = [Coordinates(self.get_buffer(f"mean_{index}"), self.get_buffer(f"basis_{index}")) for index in range(len(stages))]
        projected = [basis.of(maps) for basis, maps in zip(bases, stages, strict=True)]
        return torch.cat([maps.flatten(1) for maps in (*projected, head)], dim=1)


def _map_shapes(network: nn.Module, coordinates: list[Coordinates], side: int) -> list[tuple[int, int, int]]:
    with torch.no_grad():
        *stages, head = stage_maps(network, torch.zeros(1, 3, side, side))
    widths = [*(basis.basis.shape[1] for basis in coordinates), head.shape[1]]
    return [(width, *maps.shape[2:]) for width, maps in zip(widths, (*stages, head), strict=True)]


class Distillation(nn.Module):
    """Student with auxiliary layers: a linear map to the teacher's features, a head for its classes, and a head for the labels.

    Args:
        recipe: weights of the losses, image size and EMA decay.
        student: network without a head.
        teacher: features of the teacher. ``None`` trains on labels only.
        views: training batches, over which the statistics of the teacher's features are measured.
        labels: number of classes of the labeled images.
    """

    feature_mean: torch.Tensor
    feature_spread: torch.Tensor
    feature_components: torch.Tensor
    map_variances: torch.Tensor

    def __init__(self, recipe: Recipe, student: nn.Module, teacher: TeacherFeatures | None, views: Views, *, labels: int) -> None:
        super().__init__()
        self.recipe = recipe
        self.student = student.to(memory_format=torch.channels_last)
        self.ema = ModelEmaV3(self.student, decay=recipe.ema_decay, use_warmup=True).requires_grad_(False)
        self._teacher = (teacher,)  # a tuple hides the module, so its tensors are neither trained nor saved
        with torch.no_grad():
            width = self.student.eval()(torch.zeros(1, 3, recipe.side, recipe.side)).shape[1]
        self.student.train()
        statistics = (
            Statistics.of(teacher, views) if teacher else Statistics(torch.zeros(1), torch.ones(1), torch.ones(1, 1), torch.ones(0))
        )
        self.register_buffer("feature_mean", statistics.mean)
        self.register_buffer("feature_spread", statistics.spread)
        self.register_buffer("feature_components", statistics.components)
        self.register_buffer("map_variances", statistics.map_variances)
        self.feature_map = nn.Linear(width, statistics.components.shape[1])
        self.logit_head = nn.Linear(width, teacher.network.head.out_features if teacher else 1)
        if teacher and recipe.losses.maps:  # the student's features match the teacher's one by one
            self.logit_head.load_state_dict(teacher.network.head.state_dict())
        self.label_head = nn.Linear(width, max(1, labels))

    def forward(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the weighted sum of the recipe's losses.

        Args:
            images: float32 ``[batch, 3, side, side]`` in -1..1.
            labels: int64 ``[batch]``, negative for images without a label.
        """
        inputs = images.contiguous(memory_format=torch.channels_last)
        losses, maps = self.recipe.losses, []
        if losses.maps:
            maps = stage_maps(self.student, inputs)
            features = maps[-1].mean(dim=(2, 3))
        else:
            features = self.student(inputs)
        total = features.new_zeros(())
        if (teacher := self._teacher[0]) is not None:
            total = total + self._distillation_losses(teacher, images, features, maps)
        labeled = labels >= 0
        if losses.labels and bool(labeled.any()):
            logits = self.label_head(features[labeled])
            total = total + losses.labels * F.cross_entropy(logits, labels[labeled], label_smoothing=LABEL_SMOOTHING)
        return total

    def _distillation_losses(
        self, teacher: TeacherFeatures, images: torch.Tensor, features: torch.Tensor, maps: list[torch.Tensor]
    ) -> torch.Tensor:
        """Return the weighted sum of the losses that compare the student with the teacher."""
        losses, total = self.recipe.losses, features.new_zeros(())
        target, target_maps = teacher(images)
        if losses.maps:
            errors = torch.stack([F.mse_loss(own, other) for own, other in zip(maps, target_maps, strict=True)]) / self.map_variances
            pooled = F.mse_loss(features / self.feature_spread, target / self.feature_spread)
            total = total + losses.maps * (errors[:-1].mean() + errors[-1] + pooled)
        if losses.features:
            components = (target - self.feature_mean) @ self.feature_components
            total = total + losses.features * F.smooth_l1_loss(self.feature_map(features), components)
        if losses.logits:
            head = teacher.network.head
            logits = F.linear(target, head.weight.to(target.device), head.bias.to(target.device))
            total = total + losses.logits * distillation_loss(self.logit_head(features), logits)
        return total

    def average(self, step: int) -> None:
        """Update the moving average of the student's weights after step ``step``."""
        self.ema.update(self.student, step=step)

    def make_optimizer(self) -> torch.optim.Optimizer:
        """Return AdamW, without weight decay for normalization layers and biases."""
        return torch.optim.AdamW(param_groups_weight_decay(self, self.recipe.weight_decay), lr=self.recipe.lr)


@dataclass(frozen=True)
class Statistics:
    """Statistics of a teacher's features over some batches.

    Attributes:
        mean: mean of the pooled features, float32 ``[width]``.
        spread: standard deviation of the pooled features, float32 ``[width]``.
        components: float32 ``[width, components]``, maps centered features to their scaled principal components.
        map_variances: mean variance of the channels of each feature map, float32 ``[maps]``.
    """

    mean: torch.Tensor
    spread: torch.Tensor
    components: torch.Tensor
    map_variances: torch.Tensor

    @classmethod
    def of(cls, teacher: TeacherFeatures, views: Views) -> Statistics:
        """Measure the statistics over the first batches of the training."""
        features, variances = [], []
        for step in range(min(STATISTICS_STEPS, len(views))):
            pooled, maps = teacher(views[step][0])
            features.append(pooled)
            variances.append(torch.tensor([float(item.var(dim=(0, 2, 3)).mean()) for item in maps]))
        rows = torch.cat(features).double()
        mean, spread = rows.mean(dim=0), rows.std(dim=0) + SMALLEST_SPREAD
        _, _, directions = torch.linalg.svd((rows - mean) / spread, full_matrices=False)
        directions = directions[:COMPONENTS].T / spread[:, None]
        size = ((rows - mean) @ directions).std(dim=0)
        scale = size.clamp(min=float(size.max()) * SMALLEST_COMPONENT).sqrt()
        components = directions / (scale * size.mean().sqrt())
        return cls(mean.float(), spread.float(), components.float(), torch.stack(variances).mean(dim=0))
