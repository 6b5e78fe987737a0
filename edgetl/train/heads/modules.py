"""Head modules: layers between the backbone's features and the last linear layer, and their record.

Every network ends in one ``nn.Linear``. Head refitting and the partition into frozen and trainable layers depend on it.
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
from edgetl.core.tasks import LEAST_WEIGHT, KnnHead
from edgetl.errors import BackboneError
from edgetl.train.config.options import Features, HeadKind
from edgetl.train.heads.distances.modules import DistanceNetwork, DistanceSpec
from edgetl.train.heads.multi_stage import MultiStageFeatures, has_stage_features
from edgetl.train.networks.backbone import find_head, rebuild
from edgetl.train.networks.progressive import ProgressiveRecord

HEAD_NAME = "head"


class HeadSpec(StrictModel):
    """Head of a run, as recorded in ``run.json``. The default is a linear layer on the last features.

    Attributes:
        kind: ``linear``, ``cosine``, ``knn``, ``mlp`` or ``text``.
        features: ``last``, or ``layers`` for the features of all stages.
        hidden: Number of hidden units (mlp).
        bank: Number of stored training images (knn).
        neighbors: Number of neighbors that vote (knn).
        temperature: Temperature of the votes (knn). The vote weight of a neighbor is ``exp(similarity / temperature)``.
        embedding: Size of the text embeddings (text).
        distances: Anomaly head, which replaces the head. None for other tasks.
    """

    kind: HeadKind = "linear"
    features: Features = "last"
    hidden: int = Field(default=0, ge=0, le=65_536)
    bank: int = Field(default=0, ge=0, le=10_000_000)
    neighbors: int = Field(default=0, ge=0)
    temperature: float = Field(default=0.0, ge=0.0)
    embedding: int = Field(default=0, ge=0, le=65_536)
    distances: DistanceSpec | None = None

    @property
    def problem(self) -> str | None:
        """Reason why the record is invalid, or None if it is valid."""
        if self.kind == "mlp" and not self.hidden:
            return "an mlp head without hidden units"
        if self.kind == "knn" and not (0 < self.neighbors < self.bank and self.temperature > 0):
            return "a knn head needs a temperature above 0, and more images in its bank than neighbors"
        if self.kind == "text" and not self.embedding:
            return "a text head without the size of its embeddings"
        return None

    @property
    def plain(self) -> bool:
        """True for the default head: a linear layer on the last features."""
        return self == HeadSpec()

    def describe(self) -> str:
        """Describe the head in a few words, such as ``mlp (256 hidden units)``."""
        if self.distances:
            height, width = self.distances.heat_map
            whole = " and of the whole image" if self.distances.image_width else ""
            return f"Mahalanobis distances of {height} x {width} patches{whole}"
        sizes = {
            "knn": f" ({self.neighbors} neighbors, {self.bank} stored images)",
            "mlp": f" ({self.hidden} hidden units)",
            "text": f" (zero-shot, embeddings of {self.embedding} values)",
        }
        features = ", features of all stages" if self.features == "layers" else ""
        return f"{self.kind}{sizes.get(self.kind, '')}{features}"


@dataclass(frozen=True)
class LabeledFeatures:
    """Features and targets for fitting a head.

    Attributes:
        features: float32 ``[n, width]``, features of the backbone.
        targets: int64 ``[n]`` (classification), float64 ``[n, labels]`` (multi-label) or float64 ``[n]`` (regression).
        groups: int64 ``[n]``, equal for images of one group. None if images have no groups.
        views: Features of augmented views of the same images, each float32 ``[n, width]``.
        cells: int64 ``[n]``, cells of images that a balanced fit gives the same total weight. None: the classes.
    """

    features: NDArray[np.float32]
    targets: NDArray[Any]
    groups: NDArray[np.int64] | None = None
    views: Sequence[NDArray[np.float32]] = ()
    cells: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class FittedHead:
    """Fitted head.

    Attributes:
        spec: Record of the head.
        adapter: Module between the features and the last linear layer.
        head: Last linear layer.
        train_accuracy: Accuracy on the training images, 0..1 (knn: leave-one-out; text: NaN, because no image is used).
    """

    spec: HeadSpec
    adapter: nn.Module
    head: nn.Linear
    train_accuracy: float


class Directions(nn.Module):
    """Centered and normalized features: ``[batch, width]`` → ``[batch, width]`` of length 1.

    The center is the mean of the training features.
    """

    center: torch.Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("center", torch.zeros(width))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Subtract the center, and normalize."""
        return F.normalize(features - self.center, dim=1)


