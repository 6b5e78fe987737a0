"""Find a backbone by name, load its weights, and put a fresh head on it."""

from __future__ import annotations

import copy
import dataclasses
import difflib
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import timm
import torch
import torchvision
from timm.data import resolve_data_config
from torch import nn

from edgetl.core.preprocess import PreprocessSpec
from edgetl.errors import BackboneError, ConfigError
from edgetl.train.config import TrainConfig

TORCHVISION = "torchvision:"
LOCAL_DIR = "local-dir:"
HUB = "hf-hub:"


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
        weights_sha256: of the local file that was loaded; none for a hub's or random weights.
        licence: of the weights, as their card says.
    """

    name: str
    architecture: str
    model: nn.Module
    head_name: str
    spec: PreprocessSpec
    model_args: dict[str, Any] = field(default_factory=dict)
    weights_sha256: str | None = None
    licence: str | None = None

    @property
    def head(self) -> nn.Linear:
        """The last layer."""
        head = self.model.get_submodule(self.head_name)
        assert isinstance(head, nn.Linear)
        return head


def load_backbone(config: TrainConfig, classes: int) -> Backbone:
    """Build the architecture that ``config`` names, load its weights, and give it a head for ``classes``.

    Raises:
        BackboneError: unknown name (the nearest are named), weights not found or not fitting, or no linear head.
    """
    if config.backbone.startswith(TORCHVISION):
        backbone = _from_torchvision(config, classes)
    else:
        backbone = _from_timm(config, classes)
    if config.weights is not None:
        path = Path(config.weights)
        _load_file(backbone, path)
        backbone = dataclasses.replace(backbone, weights_sha256=_sha256(path))
    return dataclasses.replace(backbone, spec=_override(backbone.spec, config))


def rebuild(architecture: str, model_args: dict[str, Any], classes: int) -> nn.Module:
    """The architecture of a run, with random weights, for its own weights to be loaded into.

    Raises:
        BackboneError: the installed library does not know it any more.
    """
    if architecture.startswith(TORCHVISION):
        return _torchvision_model(architecture.removeprefix(TORCHVISION), None, classes)
    try:
        model = timm.create_model(architecture, pretrained=False, num_classes=classes, **model_args)
    except (RuntimeError, TypeError, ValueError) as error:
        raise BackboneError(f"timm {timm.__version__} cannot build {architecture} with {model_args}: {error}") from error
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


def make_trunk(model: nn.Module, head_name: str) -> nn.Module:
    """A copy of ``model`` in evaluation mode that ends before its head: ``[batch, 3, H, W]`` → features ``[batch, width]``."""
    trunk = copy.deepcopy(model)
    trunk.set_submodule(head_name, nn.Identity())
    return trunk.eval()


def _from_timm(config: TrainConfig, classes: int) -> Backbone:
    name = config.backbone
    pretrained = config.pretrained and config.weights is None
    _check_timm_name(name)
    try:
        model = timm.create_model(name, pretrained=pretrained, num_classes=classes)
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, safetensors.SafetensorError) as error:
        raise BackboneError(
            f"the weights of {name} cannot be loaded: {_first_line(error)} Weights come from a cache, a hub (network) or a folder: "
            f"use local-dir:PATH, --weights FILE.safetensors, or --random-weights."
        ) from error
    cfg = dict(model.pretrained_cfg)
    data = resolve_data_config({}, model=model)
    spec = PreprocessSpec(
        input_size=(data["input_size"][1], data["input_size"][2]),
        crop_mode=data["crop_mode"],
        crop_pct=float(data["crop_pct"]),
        interpolation=data["interpolation"],
        mean=_triple(data["mean"]),
        std=_triple(data["std"]),
    )
    local = Path(name.removeprefix(LOCAL_DIR)) if name.startswith(LOCAL_DIR) else None
    return Backbone(
        name=name,
        architecture=str(cfg.get("architecture") or name),
        model=model,
        head_name=find_head(model),
        spec=spec,
        model_args=_local_model_args(local) if local else {},
        weights_sha256=_local_weights_sha256(local) if local and pretrained else None,
        licence=cfg.get("license") if pretrained else None,
    )


def _check_timm_name(name: str) -> None:
    if name.startswith(LOCAL_DIR):
        folder = Path(name.removeprefix(LOCAL_DIR))
        if not (folder / "config.json").is_file():
            raise BackboneError(f"{folder} has no config.json; local-dir: takes a folder in timm's form (config.json, model.safetensors).")
    elif not name.startswith(HUB) and not timm.is_model(name.split(".")[0]):
        known = [*timm.list_models(), *(TORCHVISION + other for other in torchvision.models.list_models(module=torchvision.models))]
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        hint = f"The nearest: {', '.join(near)}." if near else "See timm.list_models()."
        raise BackboneError(f"timm has no backbone called {name!r}. {hint}")


def _from_torchvision(config: TrainConfig, classes: int) -> Backbone:
    short = config.backbone.removeprefix(TORCHVISION)
    known = torchvision.models.list_models(module=torchvision.models)
    if short not in known:
        near = difflib.get_close_matches(short, known, n=3, cutoff=0.5)
        raise BackboneError(f"torchvision has no classifier called {short!r}. The nearest: {', '.join(near) or 'none'}.")
    weights = torchvision.models.get_model_weights(short).DEFAULT
    pretrained = config.pretrained and config.weights is None
    try:
        model = _torchvision_model(short, weights if pretrained else None, classes)
    except OSError as error:
        raise BackboneError(
            f"the weights of {config.backbone} cannot be fetched: {_first_line(error)} Without a network use --weights FILE.safetensors."
        ) from error
    transform = weights.transforms()
    size = int(transform.crop_size[0])
    spec = PreprocessSpec(
        input_size=(size, size),
        crop_pct=size / transform.resize_size[0],
        interpolation=transform.interpolation.value,
        mean=_triple(transform.mean),
        std=_triple(transform.std),
    )
    return Backbone(
        config.backbone,
        config.backbone,
        model,
        find_head(model),
        spec,
        licence="bsd-3-clause (torchvision)" if pretrained else None,
    )


def _torchvision_model(name: str, weights: Any, classes: int) -> nn.Module:
    model = torchvision.models.get_model(name, weights=weights)
    assert isinstance(model, nn.Module)
    if name.startswith("squeezenet"):
        # Its head is a convolution, a ReLU and a pool; pooled features with a linear head are the same size and can be fitted.
        model.classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, classes))
        return model
    head_name = find_head(model)
    old = model.get_submodule(head_name)
    assert isinstance(old, nn.Linear)
    model.set_submodule(head_name, nn.Linear(old.in_features, classes))
    return model


def _load_file(backbone: Backbone, path: Path) -> None:
    """Load a safetensors file into everything but the head, whose size differs."""
    if path.suffix != ".safetensors":
        raise BackboneError(f"{path} is not a .safetensors file; edgetl reads no pickle. Convert it with safetensors.torch.save_file.")
    try:
        state = safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise BackboneError(f"{path} cannot be read as safetensors: {_first_line(error)} Fetch the file again.") from error
    wanted = {key: value.shape for key, value in backbone.model.state_dict().items() if not _belongs_to_head(key, backbone)}
    missing = sorted(key for key, shape in wanted.items() if key not in state or state[key].shape != shape)
    if missing:
        raise BackboneError(
            f"{path} does not fit {backbone.architecture}: {len(missing)} tensors are missing or differ in shape ({missing[0]}…)."
        )
    with torch.no_grad():
        backbone.model.load_state_dict({key: state[key] for key in wanted}, strict=False)


def _belongs_to_head(key: str, backbone: Backbone) -> bool:
    return key.startswith(f"{backbone.head_name}.")


def _override(spec: PreprocessSpec, config: TrainConfig) -> PreprocessSpec:
    given = {name: getattr(config, name) for name in ("input_size", "mean", "std", "crop_pct", "interpolation")}
    changes = {name: value for name, value in given.items() if value is not None}
    if any(not math.isfinite(value) or value <= 0 for value in changes.get("std", ())):
        raise ConfigError(f"--std {changes['std']} must be three numbers above 0.")
    return spec.model_copy(update={**changes, "resize": config.resize})


def _triple(values: Sequence[float]) -> tuple[float, float, float]:
    """Three channel values; a backbone for another number of channels is refused.

    Raises:
        BackboneError: not three values.
    """
    if len(values) != 3:
        raise BackboneError(f"the backbone takes {len(values)} channel(s); edgetl's images have 3 (RGB). Choose another backbone.")
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def _local_model_args(folder: Path) -> dict[str, Any]:
    config = json.loads((folder / "config.json").read_text("utf-8"))
    return dict(config.get("model_args") or {})


def _local_weights_sha256(folder: Path) -> str | None:
    files = sorted(folder.glob("*.safetensors"))
    preferred = folder / "model.safetensors"
    if preferred in files:
        return _sha256(preferred)
    return _sha256(files[0]) if files else None


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _first_line(error: BaseException) -> str:
    text = (str(error) or type(error).__name__).strip().splitlines()[0]
    return text if text.endswith(".") else f"{text}."
