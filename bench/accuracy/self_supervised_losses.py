"""Losses of self-supervised methods, for ``bench.accuracy.self_supervised``. Losses and heads are those of lightly."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from torch import nn

EMA_DECAY = 0.99
# Size of the outputs of the heads, of DINO's head, and of the hidden layers.
OUTPUTS, PROTOTYPES, HIDDEN = 128, 1024, 512
# Number of clusters, and of principal components, of the head that is fitted to the images.
CLUSTERS, COMPONENTS = 64, 64
SMALLEST_SPREAD = 1e-2


@dataclass(frozen=True)
class Start:
    """Start of a continued pretraining.

    Attributes:
        width: number of features.
        features: features of the unlabeled images before the training, float32 ``[n, width]``.
    """

    width: int
    features: NDArray[np.float32]


class Objective(nn.Module):
    """Loss of a method with its new layers. ``network`` is the backbone without a head, which trains."""

    #: Number of random views of each image.
    views = 2

    def __init__(self, network: nn.Module, start: Start) -> None:
        super().__init__()
        self.network = network
        self.build(start)

    def build(self, start: Start) -> None:
        """Add the new layers."""

    def forward(self, features: torch.Tensor, views: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Return the loss of ``features [views * batch, width]`` of ``views``, whose images have the indices ``rows``."""
        raise NotImplementedError

    def after(self) -> None:
        """Run after each step."""

    def result(self) -> nn.Module:
        """Return the trained network."""
        return self.network


class SimSiam(Objective):
    """SimSiam (Chen and He 2021, arXiv:2011.10566)."""

    def build(self, start: Start) -> None:
        from lightly.loss import NegativeCosineSimilarity
        from lightly.models.modules import SimSiamPredictionHead, SimSiamProjectionHead

        self.project = SimSiamProjectionHead(start.width, HIDDEN, HIDDEN)
        self.predict = SimSiamPredictionHead(HIDDEN, OUTPUTS, HIDDEN)
        self.loss = NegativeCosineSimilarity()

    def forward(self, features: torch.Tensor, _: torch.Tensor, __: torch.Tensor) -> torch.Tensor:
        outputs = self.project(features)
        predicted, (one, two) = self.predict(outputs).chunk(2), outputs.detach().chunk(2)
        loss: torch.Tensor = (self.loss(predicted[0], two) + self.loss(predicted[1], one)) / 2
        return loss


class VicReg(Objective):
    """VICReg (Bardes et al. 2022, arXiv:2105.04906)."""

    def build(self, start: Start) -> None:
        from lightly.loss import VICRegLoss
        from lightly.models.modules.heads import VICRegProjectionHead

        self.project, self.loss = VICRegProjectionHead(start.width, HIDDEN, HIDDEN, num_layers=2), VICRegLoss()

    def forward(self, features: torch.Tensor, _: torch.Tensor, __: torch.Tensor) -> torch.Tensor:
        loss: torch.Tensor = self.loss(*self.project(features).chunk(2))
        return loss


class Dino(Objective):
    """DINO without local crops (Caron et al. 2021, arXiv:2104.14294). The teacher is the moving average of the network."""

    def build(self, start: Start) -> None:
        from lightly.loss import DINOLoss

        self.head = self.make_head(start)
        outputs = self.head(torch.zeros(2, start.width)).shape[1]
        # DINO's head has normalized weights, which cannot be copied.
        self.teacher = nn.Sequential(copy.deepcopy(self.network), self.make_head(start)).requires_grad_(False)
        self.teacher[1].load_state_dict(self.head.state_dict())
        self.loss = DINOLoss(outputs, warmup_teacher_temp_epochs=1)

    def make_head(self, start: Start) -> nn.Module:
        """Return DINO's head, with random weights."""
        from lightly.models.modules import DINOProjectionHead

        head: nn.Module = DINOProjectionHead(start.width, HIDDEN, OUTPUTS, PROTOTYPES)
        return head

    def forward(self, features: torch.Tensor, views: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            targets = list(self.teacher(views).chunk(2))
        loss: torch.Tensor = self.loss(targets, list(self.head(features).chunk(2)))
        return loss

    def after(self) -> None:
        from lightly.models.utils import update_momentum

        update_momentum(nn.Sequential(self.network, self.head), self.teacher, EMA_DECAY)

    def result(self) -> nn.Module:
        averaged = self.teacher[0]
        assert isinstance(averaged, nn.Module)
        return averaged


class Prototypes(Dino):
    """DINO with a head that is fitted to the images: principal components of the features, and their k-means clusters as prototypes."""

    def make_head(self, start: Start) -> nn.Module:
        pca = PCA(COMPONENTS, whiten=False, random_state=0).fit(start.features)
        points = torch.from_numpy(pca.transform(start.features)).float()
        scale = points.std(dim=0).sqrt()  # half whitening
        points = F.normalize(points / scale)
        centers = KMeans(CLUSTERS, n_init=2, random_state=0).fit(points.numpy()).cluster_centers_
        linear = nn.Linear(start.width, COMPONENTS)
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(pca.components_).float() / scale[:, None])
            linear.bias.copy_(-linear.weight @ torch.from_numpy(pca.mean_).float())
        return _Cosines(linear, F.normalize(torch.from_numpy(centers).float()))


class _Cosines(nn.Module):
    """Cosines between a linear map of the features and prototypes."""

    prototypes: torch.Tensor

    def __init__(self, linear: nn.Linear, prototypes: torch.Tensor) -> None:
        super().__init__()
        self.linear = linear
        self.register_buffer("prototypes", prototypes)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.linear(features)) @ self.prototypes.T


class Views(Objective):
    """The features of a random crop predict the features of the whole, larger image before the training. Nothing can collapse."""

    views = 1
    targets: torch.Tensor
    spread: torch.Tensor

    def build(self, start: Start) -> None:
        targets = torch.from_numpy(start.features)
        self.register_buffer("targets", targets)
        self.register_buffer("spread", targets.std(dim=0) + SMALLEST_SPREAD)
        self.map = nn.Linear(start.width, start.width)
        with torch.no_grad():
            self.map.weight.copy_(torch.eye(start.width))
            self.map.bias.zero_()

    def forward(self, features: torch.Tensor, _: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return F.smooth_l1_loss(self.map(features) / self.spread, self.targets[rows] / self.spread)


METHODS: dict[str, type[Objective]] = {
    "simsiam": SimSiam,
    "dino": Dino,
    "vicreg": VicReg,
    "prototypes": Prototypes,
    "views": Views,
}
