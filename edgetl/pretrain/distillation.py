"""Distillation: the frozen teacher, and the student with the layers that are trained beside it."""

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

WARM_UP_SHARE = 0.05
# Steps whose batches give the mean and the principal components of the teacher's features.
STATISTICS_STEPS = 24
COMPONENTS = 256
SMALLEST_SPREAD = 1e-2
# Components are scaled by the root of their spread (half of a whitening), and none as if its spread were below this share of the first.
SMALLEST_COMPONENT = 0.05
LABEL_SMOOTHING = 0.1
# More images than any recipe has steps: the teacher is always worth converting to a faster engine.
MANY = 10**6


@dataclass(frozen=True)
class TeacherNetwork:
    """Frozen teacher: the whole network on the CPU, in evaluation mode, with its origin and its head's name."""

    origin: Teacher
    model: nn.Module
    head_name: str

    @property
    def head(self) -> nn.Linear:
        """Its classifier, on pooled features."""
        head = self.model.get_submodule(self.head_name)
        assert isinstance(head, nn.Linear)
        return head


def load_teacher(name: str, weights: Path | None, *, pads_as_torch: bool) -> TeacherNetwork:
    """Load the teacher from its folder in timm's form, with its own classes.

    Args:
        name: of the folder.
        weights: the folder above it.
        pads_as_torch: even where its own configuration pads as TensorFlow does: the maps of a network that is to be compressed must lie
            where the student's do. (At odd input sizes the two ways are the same.)

    Raises:
        BackboneError: the folder is missing or cannot be used.
    """
    folder = weights / name if weights else None
    if folder is None or not (folder / "config.json").is_file():
        raise BackboneError(f"the recipe's teacher {name} is not below {weights or 'any folder'}; say where it is with --weights-dir.")
    changes = {"pad_type": ""} if pads_as_torch else {}
    model, saved = build_saved(f"{LOCAL_DIR}{folder}", pretrained=True, classes=None, **changes)
    model.eval()
    cfg = saved.pretrained_cfg
    if tuple(cfg["mean"]) != (0.5, 0.5, 0.5) or tuple(cfg["std"]) != (0.5, 0.5, 0.5):
        raise BackboneError(f"the teacher {name} wants mean {cfg['mean']} and std {cfg['std']}; recipes give images in -1..1 (0.5, 0.5).")
    facts = {"name": name, "architecture": saved.architecture, "license": cfg.get("license")}
    origin = Teacher.model_validate({**facts, "weights_sha256": sha256_of(local_dir_weights(folder))})
    return TeacherNetwork(origin, model.requires_grad_(False), find_head(model))


