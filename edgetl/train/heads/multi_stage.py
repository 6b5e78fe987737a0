"""Multi-stage features: the pooled feature map of every stage, joined with the network's last features.

Lower stages keep edges and texture that the last features lack. Joined features raise the accuracy of a linear probe most where the new
images are unlike those of the pretraining (Head2Toe: Evci et al. 2022, arXiv:2201.03529). The stages of a transformer are its many blocks;
the last four are used, as in DINO's linear evaluation (Caron et al. 2021, arXiv:2104.14294).
"""

from __future__ import annotations

import inspect

import torch
from torch import nn

from edgetl.errors import ConfigError

# Above that a network's "stages" are its blocks.
MOST_STAGES = 8
LAST_BLOCKS = 4
# Of the largest feature: the joined features must hold the plain ones.
MAX_RELATIVE_DIFFERENCE = 1e-4


class MultiStageFeatures(nn.Module):
    """A timm network without its classifier, as joined features.

    ``float32 [batch, 3, H, W]`` → ``[batch, widths]``: the mean over the area of each stage's map, the lowest first, then the features
    that the classifier was given.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        stages = len(network.feature_info)  # type: ignore[arg-type]  # timm's networks have it; check_stage_features has looked
        self.indices = list(range(stages)) if stages <= MOST_STAGES else list(range(stages - LAST_BLOCKS, stages))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """See the class."""
        last, maps = self.network.forward_intermediates(images, indices=self.indices)  # type: ignore[operator]
        own: torch.Tensor = self.network.forward_head(last, pre_logits=True)  # type: ignore[operator]
        return torch.cat([*(item.mean(dim=(2, 3)) for item in maps), own], dim=1)

    @property
    def widths(self) -> tuple[int, ...]:
        """Number of features of each stage, without the network's last ones."""
        info = self.network.feature_info
        return tuple(int(info[index]["num_chs"]) for index in self.indices)  # type: ignore[index]


def has_stage_features(network: nn.Module) -> bool:
    """True if a network has timm's ``forward_intermediates`` in the form that joined features need."""
    if not all(hasattr(network, item) for item in ("forward_intermediates", "forward_head", "feature_info")):
        return False
    return "indices" in inspect.signature(network.forward_intermediates).parameters  # type: ignore[arg-type]


def check_stage_features(network: nn.Module, name: str, size: tuple[int, int]) -> None:
    """Refuse a network that does not return the maps of its stages, or whose last features differ from those of the plain network.

    Args:
        network: ``[batch, 3, H, W]`` → its features ``[batch, width]``: without its classifier.
        name: for the message.
        size: an input's height and width, px.

    Raises:
        ConfigError: naming the backbone.
    """
    refusal = ConfigError(
        f"--features layers: {name} does not show the maps of its stages (timm's forward_intermediates). Use --features last, or another "
        f"backbone such as mobilenetv3_small_100."
    )
    if not has_stage_features(network):
        raise refusal
    joined_network = MultiStageFeatures(network).eval()
    example = torch.linspace(-1, 1, 3 * size[0] * size[1]).reshape(1, 3, *size)
    with torch.no_grad():
        try:
            joined, plain = joined_network(example), network.eval()(example)
        except (RuntimeError, TypeError, ValueError, AssertionError, IndexError) as error:
            raise refusal from error
    own = joined[:, sum(joined_network.widths) :]
    if own.shape != plain.shape or float((own - plain).abs().max()) > MAX_RELATIVE_DIFFERENCE * float(plain.abs().max()):
        raise refusal
