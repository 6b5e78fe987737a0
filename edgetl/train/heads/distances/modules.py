"""Modules of anomaly detection: feature maps, Mahalanobis distances to Gaussian distributions, and their sum.

Each position of the image has a patch feature: the feature maps of two middle stages, as in PaDiM (Defard et al. 2021, arXiv:2011.08785).
All positions share one Gaussian distribution, so the method needs no aligned images, and the head has few weights. A second distribution,
of the features of the whole image, detects images of other content (Rippel et al. 2021, arXiv:2005.14140).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from edgetl.core.config import StrictModel
from edgetl.train.heads.multi_stage import MultiStageFeatures
from edgetl.train.networks.backbone import BUILD_ERRORS

# Largest stride of the patch features, pixels. Deeper stages are too coarse for small defects.
COARSEST = 16


class DistanceSpec(StrictModel):
    """Anomaly head of a run, as recorded in ``run.json``.

    Attributes:
        stages: indices of the two stages with the patch features. Both are equal if the network has one suitable stage.
        patch_width: number of features of a position.
        image_width: number of features of the whole image. 0: only patches count.
        image_axes: number of principal axes of the image features. The variance in all other directions is assumed to be equal.
        heat_map: height and width of the heat map.
    """

    stages: tuple[int, int]
    patch_width: int = Field(ge=1, le=65_536)
    image_width: int = Field(ge=0, le=65_536)
    image_axes: int = Field(ge=0, le=4096)
    heat_map: tuple[int, int]


class AnomalyFeatures(nn.Module):
    """Features of a timm network without its classifier: ``float32 [batch, 3, H, W]`` → patches and image features.

    Patches: ``[batch, positions, patch_width]``, in rows. Image features: ``[batch, image_width]``, the mean of each stage's feature map
    and the network's last features. Without them, the stages after the patches are not computed.
    """

    def __init__(self, network: nn.Module, stages: tuple[int, int], *, whole: bool) -> None:
        super().__init__()
        self.network = network
        self.stages = stages
        self.indices = MultiStageFeatures(network).indices if whole else sorted(set(stages))
        self.whole = whole

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Compute patches and image features."""
        stages, image = [*self.indices], None
        if self.whole:
            last, maps = self.network.forward_intermediates(images, indices=stages)  # type: ignore[operator]
            own: torch.Tensor = self.network.forward_head(last, pre_logits=True)  # type: ignore[operator]
            image = torch.cat([*(item.mean(dim=(2, 3)) for item in maps), own], dim=1)
        else:
            maps = self.network.forward_intermediates(images, indices=stages, intermediates_only=True, stop_early=True)  # type: ignore[operator]
        fine, coarse = (maps[stages.index(index)] for index in self.stages)
        ratio = fine.shape[2] // coarse.shape[2], fine.shape[3] // coarse.shape[3]
        joined = coarse if self.stages[0] == self.stages[1] else torch.cat([F.avg_pool2d(fine, ratio), coarse], dim=1)
        return joined.flatten(2).transpose(1, 2), image


class Gaussian(nn.Module):
    """Mahalanobis distance to a Gaussian distribution: features ``[…, width]`` → distance ``[…, 1]``.

    The covariance is given by its largest principal axes. In all other directions, the variance is ``floor``. With the axes ``v_k`` of the
    variance ``s_k``, the squared distance is ``|x|² / floor - sum((1 / floor - 1 / s_k) (v_k · x)²)``.

    Attributes:
        center: float32 ``[width]``, mean of the features.
        axes: float32 ``[width, axes]``, the axes ``v_k sqrt(1 / floor - 1 / s_k)``.
        scale: float32 ``[1]``, ``1 / sqrt(floor)``.
    """

    center: torch.Tensor
    axes: torch.Tensor
    scale: torch.Tensor

    def __init__(self, width: int, axes: int) -> None:
        super().__init__()
        self.register_buffer("center", torch.zeros(width))
        self.register_buffer("axes", torch.zeros(width, axes))
        self.register_buffer("scale", torch.ones(1))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Compute the distance."""
        # Exports keep everything from this subtraction in fp32. They find it by the vector norm of its result.
        centered = features - self.center
        length = torch.linalg.vector_norm(centered, dim=-1, keepdim=True) * self.scale
        along = torch.matmul(centered, self.axes)
        # Rounding can make the difference negative.
        return (length * length - (along * along).sum(dim=-1, keepdim=True)).abs().sqrt()


class DistanceNetwork(nn.Module):
    """Anomaly detection: ``float32 [batch, 3, H, W]`` → heat map ``[batch, positions]``, in rows.

    Each value is a weighted sum of the distance of the position and the distance of the whole image. It is above 0 for an anomaly.
    """

    def __init__(self, network: nn.Module, spec: DistanceSpec) -> None:
        super().__init__()
        self.spec = spec
        self.backbone = AnomalyFeatures(network, spec.stages, whole=spec.image_width > 0)
        self.patch = Gaussian(spec.patch_width, spec.patch_width)
        self.image = Gaussian(spec.image_width, spec.image_axes) if spec.image_width else None
        self.head = nn.Linear(2 if spec.image_width else 1, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Compute the heat map."""
        weighted: torch.Tensor = self.head(self.distances(*self.backbone(images)))
        return weighted.flatten(1)

    def distances(self, patches: torch.Tensor, image: torch.Tensor | None) -> torch.Tensor:
        """Compute the distances of each position and of the whole image, ``[batch, positions, 1 or 2]``, from their features."""
        near: torch.Tensor = self.patch(patches)
        if self.image is None:
            return near
        whole = self.image(image).unsqueeze(1).expand(-1, near.shape[1], -1)
        return torch.cat([near, whole], dim=2)


def describe_network(network: nn.Module, size: tuple[int, int], *, whole: bool) -> DistanceSpec | None:
    """Return the spec of an anomaly head for a network without its classifier; None if it does not provide the features.

    Args:
        network: ``[batch, 3, H, W]`` → features, with timm's ``forward_intermediates``.
        size: input size (height, width), pixels.
        whole: use the features of the whole image, too.
    """
    stages = _patch_stages(network)
    if stages is None:
        return None
    features = AnomalyFeatures(network, stages, whole=whole).eval()
    try:
        with torch.no_grad():
            patches, image = features(torch.zeros(1, 3, *size))
            maps = network.forward_intermediates(torch.zeros(1, 3, *size), indices=[stages[1]], intermediates_only=True)  # type: ignore[operator]
    except BUILD_ERRORS:
        return None
    width = 0 if image is None else image.shape[1]
    return DistanceSpec(
        stages=stages,
        patch_width=patches.shape[2],
        image_width=width,
        image_axes=min(width, IMAGE_AXES),
        heat_map=tuple(maps[0].shape[2:]),
    )


# Principal axes of the image features. 32 or 128 axes give the same AUROC within 0.002 (bench.accuracy.anomaly).
IMAGE_AXES = 64


def _patch_stages(network: nn.Module) -> tuple[int, int] | None:
    """Return the last stage of each of the two largest strides up to ``COARSEST``. Blocks of a transformer: at half and three quarters."""
    info = getattr(network, "feature_info", None)
    if not info or not hasattr(network, "forward_intermediates"):
        return None
    strides = [int(item["reduction"]) for item in info]
    if len(set(strides)) == 1:
        return len(strides) // 2, 3 * len(strides) // 4
    last = {stride: index for index, stride in enumerate(strides) if stride <= COARSEST}
    if not last:
        return None
    coarse = max(last)
    fine = max((stride for stride in last if stride < coarse), default=coarse)
    return last[fine], last[coarse]