class TeacherFeatures:
    """Features of a teacher: pooled, and the maps of its stages in a compressed student's coordinates if there are any."""

    def __init__(self, teacher: TeacherNetwork, coordinates: list[Coordinates], side: int, device: str) -> None:
        self.network = teacher
        self._shapes = [] if not coordinates else _map_shapes(teacher.model, coordinates, side)
        network = _FlatMaps(teacher.model, coordinates) if coordinates else feature_extractor(teacher.model, teacher.head_name)
        self._engine = choose_engine(network, np.zeros((2, 3, side, side), np.float32), MANY, device)

    def __call__(self, images: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Pooled features float32 ``[batch, width]`` and maps ``[batch, channels, h, w]``, on the images' device."""
        seen = torch.from_numpy(self._engine(images.detach().float().cpu().numpy())).to(images.device)
        if not self._shapes:
            return seen, []
        parts = torch.split(seen, [math.prod(shape) for shape in self._shapes], dim=1)
        maps = [part.view(-1, *shape) for part, shape in zip(parts, self._shapes, strict=True)]
        return maps[-1].mean(dim=(2, 3)), maps


class _FlatMaps(nn.Module):
    """All maps of a network as a row for each image; those of the stages in a student's coordinates."""

    def __init__(self, network: nn.Module, coordinates: list[Coordinates]) -> None:
        super().__init__()
        self.network = copy.deepcopy(network)
        for index, place in enumerate(coordinates):  # as buffers they move to a device with the network
            self.register_buffer(f"mean_{index}", place.mean)
            self.register_buffer(f"basis_{index}", place.basis)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        *stages, head = stage_maps(self.network, images)
        places = [Coordinates(self.get_buffer(f"mean_{index}"), self.get_buffer(f"basis_{index}")) for index in range(len(stages))]
        projected = [place.of(maps) for place, maps in zip(places, stages, strict=True)]
        return torch.cat([maps.flatten(1) for maps in (*projected, head)], dim=1)


def _map_shapes(network: nn.Module, coordinates: list[Coordinates], side: int) -> list[tuple[int, int, int]]:
    with torch.no_grad():
        *stages, head = stage_maps(network, torch.zeros(1, 3, side, side))
    widths = [*(place.basis.shape[1] for place in coordinates), head.shape[1]]
    return [(width, *maps.shape[2:]) for width, maps in zip(widths, (*stages, head), strict=True)]


class Distillation(nn.Module):
    """The student, a linear map to the teacher's features, a head for its classes, and a head for the images' labels."""

    feature_mean: torch.Tensor
    feature_spread: torch.Tensor
    feature_components: torch.Tensor
    map_variances: torch.Tensor

    def __init__(self, recipe: Recipe, student: nn.Module, teacher: TeacherFeatures | None, views: Views, *, labels: int) -> None:
        super().__init__()
        self.recipe = recipe
        self.student = student.to(memory_format=torch.channels_last)
        self.ema = ModelEmaV3(self.student, decay=recipe.ema_decay, use_warmup=True).requires_grad_(False)
        self._teacher = (teacher,)  # in a tuple: its tensors are no part of what is trained or saved
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
        if teacher and recipe.losses.maps:  # the student has the teacher's features, one by one
            self.logit_head.load_state_dict(teacher.network.head.state_dict())
        self.label_head = nn.Linear(width, max(1, labels))

    def forward(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The weighted sum of the recipe's losses."""
        shown = images.contiguous(memory_format=torch.channels_last)
        losses, maps = self.recipe.losses, []
        if losses.maps:
            maps = stage_maps(self.student, shown)
            features = maps[-1].mean(dim=(2, 3))
        else:
            features = self.student(shown)
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
        """The losses that compare the student with the teacher."""
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

    def make_optimizer(self) -> torch.optim.Optimizer:
        """AdamW without weight decay for norms and biases."""
        return torch.optim.AdamW(param_groups_weight_decay(self, self.recipe.weight_decay), lr=self.recipe.lr)


@dataclass(frozen=True)
class Statistics:
    """Statistics of a teacher's features over some batches.

    Attributes:
        mean, spread: float32 ``[width]``, of the pooled features.
        components: float32 ``[width, components]``: from centered features to their scaled principal components.
        map_variances: float32 ``[maps]``, mean variance of a map's channels.
    """

    mean: torch.Tensor
    spread: torch.Tensor
    components: torch.Tensor
    map_variances: torch.Tensor

    @classmethod
    def of(cls, teacher: TeacherFeatures, views: Views) -> Statistics:
        """Statistics over the first batches of a training."""
        features, variances = [], []
        for step in range(min(STATISTICS_STEPS, len(views))):
            pooled, maps = teacher(views[step][0])
            features.append(pooled)
            variances.append(torch.tensor([float(item.var(dim=(0, 2, 3)).mean()) for item in maps]))
        seen = torch.cat(features).double()
        mean, spread = seen.mean(dim=0), seen.std(dim=0) + SMALLEST_SPREAD
        _, _, directions = torch.linalg.svd((seen - mean) / spread, full_matrices=False)
        directions = directions[:COMPONENTS].T / spread[:, None]
        size = ((seen - mean) @ directions).std(dim=0)
        scale = size.clamp(min=float(size.max()) * SMALLEST_COMPONENT).sqrt()
        components = directions / (scale * size.mean().sqrt())
        return cls(mean.float(), spread.float(), components.float(), torch.stack(variances).mean(dim=0))
