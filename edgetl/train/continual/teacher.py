"""Distillation teacher: a larger network with predictions that serve as additional targets (Hinton et al. 2015, arXiv:1503.02531)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from edgetl.core.bundle import is_run
from edgetl.core.licenses import most_restrictive
from edgetl.core.lineage import Parent
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
    """Distillation teacher: a trained network for the same classes.

    Attributes:
        network: network that maps float32 ``[batch, 3, H, W]``, normalized as in ``spec``, to logits ``[batch, classes]``. The classes are
            in the student's order.
        spec: preprocessing of the teacher. Its inputs are the student's crops, resized only if the teacher accepts one size.
        parents: lineage of the teacher.
    """

    network: nn.Module
    spec: PreprocessSpec
    parents: tuple[Parent, ...]


class Distillation(nn.Module):
    """Distillation loss term: divergence from the teacher's softened predictions for the same crops.

    The crops are normalized as the teacher requires.

    Args:
        teacher: distillation teacher. Its weights are frozen.
        spec: preprocessing of the student's images.
        weight: fraction of the whole loss, 0..1.
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
        """Return the divergence of ``step.logits`` from the teacher's logits for ``step.images``."""
        images = step.images * self.scale + self.shift
        if self.size is not None and tuple(images.shape[-2:]) != self.size:
            images = F.interpolate(images, self.size, mode="bicubic", antialias=True)
        with torch.no_grad():
            target = self.network(images)
        return distillation_loss(step.logits, target, TEMPERATURE)


def find_teacher(name: str, config: BackboneConfig, splits: Splits, execution: Execution) -> Teacher:
    """Load the distillation teacher: a run with the same classes, or a backbone with a head fitted on the training images.

    Args:
        name: run folder or backbone name.
        config: backbone options of the student. ``weights_dir`` and ``license`` also apply to the teacher.
        splits: training images and classes.
        execution: device, seed, batch size and progress.

    Raises:
        ConfigError: the run has other classes.
        BackboneError: the backbone cannot be found or loaded.
        RunError: the run is damaged.
    """
    labels = splits.folder.labels
    backbone = load_backbone(BackboneConfig(name=name, weights_dir=config.weights_dir, license=config.license), len(labels))
    if is_run(name):
        run = open_run(name)
        if set(run.record.labels) != set(labels):
            raise ConfigError(
                f"--teacher {name} has other classes ({', '.join(run.record.labels[:5])}…) than the images ({', '.join(labels[:5])}…). "
                f"Give a run that was trained on the same classes, or the name of a backbone."
            )
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
    """Return ``backbone`` with the teacher among its parents, and with the most restrictive license of all parents."""
    parents = (*teacher.parents, *backbone.parents)
    return dataclasses.replace(backbone, parents=parents, license=most_restrictive(parent.license for parent in parents))
