"""Multi-stage features: the pooled feature map of each stage, concatenated with the network's last features.

The first stages contain edges and textures that the last features do not. Multi-stage features increase the accuracy of a linear probe
most if the new images differ from the pretraining images (Head2Toe: Evci et al. 2022, arXiv:2201.03529). The stages of a transformer are
its blocks. The last four blocks are used, as in DINO's linear evaluation (Caron et al. 2021, arXiv:2104.14294).
"""

from __future__ import annotations

import inspect

import torch
from torch import nn

from edgetl.errors import ConfigError

# A network with more "stages" is a transformer, and its stages are its blocks.
MOST_STAGES = 8
LAST_BLOCKS = 4
# Largest difference between the network's last features and their copy in the joined features, relative to the largest feature.
MAX_RELATIVE_DIFFERENCE = 1e-4


class MultiStageFeatures(nn.Module):
    """Multi-stage features of a timm network without its classifier: ``float32 [batch, 3, H, W]`` → ``[batch, sum of all widths]``.

    The output has the spatial mean of each stage's feature map, the first stage first, and then the network's last features.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        stages = len(network.feature_info)  # type: ignore[arg-type]  # check_stage_features checks that it exists
        self.indices = list(range(stages)) if stages <= MOST_STAGES else list(range(stages - LAST_BLOCKS, stages))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Compute the joined features."""
        last, maps = self.network.forward_intermediates(images, indices=self.indices)  # type: ignore[operator]
        own: torch.Tensor = self.network.forward_head(last, pre_logits=True)  # type: ignore[operator]
        return torch.cat([*(item.mean(dim=(2, 3)) for item in maps), own], dim=1)

    @property
    def widths(self) -> tuple[int, ...]:
        """Number of features of each stage, without the network's last features."""
        info = self.network.feature_info
        return tuple(int(info[index]["num_chs"]) for index in self.indices)  # type: ignore[index]


def has_stage_features(network: nn.Module) -> bool:
    """Return True if a network has timm's ``forward_intermediates`` with the parameter ``indices``."""
    if not all(hasattr(network, item) for item in ("forward_intermediates", "forward_head", "feature_info")):
        return False
    return "indices" in inspect.signature(network.forward_intermediates).parameters  # type: ignore[arg-type]


def check_stage_features(network: nn.Module, name: str, size: tuple[int, int]) -> None:
    """Check that a network provides the feature maps of its stages, and that its last features are unchanged among the joined features.

    Args:
        network: Network without its classifier: ``[batch, 3, H, W]`` → features ``[batch, width]``.
        name: Name of the backbone, for the message.
        size: Input size (height, width), px.

    Raises:
        ConfigError: If the network cannot be used with ``--features layers``.
    """
    unsupported = ConfigError(
        f"--features layers: {name} does not provide the feature maps of its stages (timm's forward_intermediates). Use --features last, "
        f"or another backbone such as mobilenetv3_small_100."
    )
    if not has_stage_features(network):
        raise unsupported
    joined_network = MultiStageFeatures(network).eval()
    example = torch.linspace(-1, 1, 3 * size[0] * size[1]).reshape(1, 3, *size)
    with torch.no_grad():
        try:
            joined, plain = joined_network(example), network.eval()(example)
        except (RuntimeError, TypeError, ValueError, AssertionError, IndexError) as error:
            raise unsupported from error
    own = joined[:, sum(joined_network.widths) :]
    if own.shape != plain.shape or float((own - plain).abs().max()) > MAX_RELATIVE_DIFFERENCE * float(plain.abs().max()):
        raise unsupported
