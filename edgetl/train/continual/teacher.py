"""A larger network that teaches the one that is tuned (Hinton et al. 2015, arXiv:1503.02531), through timm's distillation task."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from timm.task import DistillationTeacher, LogitDistillationTask
from torch import nn

from edgetl.core.bundle import is_run
from edgetl.core.licenses import most_restrictive
from edgetl.core.manifest import Parent
from edgetl.core.preprocess import PreprocessSpec
from edgetl.data.loading import labels_of
from edgetl.data.split import Splits
from edgetl.errors import ConfigError
from edgetl.train.artifacts.run import open_run
from edgetl.train.artifacts.sources.build import fixed_size
from edgetl.train.artifacts.sources.load import load_backbone
from edgetl.train.config.options import TrainConfig
from edgetl.train.heads.linear import fit_logistic
from edgetl.train.heads.modules import LabeledFeatures
from edgetl.train.inputs.activation_cache import Workplace
from edgetl.train.inputs.features import FrozenFeatures
from edgetl.train.networks.backbone import Backbone, feature_extractor

TEMPERATURE = 2.0


@dataclass(frozen=True)
class Tutor:
    """A network that knows the classes.

    Attributes:
        network: ``float32 [batch, 3, H, W]`` in ``spec``'s normalisation → logits ``[batch, classes]``, in the order of the new classes.
        spec: its preprocessing; it is shown the student's crops, at the student's size where it takes any.
        parents: for the lineage.
    """

    network: nn.Module
    spec: PreprocessSpec
    parents: tuple[Parent, ...]


class _Shown(nn.Module):
    """A network with what timm's task asks of it: its normalisation. Images are brought to ``size`` where it takes one size only."""

    def __init__(self, network: nn.Module, spec: PreprocessSpec, size: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.network = network
        self.size = size
        self.pretrained_cfg = {"mean": spec.mean, "std": spec.std}

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.size is not None and tuple(images.shape[-2:]) != self.size:
            images = F.interpolate(images, self.size, mode="bicubic", antialias=True)
        logits: torch.Tensor = self.network(images)
        return logits


def find_tutor(config: TrainConfig, splits: Splits, place: Workplace) -> Tutor | None:
    """The teacher that ``config.teacher`` names: a run on the same classes, or a backbone, whose head is fitted on the training images.

    Raises:
        ConfigError: the run knows other classes.
        BackboneError: the backbone cannot be found.
        RunError: the run is damaged.
    """
    if config.distillation.teacher is None:
        return None
    labels = splits.folder.labels
    asked = TrainConfig.from_options(
        backbone=config.distillation.teacher, weights_dir=config.backbone.weights_dir, license=config.backbone.license
    )
    backbone = load_backbone(asked.backbone, len(labels))
    if is_run(config.distillation.teacher):
        run = open_run(config.distillation.teacher)
        if set(run.record.labels) != set(labels):
            raise ConfigError(
                f"--teacher {config.distillation.teacher} knows {', '.join(run.record.labels[:5])}…, and the images are of other classes."
            )
        backbone = dataclasses.replace(backbone, model=run.load_model(), head_name=run.record.backbone.head_name)
        order = [run.record.labels.index(label) for label in labels]
        weight, bias = backbone.head.weight[order], backbone.head.bias[order]
    else:
        trunk = feature_extractor(backbone.model, backbone.head_name)
        extract = FrozenFeatures(trunk, backbone.spec, device=place.device, batch_size=config.optim.batch_size, images=len(splits.train))
        known = LabeledFeatures(extract(splits.train, progress=place.progress), labels_of(splits.train))
        fitted = fit_logistic(known, len(labels), seed=config.run.seed)
        weight, bias = torch.from_numpy(fitted.weight), torch.from_numpy(fitted.bias)
    with torch.no_grad():
        backbone.head.weight.copy_(weight)
        backbone.head.bias.copy_(bias)
    parents = tuple(parent.model_copy(update={"kind": "teacher"}) for parent in backbone.parents)
    return Tutor(backbone.model.eval().requires_grad_(False), backbone.spec, parents)


def with_teacher(backbone: Backbone, tutor: Tutor) -> Backbone:
    """``backbone`` with the teacher among its parents: what it learned, it learned from the teacher's weights too."""
    parents = (*tutor.parents, *backbone.parents)
    return dataclasses.replace(backbone, parents=parents, license=most_restrictive(parent.license for parent in parents))


def distillation(
    student: nn.Module, spec: PreprocessSpec, criterion: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], tutor: Tutor, share: float
) -> LogitDistillationTask:
    """timm's task: ``share`` of the loss is the divergence from the teacher's softened answers to the same crops."""
    size = tutor.spec.input_size if fixed_size(tutor.network) else None
    return LogitDistillationTask(
        student_model=_Shown(student, spec),
        teacher_model=DistillationTeacher(_Shown(tutor.network, tutor.spec, size)),
        criterion=criterion,
        task_loss_weight=1 - share,
        distill_loss_weight=share,
        temperature=TEMPERATURE,
        verbose=False,
    )
