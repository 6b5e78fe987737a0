"""Backbone: a network with a linear head, its origin, and the arguments that rebuild it."""

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
from edgetl.core.manifest import Parent
from edgetl.core.preprocess import PreprocessSpec
from edgetl.data.folder import Sample
from edgetl.errors import BackboneError, first_line
from edgetl.train.networks.model_args import architecture_problem, args_problem
from edgetl.train.networks.progressive import ProgressiveNetwork, ProgressiveRecord, check_laterals
from edgetl.train.networks.pruned import PRUNED, LayerSizes, set_layer_sizes

TORCHVISION = "torchvision:"
# Errors of timm and torch for arguments, and for inputs, that an architecture does not take.
BUILD_ERRORS = (RuntimeError, TypeError, ValueError, AssertionError, KeyError, IndexError, AttributeError, ZeroDivisionError, MemoryError)


@dataclass(frozen=True)
class Backbone:
    """A network with a linear head of the right size, and where it comes from.

    Attributes:
        name: as the user gave it.
        architecture: a timm name, or ``torchvision:NAME``.
        model: ``float32 [batch, 3, H, W]`` → logits ``[batch, classes]``.
        head_name: the linear head's name among the model's modules.
        spec: the preprocessing that the weights were made for.
        model_args: arguments that rebuild the architecture.
        weights_sha256: of the file that was loaded, or of the run's; none for random weights.
        license: the most restrictive of its parents'; none where no parent states one.
        parents: what the weights were made from, the oldest first; empty for random weights.
        columns: structure of a progressive network; none for others.
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
        """The last layer."""
        head = self.model.get_submodule(self.head_name)
        assert isinstance(head, nn.Linear)
        return head


def with_intensity(backbone: Backbone, choice: str, samples: Sequence[Sample]) -> Backbone:
    """Return ``backbone`` with the intensity rule that ``choice`` (``--intensity``) derives from the training images ``samples``.

    Raises:
        ConfigError: the images have no range that ``choice`` could take.
    """
    rule = resolve_intensity(choice, backbone.spec.intensity, [sample.levels for sample in samples if sample.levels])
    return replace(backbone, spec=backbone.spec.model_copy(update={"intensity": rule}))


def rebuild(architecture: str, model_args: dict[str, Any], classes: int, columns: ProgressiveRecord | None = None) -> nn.Module:
    """Build the architecture of a run with random weights, into which its own are loaded.

    Raises:
        BackboneError: the installed library no longer has it, or the record is not that of a network.
    """
    if problem := architecture_problem(architecture) or args_problem(model_args):
        raise BackboneError(f"{architecture[:80]} is not built: {problem}.")
    if columns is not None:
        networks = [rebuild(architecture, model_args, count) for count in (*(column.classes for column in columns.earlier), classes)]
        check_laterals(networks[-1], columns)
        return ProgressiveNetwork(networks, columns.all_laterals, columns.head)
    if PRUNED in model_args:
        model = rebuild(architecture, {key: value for key, value in model_args.items() if key != PRUNED}, classes)
        sizes: LayerSizes = dict(model_args[PRUNED])
        sizes[find_head(model)] = [classes, *sizes.get(find_head(model), [0, 1])[1:]]  # the run may have had other classes
        set_layer_sizes(model, sizes)
        return model
    if architecture.startswith(TORCHVISION):
        return torchvision_model(architecture.removeprefix(TORCHVISION), None, classes)
    # Checked here: `create_model` would also take the name of a folder or of a repository on the network.
    if not timm.is_model(architecture.split(".")[0]):
        raise BackboneError(f"timm {timm.__version__} has no architecture called {architecture}. Install a version that has it.")
    try:
        # Folders that timm's newer versions save name the published classes among the arguments.
        model = timm.create_model(architecture, pretrained=False, **{**model_args, "num_classes": classes})
    except NotImplementedError:
        raise  # of the meta device, which is not the arguments' fault
    except BUILD_ERRORS as error:
        raise BackboneError(f"timm {timm.__version__} cannot build {architecture} with {model_args}: {first_line(error)}") from error
    assert isinstance(model, nn.Module)
    return model


def find_head(model: nn.Module) -> str:
    """The name of the linear layer that ends the network.

    Raises:
        BackboneError: the network does not end in one linear layer.
    """
    get_classifier = getattr(model, "get_classifier", None)
    if callable(get_classifier):
        classifier = get_classifier()
        for name, module in model.named_modules():
            if module is classifier and isinstance(module, nn.Linear):
                return name
        raise BackboneError(f"{type(model).__name__} does not end in one linear layer; choose a backbone with a plain classifier.")
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise BackboneError(f"{type(model).__name__} has no linear layer to replace; choose another backbone.")
    return linear[-1]


def feature_extractor(model: nn.Module, head_name: str) -> nn.Module:
    """A copy of ``model`` in evaluation mode that ends before its head: ``[batch, 3, H, W]`` → features ``[batch, width]``."""
    network = copy.deepcopy(model)
    network.set_submodule(head_name, nn.Identity())
    return network.eval()


def count_macs(model: nn.Module, size: tuple[int, int]) -> int:
    """Multiply-accumulates of one image of ``size`` (height, width, px), by torch's own counter of convolutions and matrix products."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model(torch.zeros(1, 3, *size))
    return int(counter.get_total_flops()) // 2


def torchvision_model(name: str, weights: Any, classes: int) -> nn.Module:
    """A torchvision classifier with a linear head of ``classes`` outputs; ``weights`` as torchvision takes them.

    Raises:
        BackboneError: torchvision has no classifier of this name.
    """
    if name not in torchvision.models.list_models(module=torchvision.models):
        raise BackboneError(f"torchvision {torchvision.__version__} has no classifier called {name}.")
    model = torchvision.models.get_model(name, weights=weights)
    assert isinstance(model, nn.Module)
    if getattr(model, "aux_logits", False):
        model.aux_logits = False  # type: ignore[assignment]  # the side outputs of Inception and GoogLeNet have classes of their own
    if name.startswith("squeezenet"):
        # Its head is a convolution, a ReLU and a pool; pooled features with a linear head are the same size and can be fitted.
        model.classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, classes))
        return model
    head_name = find_head(model)
    old = model.get_submodule(head_name)
    assert isinstance(old, nn.Linear)
    model.set_submodule(head_name, nn.Linear(old.in_features, classes))
    return model


def state_problem(model: nn.Module, state: dict[str, torch.Tensor]) -> str | None:
    """Reason why ``state`` does not hold the weights of ``model``, which may be on the meta device; none if it does."""
    own = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    wrong = sorted(name for name in own.keys() | state.keys() if name not in state or own.get(name) != tuple(state[name].shape))
    if wrong:
        return f"{len(wrong)} tensors are missing, unknown or differ in shape ({wrong[0]}…)"
    endless = sorted(name for name, value in state.items() if value.is_floating_point() and not bool(value.float().isfinite().all()))
    return f"numbers are not finite ({endless[0]}…)" if endless else None
