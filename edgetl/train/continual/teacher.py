"""Distillation teacher: a larger network whose predictions are further targets (Hinton et al. 2015, arXiv:1503.02531)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from edgetl.core.bundle import is_run
from edgetl.core.licenses import most_restrictive
from edgetl.core.manifest import Parent
from edgetl.core.preprocess import PreprocessSpec
from edgetl.data.loading import labels_of
from edgetl.data.split import Splits
from edgetl.errors import ConfigError
from edgetl.train.artifacts.loading.build import fixed_size
from edgetl.train.artifacts.loading.load import load_backbone
from edgetl.train.artifacts.run import open_run
from edgetl.train.config.options import BackboneConfig
from edgetl.train.heads.linear import fit_logistic
from edgetl.train.heads.modules import LabeledFeatures
from edgetl.train.inputs.features import features_of
from edgetl.train.loop.losses import StepOutputs
from edgetl.train.loop.processes import Execution
from edgetl.train.networks.backbone import Backbone
from edgetl.train.networks.distillation import distillation_loss

TEMPERATURE = 2.0


@dataclass(frozen=True)
class Teacher:
    """A trained network for the same classes.

    Attributes:
        network: ``float32 [batch, 3, H, W]`` in ``spec``'s normalization → logits ``[batch, classes]``, in the order of the new classes.
        spec: its preprocessing; its inputs are the student's crops, at the student's size where it takes any.
        parents: for the lineage.
    """

    network: nn.Module
    spec: PreprocessSpec
    parents: tuple[Parent, ...]


class Distillation(nn.Module):
    """Loss term: divergence from the teacher's softened predictions for the same crops, in the teacher's own normalization.

    Args:
        teacher: frozen here.
        spec: of the student's images.
        weight: share of the whole loss.
    """

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, teacher: Teacher, spec: PreprocessSpec, *, weight: float) -> None:
        super().__init__()
        self.weight = weight
        self.network = teacher.network.eval().requires_grad_(False)
        self.size = teacher.spec.input_size if fixed_size(teacher.network) else None
        ours, theirs = ((torch.tensor(item.mean), torch.tensor(item.std)) for item in (spec, teacher.spec))
        self.register_buffer("scale", (ours[1] / theirs[1]).view(3, 1, 1), persistent=False)
        self.register_buffer("shift", ((ours[0] - theirs[0]) / theirs[1]).view(3, 1, 1), persistent=False)

    def forward(self, step: StepOutputs, /) -> torch.Tensor:
        """Divergence of ``step.logits`` from the teacher's."""
        images = step.images * self.scale + self.shift
        if self.size is not None and tuple(images.shape[-2:]) != self.size:
            images = F.interpolate(images, self.size, mode="bicubic", antialias=True)
        with torch.no_grad():
            target = self.network(images)
        return distillation_loss(step.logits, target, TEMPERATURE)


def find_teacher(name: str, config: BackboneConfig, splits: Splits, execution: Execution) -> Teacher:
    """The teacher called ``name``: a run on the same classes, or a backbone, whose head is fitted on the training images.

    Args:
        name: of a run or a backbone.
        config: of the student; its weights directory and license hold for the teacher too.
        splits: training images and classes.
        execution: device, seed, batch size, progress.

    Raises:
        ConfigError: the run has other classes.
        BackboneError: the backbone cannot be found.
        RunError: the run is damaged.
    """
    labels = splits.folder.labels
    backbone = load_backbone(BackboneConfig(name=name, weights_dir=config.weights_dir, license=config.license), len(labels))
    if is_run(name):
        run = open_run(name)
        if set(run.record.labels) != set(labels):
            raise ConfigError(f"--teacher {name} was trained on {', '.join(run.record.labels[:5])}…, and the images are of other classes.")
        backbone = dataclasses.replace(backbone, model=run.load_model(), head_name=run.record.backbone.head_name)
        order = [run.record.labels.index(label) for label in labels]
        weight, bias = backbone.head.weight[order], backbone.head.bias[order]
    else:
        extract = features_of(backbone, execution.batch_size, device=execution.device, images=len(splits.train))
        features = LabeledFeatures(extract(splits.train, progress=execution.progress), labels_of(splits.train))
        fitted = fit_logistic(features, len(labels), seed=execution.seed)
        weight, bias = torch.from_numpy(fitted.weight), torch.from_numpy(fitted.bias)
    with torch.no_grad():
        backbone.head.weight.copy_(weight)
        backbone.head.bias.copy_(bias)
    parents = tuple(parent.model_copy(update={"kind": "teacher"}) for parent in backbone.parents)
    return Teacher(backbone.model.eval().requires_grad_(False), backbone.spec, parents)


def with_teacher(backbone: Backbone, teacher: Teacher) -> Backbone:
    """``backbone`` with the teacher among its parents: its weights depend on the teacher's too."""
    parents = (*teacher.parents, *backbone.parents)
    return dataclasses.replace(backbone, parents=parents, license=most_restrictive(parent.license for parent in parents))
