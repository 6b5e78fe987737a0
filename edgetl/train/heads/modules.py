"""Head modules: layers between the backbone's features and the last linear layer, and their record.

Every network ends in one ``nn.Linear``: head refitting and the partition into frozen and trainable layers rely on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field
from torch import nn

from edgetl.core.config import StrictModel
from edgetl.errors import BackboneError
from edgetl.train.config.options import Features, HeadKind
from edgetl.train.heads.multi_stage import MultiStageFeatures, has_stage_features
from edgetl.train.networks.backbone import find_head, rebuild
from edgetl.train.networks.progressive import ProgressiveRecord

HEAD_NAME = "head"
# Relative to the vote weight of the nearest neighbor: keeps the vote where all neighbors are equally near.
LEAST_WEIGHT = 1e-6


class HeadSpec(StrictModel):
    """Head of a run, in ``run.json``. The default is one linear layer on the last features.

    Attributes:
        kind: ``linear``, ``cosine``, ``knn`` or ``mlp``.
        features: ``last``, or ``layers``: every stage's.
        hidden: units of the hidden layer (mlp).
        bank: number of stored training images (knn).
        neighbors: number of them that vote (knn).
        temperature: of the votes (knn): the vote weight of a neighbor is ``exp(similarity / temperature)``.
    """

    kind: HeadKind = "linear"
    features: Features = "last"
    hidden: int = Field(default=0, ge=0, le=65_536)
    bank: int = Field(default=0, ge=0, le=10_000_000)
    neighbors: int = Field(default=0, ge=0)
    temperature: float = Field(default=0.0, ge=0.0)

    @property
    def problem(self) -> str | None:
        """Reason why no head can be built from this record; none if one can."""
        if self.kind == "mlp" and not self.hidden:
            return "an mlp head without hidden units"
        if self.kind == "knn" and not (0 < self.neighbors < self.bank and self.temperature > 0):
            return "a knn head needs a temperature above 0 and more images in its bank than neighbors"
        return None

    @property
    def plain(self) -> bool:
        """True for a linear layer on the last features, in the architecture's own place."""
        return self == HeadSpec()

    def describe(self) -> str:
        """A few words for people."""
        numbers = {"knn": f" ({self.neighbors} of {self.bank} images vote)", "mlp": f" ({self.hidden} hidden units)"}
        where = ", features of every stage" if self.features == "layers" else ""
        return f"{self.kind}{numbers.get(self.kind, '')}{where}"


@dataclass(frozen=True)
class LabeledFeatures:
    """Data for fitting a head.

    Attributes:
        features: float32 ``[n, width]`` of the backbone.
        targets: int64 ``[n]``: classes. Float64 ``[n, labels]`` of a multi-label task, ``[n]`` of a regression.
        groups: int64 ``[n]``, equal for images of one group; none if images have no groups.
        views: features of the same images under other crops, each ``[n, width]``, to fit on as well.
    """

    features: NDArray[np.float32]
    targets: NDArray[Any]
    groups: NDArray[np.int64] | None = None
    views: Sequence[NDArray[np.float32]] = ()


@dataclass(frozen=True)
class FittedHead:
    """A fitted head, and its accuracy on the images of the fit (knn: leave-one-out)."""

    spec: HeadSpec
    adapter: nn.Module
    head: nn.Linear
    train_accuracy: float


class Directions(nn.Module):
    """Features ``[batch, width]`` → their directions from the training images' mean: ``[batch, width]`` of length 1."""

    center: torch.Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("center", torch.zeros(width))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """See the class."""
        return F.normalize(features - self.center, dim=1)


class KnnVotes(nn.Module):
    """k-nearest neighbors: features ``[batch, width]`` → fraction of the votes of each class ``[batch, classes]``.

    By cosine similarity. A vote weight is ``exp(similarity / temperature)`` (Wu et al. 2018, arXiv:1805.01978) less the weight of the first
    neighbor without a vote, so that a neighbor enters with weight 0 (as in Dudani 1976, doi:10.1109/TSMC.1976.5408784). Otherwise two
    engines whose rounding swaps the last two neighbors would give different predictions.
    """

    bank: torch.Tensor
    votes: torch.Tensor

    def __init__(self, width: int, classes: int, spec: HeadSpec) -> None:
        super().__init__()
        self.neighbors = spec.neighbors
        self.temperature = spec.temperature
        self.directions = Directions(width)
        self.register_buffer("bank", torch.zeros(spec.bank, width))
        self.register_buffer("votes", torch.zeros(spec.bank, classes))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """See the class."""
        near, places = F.linear(self.directions(features), self.bank).topk(self.neighbors + 1, dim=1)
        return class_votes(near, self.votes[places[:, :-1]], self.temperature)