class TextProjection(nn.Module):
    """Projection to the space of the text embeddings (CLIP): ``[batch, width]`` → ``[batch, size]`` of length 1."""

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.projection = nn.Linear(width, size)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Project, and normalize."""
        return F.normalize(self.projection(features), dim=1)


class KnnVotes(nn.Module):
    """k-nearest neighbors by cosine similarity: features ``[batch, width]`` → fraction of the votes for each class ``[batch, classes]``.

    The vote weight of a neighbor is ``exp(similarity / temperature)`` (Wu et al. 2018, arXiv:1805.01978). The weight of the first neighbor
    without a vote is subtracted, as in Dudani 1976 (doi:10.1109/TSMC.1976.5408784). The weight of the last neighbors is therefore near 0.
    Otherwise, rounding could swap the last two neighbors, and two engines would give different predictions.
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
        """Compute the fraction of the votes for each class."""
        _, similarities, votes = self.nearest(features)
        return class_votes(similarities, votes, self.temperature)

    def nearest(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Compute the directions, and find the nearest stored images: their similarities, the largest first, and votes (``KnnHead``)."""
        directions = self.directions(features)
        similarities, indices = F.linear(directions, self.bank).topk(self.neighbors + 1, dim=1)
        return directions, similarities, self.votes[indices[:, :-1]]


def class_votes(similarities: torch.Tensor, votes: torch.Tensor, temperature: float) -> torch.Tensor:
    """Compute the fraction of the votes for each class, ``[batch, classes]``.

    Args:
        similarities: ``[batch, neighbors + 1]``, the largest first. The last neighbor has no vote.
        votes: ``[batch, neighbors, classes]``, votes of each neighbor.
        temperature: Temperature of the vote weights.
    """
    weights = torch.exp((similarities - similarities[:, :1]) / temperature)
    weights = weights[:, :-1] - weights[:, -1:] + LEAST_WEIGHT
    summed = (weights.unsqueeze(2) * votes).sum(dim=1)
    return summed / summed.sum(dim=1, keepdim=True)


class HeadedNetwork(nn.Module):
    """Backbone without its classifier, adapter, and linear layer: ``float32 [batch, 3, H, W]`` → logits ``[batch, classes]``.

    The network has no ``pretrained_cfg``, and its run has no ``config.json``, because timm cannot rebuild it.
    """

    def __init__(self, backbone: nn.Module, adapter: nn.Module, head: nn.Linear, spec: HeadSpec) -> None:
        super().__init__()
        self.spec = spec
        self.backbone = backbone
        self.adapter = adapter
        self.head = head

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Compute the logits."""
        logits: torch.Tensor = self.head(self.adapter(self.backbone(images)))
        return logits


class KnnOutputs(nn.Module):
    """Network with a k-NN head for export: images → logits, and the outputs that a gallery needs (``edgetl.core.tasks.KnnHead``)."""

    def __init__(self, network: HeadedNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Compute the logits, features, similarities and votes."""
        adapter = self.network.adapter
        assert isinstance(adapter, KnnVotes)
        features, similarities, votes = adapter.nearest(self.network.backbone(images))
        return self.network.head(class_votes(similarities, votes, adapter.temperature)), features, similarities, votes


def knn_head(model: nn.Module) -> KnnHead | None:
    """Return the record of a k-NN head for the manifest of a bundle. None for other heads."""
    if not isinstance(model, HeadedNetwork) or not isinstance(model.adapter, KnnVotes):
        return None
    adapter = model.adapter
    # A class without stored images has no votes, and the weight of its column is 0.
    weights = tuple(adapter.votes.max(dim=0).values.tolist())
    return KnnHead(
        width=adapter.bank.shape[1],
        neighbors=adapter.neighbors,
        temperature=adapter.temperature,
        scale=float(model.head.weight[0, 0].detach()),
        weights=tuple(weight or 1.0 for weight in weights),
    )


def make_adapter(spec: HeadSpec, width: int, classes: int) -> tuple[nn.Module, nn.Linear]:
    """Make the adapter and the last linear layer of a head. Their weights are zeros or random until they are fitted or loaded.

    Args:
        spec: Head to make.
        width: Number of the backbone's features.
        classes: Number of outputs.
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
        case "text":
            return TextProjection(width, spec.embedding), nn.Linear(spec.embedding, classes)


def head_of(model: nn.Module) -> HeadSpec:
    """Return the record of the head of ``model``."""
    if isinstance(model, DistanceNetwork):
        return HeadSpec(distances=model.spec)
    return model.spec if isinstance(model, HeadedNetwork) else HeadSpec()


def without_classifier(model: nn.Module) -> nn.Module:
    """Remove the classifier of ``model``, a plain network, and return the network."""
    model.set_submodule(find_head(model), nn.Identity())
    return model


def with_head(model: nn.Module, spec: HeadSpec, classes: int) -> HeadedNetwork:
    """Replace the classifier of ``model``, a plain network, by the head of ``spec``."""
    classifier = model.get_submodule(find_head(model))
    assert isinstance(classifier, nn.Linear)
    model = without_classifier(model)
    backbone = MultiStageFeatures(model) if spec.features == "layers" else model
    width = classifier.in_features + (sum(backbone.widths) if isinstance(backbone, MultiStageFeatures) else 0)
    return HeadedNetwork(backbone, *make_adapter(spec, width, classes), spec)


def rebuild_headed(
    architecture: str, model_args: dict[str, object], spec: HeadSpec, classes: int, columns: ProgressiveRecord | None = None
) -> nn.Module:
    """Build the network of a run, as ``edgetl.train.networks.backbone.rebuild`` does, with the head of ``spec``.

    Raises:
        BackboneError: If the network cannot be built, or does not provide the features that the head needs.
    """
    model = rebuild(architecture, model_args, classes, columns)
    if spec.features == "layers" and not has_stage_features(model):
        raise BackboneError(
            f"{architecture} does not provide the feature maps of its stages, which the head in the run record needs. Train the run again."
        )
    if spec.distances:
        return DistanceNetwork(without_classifier(model), spec.distances)
    return model if spec.plain else with_head(model, spec, classes)


def plain_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the weights under the backbone's own names, without those of a head that is not the plain linear layer."""
    if isinstance(model, DistanceNetwork):
        model = model.backbone.network
    if isinstance(model, HeadedNetwork):
        model = model.backbone.network if isinstance(model.backbone, MultiStageFeatures) else model.backbone
    return dict(model.state_dict())


def linear_layer(weight: torch.Tensor, bias: torch.Tensor) -> nn.Linear:
    """Make a frozen linear layer from ``weight`` ``[outputs, inputs]`` and ``bias`` ``[outputs]``."""
    head = nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(bias)
    return head.requires_grad_(False)
