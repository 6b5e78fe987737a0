"""Heads other than one linear layer on the last features: what stands between the trunk and the last linear layer, and how it is rebuilt.

Every network still ends in one ``nn.Linear``, which is what the export's head refitting and the trunk's cut look for.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from edgetl.core.config import StrictModel
from edgetl.errors import BackboneError
from edgetl.train.config.options import Features, HeadKind
from edgetl.train.heads.multi_stage import MultiStageFeatures, has_stage_features
from edgetl.train.networks.backbone import find_head, rebuild
from edgetl.train.networks.progressive import ProgressiveRecord

HEAD_NAME = "head"
# Of a neighbour's weight relative to the nearest one's: keeps the vote where all neighbours are equally near.
LEAST_WEIGHT = 1e-6


class HeadSpec(StrictModel):
    """What a run's head is, in ``run.json``; the default is one linear layer on the last features.

    Attributes:
        kind: ``linear``, ``cosine``, ``knn`` or ``mlp``.
        features: ``last``, or ``layers``: every stage's.
        hidden: units of the hidden layer (mlp).
        bank: training images that are kept (knn).
        neighbours: of them, how many vote (knn).
        temperature: of the votes (knn): a neighbour weighs ``exp(similarity / temperature)``.
    """

    kind: HeadKind = "linear"
    features: Features = "last"
    hidden: int = Field(default=0, ge=0, le=65_536)
    bank: int = Field(default=0, ge=0, le=10_000_000)
    neighbours: int = Field(default=0, ge=0)
    temperature: float = Field(default=0.0, ge=0.0)

    @property
    def problem(self) -> str | None:
        """Reason why no head can be built from this record; none if one can."""
        if self.kind == "mlp" and not self.hidden:
            return "an mlp head without hidden units"
        if self.kind == "knn" and not (0 < self.neighbours < self.bank and self.temperature > 0):
            return "a knn head needs a temperature above 0 and more images in its bank than vote"
        return None

    @property
    def plain(self) -> bool:
        """Whether it is one linear layer on the last features, in the architecture's own place."""
        return self == HeadSpec()

    def describe(self) -> str:
        """A few words for people."""
        numbers = {"knn": f" ({self.neighbours} of {self.bank} images vote)", "mlp": f" ({self.hidden} hidden units)"}
        where = ", features of every stage" if self.features == "layers" else ""
        return f"{self.kind}{numbers.get(self.kind, '')}{where}"


class Directions(nn.Module):
    """Features ``[batch, width]`` → their directions from the training images' mean: ``[batch, width]`` of length 1."""

    centre: torch.Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(width))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """See the class."""
        return F.normalize(features - self.centre, dim=1)


class NearestNeighbours(nn.Module):
    """Features ``[batch, width]`` → the classes' shares ``[batch, classes]`` of the votes of the nearest training images.

    By cosine similarity; a vote weighs ``exp(similarity / temperature)`` (Wu et al. 2018, arXiv:1805.01978) less the weight of the first
    neighbour that has no vote, so that a neighbour comes in with weight 0 (as Dudani 1976, doi:10.1109/TSMC.1976.5408784, weighs): else
    two engines whose rounding swaps the last two would give different answers.
    """

    bank: torch.Tensor
    votes: torch.Tensor

    def __init__(self, width: int, classes: int, spec: HeadSpec) -> None:
        super().__init__()
        self.neighbours = spec.neighbours
        self.temperature = spec.temperature
        self.directions = Directions(width)
        self.register_buffer("bank", torch.zeros(spec.bank, width))
        self.register_buffer("votes", torch.zeros(spec.bank, classes))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """See the class."""
        near, places = F.linear(self.directions(features), self.bank).topk(self.neighbours + 1, dim=1)
        return shares(near, self.votes[places[:, :-1]], self.temperature)


def shares(near: torch.Tensor, votes: torch.Tensor, temperature: float) -> torch.Tensor:
    """What each class has of the votes, ``[batch, classes]``.

    Args:
        near: similarities ``[batch, neighbours + 1]``, the largest first; the last has no vote.
        votes: each neighbour's ``[batch, neighbours, classes]``.
        temperature: of the votes.
    """
    weights = torch.exp((near - near[:, :1]) / temperature)
    weights = weights[:, :-1] - weights[:, -1:] + LEAST_WEIGHT
    summed = (weights.unsqueeze(2) * votes).sum(dim=1)
    return summed / summed.sum(dim=1, keepdim=True)


class HeadedNetwork(nn.Module):
    """A trunk, what its features pass through, and the linear layer: ``float32 [batch, 3, H, W]`` → logits ``[batch, classes]``.

    It has no ``pretrained_cfg``: timm could not rebuild it from a folder, and none is written for it.
    """

    def __init__(self, trunk: nn.Module, adapter: nn.Module, head: nn.Linear, spec: HeadSpec) -> None:
        super().__init__()
        self.spec = spec
        self.trunk = trunk
        self.adapter = adapter
        self.head = head

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """See the class."""
        logits: torch.Tensor = self.head(self.adapter(self.trunk(images)))
        return logits

    @property
    def network(self) -> nn.Module:
        """The backbone without its classifier."""
        return self.trunk.network if isinstance(self.trunk, MultiStageFeatures) else self.trunk


def make_adapter(spec: HeadSpec, width: int, classes: int) -> tuple[nn.Module, nn.Linear]:
    """What ``spec`` puts before the linear layer, with that layer: zeros and random numbers, to be fitted or loaded.

    Args:
        spec: the head.
        width: of the trunk's features.
        classes: of the answers.
    """
    match spec.kind:
        case "linear":
            return nn.Identity(), nn.Linear(width, classes)
        case "cosine":
            return Directions(width), nn.Linear(width, classes)
        case "mlp":
            return nn.Sequential(nn.Linear(width, spec.hidden), nn.GELU()), nn.Linear(spec.hidden, classes)
        case "knn":
            return NearestNeighbours(width, classes, spec), nn.Linear(classes, classes)


def head_of(model: nn.Module) -> HeadSpec:
    """What head ``model`` has."""
    return model.spec if isinstance(model, HeadedNetwork) else HeadSpec()


def with_head(model: nn.Module, spec: HeadSpec, classes: int) -> HeadedNetwork:
    """``model``, a plain network, with the head that ``spec`` describes in place of its own classifier."""
    head_name = find_head(model)
    classifier = model.get_submodule(head_name)
    assert isinstance(classifier, nn.Linear)
    model.set_submodule(head_name, nn.Identity())
    trunk = MultiStageFeatures(model) if spec.features == "layers" else model
    width = classifier.in_features + (sum(trunk.widths) if isinstance(trunk, MultiStageFeatures) else 0)
    return HeadedNetwork(trunk, *make_adapter(spec, width, classes), spec)


def rebuild_headed(
    architecture: str, model_args: dict[str, object], spec: HeadSpec, classes: int, columns: ProgressiveRecord | None = None
) -> nn.Module:
    """As ``edgetl.train.networks.backbone.rebuild``, with the head that ``spec`` describes."""
    model = rebuild(architecture, model_args, classes, columns)
    if spec.features == "layers" and not has_stage_features(model):
        raise BackboneError(f"{architecture} does not return the feature maps of its stages, which the record's head needs.")
    return model if spec.plain else with_head(model, spec, classes)


def plain_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """The weights under the names that the backbone itself gives them; those of another head than the plain one are left out."""
    return dict((model.network if isinstance(model, HeadedNetwork) else model).state_dict())
