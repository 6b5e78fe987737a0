"""The networks of a pretraining: a frozen teacher, and the student with what is trained beside it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import lightning as L
import numpy as np
import safetensors
import timm
import torch
import torch.nn.functional as F
from timm.utils import ModelEmaV3
from torch import nn

from edgetl.errors import BackboneError
from edgetl.train.backbones import find_head, make_trunk
from edgetl.train.dataset import draw_seed
from edgetl.train.features import FeatureFunction, choose_engine
from edgetl.train.mirror import local_dir_licence, local_dir_weights, sha256_of
from edgetl.train.pictures import Views
from edgetl.train.recipe import Recipe

WARM_UP_SHARE = 0.05
# Steps whose batches give the mean and the principal components of the teacher's features.
STATISTICS_STEPS = 24
COMPONENTS = 256
SMALLEST_SPREAD = 1e-3
# Components are scaled by the root of their spread (half of a whitening), and none as if its spread were below this share of the first.
SMALLEST_COMPONENT = 0.05
LABEL_SMOOTHING = 0.1
# More images than any recipe has steps: the teacher is always worth converting to a faster engine.
MANY = 10**6


@dataclass(frozen=True)
class TeacherNet:
    """A frozen network: pooled features by ``features``, logits by ``weight`` and ``bias`` on them.

    Attributes:
        features: float32 ``[batch, 3, side, side]`` → ``[batch, width]``.
        weight: float32 ``[classes, width]``.
        bias: float32 ``[classes]``.
        model: the whole network, on the CPU.
    """

    name: str
    architecture: str
    licence: str | None
    sha256: str
    features: FeatureFunction
    weight: torch.Tensor
    bias: torch.Tensor
    model: nn.Module

    def look(self, images: torch.Tensor) -> torch.Tensor:
        """Pooled features float32 ``[batch, width]``, on the images' device."""
        return torch.from_numpy(self.features(images.detach().float().cpu().numpy())).to(images.device)


def load_teacher(name: str, weights: Path | None, recipe: Recipe, device: str) -> TeacherNet:
    """Load the teacher from its folder in timm's form, with its own classes.

    Raises:
        BackboneError: the folder is missing or cannot be used.
    """
    folder = weights / name if weights else None
    if folder is None or not (folder / "config.json").is_file():
        raise BackboneError(f"the recipe's teacher {name} is not below {weights or 'any folder'}; say where it is with --weights-dir.")
    try:
        model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    except (OSError, RuntimeError, ValueError, KeyError, safetensors.SafetensorError) as error:
        raise BackboneError(f"the teacher {folder} cannot be loaded: {error}") from error
    cfg = model.pretrained_cfg
    if tuple(cfg["mean"]) != (0.5, 0.5, 0.5) or tuple(cfg["std"]) != (0.5, 0.5, 0.5):
        raise BackboneError(f"the teacher {name} wants mean {cfg['mean']} and std {cfg['std']}; recipes give images in -1..1 (0.5, 0.5).")
    head_name = find_head(model)
    head = model.get_submodule(head_name)
    assert isinstance(head, nn.Linear)
    example = np.zeros((2, 3, recipe.side, recipe.side), np.float32)
    return TeacherNet(
        name=name,
        architecture=str(cfg.get("architecture")),
        licence=local_dir_licence(folder),
        sha256=sha256_of(local_dir_weights(folder)),
        features=choose_engine(make_trunk(model, head_name), example, MANY, device),
        weight=head.weight.detach(),
        bias=head.bias.detach(),
        model=model,
    )


