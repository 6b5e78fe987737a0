"""Backbone: a network with a linear head, its origin, and the arguments to rebuild it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import timm
import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from edgetl.core.images.intensity import resolve_intensity
from edgetl.core.lineage import Parent
from edgetl.core.preprocess import PreprocessSpec
from edgetl.data.folder import Sample
from edgetl.errors import BackboneError, first_line
from edgetl.train.networks.model_args import architecture_problem, args_problem
from edgetl.train.networks.progressive import ProgressiveNetwork, ProgressiveRecord, check_laterals
from edgetl.train.networks.pruned import PRUNED, LayerSizes, set_layer_sizes

TORCHVISION = "torchvision:"
# Exceptions of timm and torch for invalid arguments and invalid input sizes.
BUILD_ERRORS = (RuntimeError, TypeError, ValueError, AssertionError, KeyError, IndexError, AttributeError, ZeroDivisionError, MemoryError)


@dataclass(frozen=True)
class Backbone:
    """Backbone with a linear head, its preprocessing and its origin.

    Attributes:
        name: Name of the backbone, as given by the user.
        architecture: timm name, or ``torchvision:NAME``.
        model: Network: ``float32 [batch, 3, H, W]`` → logits ``[batch, classes]``.
        head_name: Name of the linear head among the modules of the network.
        spec: Preprocessing of the pretrained weights.
        model_args: Arguments to rebuild the architecture.
        weights_sha256: SHA-256 of the weights file, or None for random weights.
        license: Most restrictive license of all parents, or None if unknown.
        parents: Models that the weights were derived from, the oldest first. Empty for random weights.
        columns: Structure of a progressive network, or None for other networks.
    """

    name: str
    architecture: str
    model: nn.Module
    head_name: str
    spec: PreprocessSpec
    model_args: dict[str, Any] = field(default_factory=dict)
    weights_sha256: str | None = None
    license: str | None = None
    parents: tuple[Parent, ...] = ()
    columns: ProgressiveRecord | None = None

    @property
    def head(self) -> nn.Linear:
        """Linear head: the last layer of the network."""
        head = self.model.get_submodule(self.head_name)
        assert isinstance(head, nn.Linear)
        return head


def with_intensity(backbone: Backbone, choice: str, samples: Sequence[Sample]) -> Backbone:
    """Return ``backbone`` with the intensity rule of ``choice`` (``--intensity``), derived from the training images ``samples``.

    Raises:
        ConfigError: If ``choice`` needs a range of values that the images do not have.
    """
    rule = resolve_intensity(choice, backbone.spec.intensity, [sample.levels for sample in samples if sample.levels])
    return replace(backbone, spec=backbone.spec.model_copy(update={"intensity": rule}))


def rebuild(architecture: str, model_args: dict[str, Any], classes: int, columns: ProgressiveRecord | None = None) -> nn.Module:
    """Build the network of a run with random weights, before its own weights are loaded.

    Args:
        architecture: timm name, or ``torchvision:NAME``.
        model_args: Arguments of the architecture.
        classes: Number of outputs.
        columns: Structure of a progressive network.

    Raises:
        BackboneError: If the installed library does not have the architecture, or the arguments are invalid.
    """
    if problem := architecture_problem(architecture) or args_problem(model_args):
        raise BackboneError(f"{architecture[:80]} cannot be built: {problem}.")
    if columns is not None:
        networks = [rebuild(architecture, model_args, count) for count in (*(column.classes for column in columns.earlier), classes)]
        check_laterals(networks[-1], columns)
        return ProgressiveNetwork(networks, columns.all_laterals, columns.head)
    if PRUNED in model_args:
        model = rebuild(architecture, {key: value for key, value in model_args.items() if key != PRUNED}, classes)
        sizes: LayerSizes = dict(model_args[PRUNED])
        sizes[find_head(model)] = [classes, *sizes.get(find_head(model), [0, 1])[1:]]  # the new number of classes may differ
        set_layer_sizes(model, sizes)
        return model
    if architecture.startswith(TORCHVISION):
        return torchvision_model(architecture.removeprefix(TORCHVISION), None, classes)
    # This check is necessary: `create_model` also accepts the name of a folder or of a repository on the network.
    if not timm.is_model(architecture.split(".")[0]):
        raise BackboneError(f"timm {timm.__version__} has no architecture called {architecture}. Install a version that has it.")
    try:
        # Override num_classes: newer versions of timm save the number of the published classes among the arguments.
        model = timm.create_model(architecture, pretrained=False, **{**model_args, "num_classes": classes})
    except NotImplementedError:
        raise  # raised by the meta device, and not caused by the arguments
    except BUILD_ERRORS as error:
        raise BackboneError(f"timm {timm.__version__} cannot build {architecture} with {model_args}: {first_line(error)}") from error
    assert isinstance(model, nn.Module)
    return model


def find_head(model: nn.Module) -> str:
    """Find the name of the linear head of a network.

    Raises:
        BackboneError: If the network does not end in one linear layer.
    """
    get_classifier = getattr(model, "get_classifier", None)
    if callable(get_classifier):
        classifier = get_classifier()
        for name, module in model.named_modules():
            if module is classifier and isinstance(module, nn.Linear):
                return name
        raise BackboneError(f"{type(model).__name__} does not end in one linear layer. Use a backbone with a linear classifier.")
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise BackboneError(f"{type(model).__name__} has no linear layer to replace. Use another backbone.")
    return linear[-1]


def feature_extractor(model: nn.Module, head_name: str) -> nn.Module:
    """Copy ``model`` without its head, in evaluation mode: ``[batch, 3, H, W]`` → features ``[batch, width]``."""
    network = copy.deepcopy(model)
    network.set_submodule(head_name, nn.Identity())
    return network.eval()


def count_macs(model: nn.Module, size: tuple[int, int]) -> int:
    """Count the multiply-accumulate operations (MACs) for one image of ``size`` (height, width, px).

    torch's ``FlopCounterMode`` counts convolutions and matrix products.
    """
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model(torch.zeros(1, 3, *size))
    return int(counter.get_total_flops()) // 2


def torchvision_model(name: str, weights: Any, classes: int) -> nn.Module:
    """Build a torchvision classifier with a linear head of ``classes`` outputs.

    Args:
        name: torchvision's name of the model.
        weights: Weights as torchvision's ``get_model`` accepts them. None: random weights.
        classes: Number of outputs.

    Raises:
        BackboneError: If torchvision has no classifier of this name.
    """
    if name not in torchvision.models.list_models(module=torchvision.models):
        raise BackboneError(f"torchvision {torchvision.__version__} has no classifier called {name}.")
    model = torchvision.models.get_model(name, weights=weights)
    assert isinstance(model, nn.Module)
    if getattr(model, "aux_logits", False):
        model.aux_logits = False  # type: ignore[assignment]  # the auxiliary outputs of Inception and GoogLeNet have ImageNet's classes
    if name.startswith("squeezenet"):
        # Its head is a convolution, a ReLU and a pooling layer. A linear head on pooled features has the same size and can be fitted.
        model.classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, classes))
        return model
    head_name = find_head(model)
    old = model.get_submodule(head_name)
    assert isinstance(old, nn.Linear)
    model.set_submodule(head_name, nn.Linear(old.in_features, classes))
    return model


def state_problem(model: nn.Module, state: dict[str, torch.Tensor]) -> str | None:
    """Check that ``state`` has valid weights for ``model``, which may be on the meta device. Return the problem, or None."""
    own = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    wrong = sorted(name for name in own.keys() | state.keys() if name not in state or own.get(name) != tuple(state[name].shape))
    if wrong:
        return f"{len(wrong)} tensors are missing, unknown or differ in shape ({wrong[0]}…)"
    infinite = sorted(name for name, value in state.items() if value.is_floating_point() and not bool(value.float().isfinite().all()))
    return f"values are not finite ({infinite[0]}…)" if infinite else None