def class_votes(near: torch.Tensor, votes: torch.Tensor, temperature: float) -> torch.Tensor:
    """Fraction of the votes of each class, ``[batch, classes]``.

    Args:
        near: similarities ``[batch, neighbors + 1]``, the largest first; the last has no vote.
        votes: each neighbor's ``[batch, neighbors, classes]``.
        temperature: of the vote weights.
    """
    weights = torch.exp((near - near[:, :1]) / temperature)
    weights = weights[:, :-1] - weights[:, -1:] + LEAST_WEIGHT
    summed = (weights.unsqueeze(2) * votes).sum(dim=1)
    return summed / summed.sum(dim=1, keepdim=True)


class HeadedNetwork(nn.Module):
    """A backbone without its classifier, an adapter and the linear layer: ``float32 [batch, 3, H, W]`` → logits ``[batch, classes]``.

    It has no ``pretrained_cfg``: timm could not rebuild it from a folder, and none is written for it.
    """

    def __init__(self, backbone: nn.Module, adapter: nn.Module, head: nn.Linear, spec: HeadSpec) -> None:
        super().__init__()
        self.spec = spec
        self.backbone = backbone
        self.adapter = adapter
        self.head = head

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """See the class."""
        logits: torch.Tensor = self.head(self.adapter(self.backbone(images)))
        return logits


def make_adapter(spec: HeadSpec, width: int, classes: int) -> tuple[nn.Module, nn.Linear]:
    """The layers before the linear one, and the linear one, with zeros or random weights, to be fitted or loaded.

    Args:
        spec: the head.
        width: of the backbone's features.
        classes: number of outputs.
    """
    match spec.kind:
        case "linear":
            return nn.Identity(), nn.Linear(width, classes)
        case "cosine":
            return Directions(width), nn.Linear(width, classes)
        case "mlp":
            return nn.Sequential(nn.Linear(width, spec.hidden), nn.GELU()), nn.Linear(spec.hidden, classes)
        case "knn":
            return KnnVotes(width, classes, spec), nn.Linear(classes, classes)


def head_of(model: nn.Module) -> HeadSpec:
    """Head of ``model``."""
    return model.spec if isinstance(model, HeadedNetwork) else HeadSpec()


def with_head(model: nn.Module, spec: HeadSpec, classes: int) -> HeadedNetwork:
    """``model``, a plain network, with the head that ``spec`` describes in place of its own classifier."""
    head_name = find_head(model)
    classifier = model.get_submodule(head_name)
    assert isinstance(classifier, nn.Linear)
    model.set_submodule(head_name, nn.Identity())
    backbone = MultiStageFeatures(model) if spec.features == "layers" else model
    width = classifier.in_features + (sum(backbone.widths) if isinstance(backbone, MultiStageFeatures) else 0)
    return HeadedNetwork(backbone, *make_adapter(spec, width, classes), spec)


def rebuild_headed(
    architecture: str, model_args: dict[str, object], spec: HeadSpec, classes: int, columns: ProgressiveRecord | None = None
) -> nn.Module:
    """As ``edgetl.train.networks.backbone.rebuild``, with the head that ``spec`` describes."""
    model = rebuild(architecture, model_args, classes, columns)
    if spec.features == "layers" and not has_stage_features(model):
        raise BackboneError(f"{architecture} does not return the feature maps of its stages, which the record's head needs.")
    return model if spec.plain else with_head(model, spec, classes)


def plain_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """The weights under the backbone's own names; those of another head than the plain one are left out."""
    if isinstance(model, HeadedNetwork):
        model = model.backbone.network if isinstance(model.backbone, MultiStageFeatures) else model.backbone
    return dict(model.state_dict())


def linear_layer(weight: torch.Tensor, bias: torch.Tensor) -> nn.Linear:
    """A frozen linear layer with these weights, ``[outputs, inputs]`` and ``[outputs]``."""
    head = nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(bias)
    return head.requires_grad_(False)
