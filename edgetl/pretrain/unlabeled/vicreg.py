"""VICReg: self-supervised loss of two random views of each image (Bardes et al. 2022, arXiv:2105.04906)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from edgetl.train.inputs.features import FeatureFunction

# Weights of the terms, in the order of the paper: invariance, variance, covariance.
INVARIANCE, VARIANCE, COVARIANCE = 25.0, 25.0, 1.0
SMALLEST_VARIANCE = 1e-4
# Hidden and output size of the projection.
PROJECTED = 512
# Weight of the distance to the features before the training.
ANCHOR = 1.0


class VicReg(nn.Module):
    """Loss: VICReg on a projection of the features, and the distance of the features to those before the training.

    The distance is the smooth-L1 error, relative to the standard deviation of each feature. It keeps what the pretraining learned.

    Args:
        network: network without a head, ``[batch, 3, H, W]`` → ``[batch, width]``.
        before: function from the same images to the features before the training.
        spread: standard deviation of these features, float32 ``[width]``.
    """

    spread: torch.Tensor

    def __init__(self, network: nn.Module, before: FeatureFunction, spread: torch.Tensor) -> None:
        super().__init__()
        self.network, self._before = network, before
        hidden = nn.Linear(len(spread), PROJECTED, bias=False), nn.BatchNorm1d(PROJECTED), nn.ReLU()
        self.project = nn.Sequential(*hidden, nn.Linear(PROJECTED, PROJECTED))
        self.register_buffer("spread", spread)
        self.is_frozen = False
        """True if the network does not train. Its features are those before the training then."""

    def forward(self, views: torch.Tensor) -> torch.Tensor:
        """Return the loss for ``views``, float32 ``[batch, 2, 3, H, W]``: two views of each image."""
        images = views.transpose(0, 1).flatten(0, 1).contiguous(memory_format=torch.channels_last)
        before = torch.from_numpy(self._before(images.contiguous().cpu().numpy())).to(images.device)
        features = before if self.is_frozen else self.network(images)
        distance = F.smooth_l1_loss(features / self.spread, before / self.spread)
        return vicreg(*self.project(features).float().chunk(2)) + ANCHOR * distance


def vicreg(one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
    """Return the VICReg loss of the projections of two views, each float32 ``[batch, width]``.

    The views of an image have equal projections (invariance), each output has a standard deviation of at least 1 over the images
    (variance), and different outputs are not correlated (covariance). As in the code of the paper
    (github.com/facebookresearch/vicreg), the first term is a mean over the outputs, and the second a mean of both views. The formulas of
    the paper have sums there.
    """
    spread = (_below_one(one) + _below_one(two)) / 2
    return INVARIANCE * F.mse_loss(one, two) + VARIANCE * spread + COVARIANCE * (_correlation(one) + _correlation(two))


def _below_one(rows: torch.Tensor) -> torch.Tensor:
    """Return the mean, over the outputs, of the amount by which their standard deviation is below 1."""
    return F.relu(1 - (rows.var(dim=0) + SMALLEST_VARIANCE).sqrt()).mean()


def _correlation(rows: torch.Tensor) -> torch.Tensor:
    """Return the sum of the squared covariances of different outputs, divided by their number."""
    covariance = rows.T.cov()
    return (covariance.square().sum() - covariance.diagonal().square().sum()) / rows.shape[1]