class Distillation(L.LightningModule):
    """The student, a linear map to the teacher's features, a head for its classes, and a head for the pictures' labels."""

    def __init__(self, recipe: Recipe, student: nn.Module, teacher: TeacherNet | None, views: Views, *, labels: int) -> None:
        super().__init__()
        self.recipe = recipe
        self.first_step = 0
        self.student = student.to(memory_format=torch.channels_last)
        self.average = ModelEmaV3(self.student, decay=recipe.average, use_warmup=True)
        self._teacher = (teacher,)  # in a tuple: its tensors are no part of what is trained or saved
        with torch.no_grad():
            width = self.student.eval()(torch.zeros(1, 3, recipe.side, recipe.side)).shape[1]
        self.student.train()  # Lightning leaves each module in the mode that it finds
        self.logit_head = nn.Linear(width, len(teacher.weight) if teacher else 1)
        self.label_head = nn.Linear(width, max(1, labels))
        mean, components = _principal_components(teacher, views) if teacher else (torch.zeros(1), torch.ones(1, 1))
        self.feature_map = nn.Linear(width, components.shape[1])
        self.register_buffer("feature_mean", mean)
        self.register_buffer("feature_components", components)

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], _: int) -> torch.Tensor:
        """The weighted sum of the recipe's losses."""
        images, labels = batch
        torch.manual_seed(draw_seed(self.recipe.seed, self.first_step + self.global_step))  # for networks that drop paths
        features = self.student(self._shown(images).contiguous(memory_format=torch.channels_last))
        losses, total = self.recipe.losses, features.new_zeros(())
        if (teacher := self._teacher[0]) is not None:
            seen = teacher.look(images)
            if losses.features:
                wanted = (seen - self.feature_mean) @ self.feature_components
                total = total + losses.features * F.smooth_l1_loss(self.feature_map(features), wanted)
            if losses.logits:
                logits = F.linear(seen, teacher.weight.to(seen.device), teacher.bias.to(seen.device))
                told, said = F.log_softmax(logits, dim=1), F.log_softmax(self.logit_head(features), dim=1)
                total = total + losses.logits * F.kl_div(said, told, log_target=True, reduction="batchmean")
        labelled = labels >= 0
        if losses.labels and bool(labelled.any()):
            guess = self.label_head(features[labelled])
            total = total + losses.labels * F.cross_entropy(guess, labels[labelled], label_smoothing=LABEL_SMOOTHING)
        return total

    def _shown(self, images: torch.Tensor) -> torch.Tensor:
        """What the student sees of the teacher's pictures at this step."""
        side = self.recipe.side_at(self.first_step + self.global_step)
        return images if side == images.shape[-1] else F.interpolate(images, (side, side), mode="bilinear", antialias=True)

    def configure_optimizers(self) -> dict[str, object]:
        """AdamW, no decay for norms and biases; the schedule goes on where a resumed run stands."""
        trained = [parameter for name, parameter in self.named_parameters() if not name.startswith("average.")]
        groups = [
            {"params": [item for item in trained if item.ndim > 1], "weight_decay": self.recipe.weight_decay},
            {"params": [item for item in trained if item.ndim <= 1], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=self.recipe.lr)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warm_cosine(self.first_step + step, self.recipe.steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def warm_cosine(step: int, steps: int) -> float:
    """Factor of the learning rate: linear over the first 5 % of the steps, times half a cosine over all."""
    return min(1.0, (step + 1) / max(1.0, WARM_UP_SHARE * steps)) * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))


def _principal_components(teacher: TeacherNet, views: Views) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean float32 ``[width]`` of the teacher's features, and the map ``[width, components]`` to their scaled principal components."""
    seen = torch.cat([teacher.look(views[step][0]) for step in range(min(STATISTICS_STEPS, len(views)))]).double()
    mean, spread = seen.mean(dim=0), seen.std(dim=0) + SMALLEST_SPREAD
    _, _, directions = torch.linalg.svd((seen - mean) / spread, full_matrices=False)
    directions = directions[:COMPONENTS].T / spread[:, None]
    size = ((seen - mean) @ directions).std(dim=0)
    scale = size.clamp(min=float(size.max()) * SMALLEST_COMPONENT).sqrt()
    return mean.float(), (directions / (scale * size.mean().sqrt())).float()
