"""Networks of timm, torchvision and hubs: build the architecture and load the library's weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors
import timm
import torchvision
from timm.data import resolve_data_config
from torch import nn

from edgetl.core.lineage import Parent
from edgetl.core.preprocess import PreprocessSpec
from edgetl.errors import BackboneError, first_line
from edgetl.train.artifacts.loading.libraries import HUB, check_reachable, downloaded_file, fetch_torchvision, unknown_name
from edgetl.train.artifacts.loading.timm_config import TimmConfig, folder_config, hub_config
from edgetl.train.artifacts.loading.weights import load_weights
from edgetl.train.config.options import BackboneConfig
from edgetl.train.config.weights_dir import LOCAL_DIR, local_dir_weights, sha256_of
from edgetl.train.networks.backbone import BUILD_ERRORS, TORCHVISION, Backbone, find_head, torchvision_model


def from_timm(config: BackboneConfig, classes: int) -> Backbone:
    """Build a network of timm or of a hub. timm downloads the weights.

    Args:
        config: name of the backbone (a timm name, or ``hf-hub:ORG/NAME``), and options for its weights.
        classes: number of outputs of the new head.

    Raises:
        BackboneError: the name is unknown, or its weights cannot be downloaded or loaded.
    """
    name = config.name
    if not name.startswith(HUB) and not timm.is_model(name.split(".")[0]):
        raise unknown_name(name)
    if config.pretrained:
        check_reachable(name, config.weights_dir)
    args: dict[str, Any] = {}
    if name.startswith(HUB):
        model, saved = build_saved(name, pretrained=config.pretrained, classes=classes)
        args = saved.model_args
    else:
        model = create(name, config.pretrained, classes)
    parents: tuple[Parent, ...] = ()
    if config.pretrained:
        cfg, file = timm_config(model), downloaded_file(name)
        architecture = str(cfg.get("architecture") or name)
        tagged, digest = f"{architecture}.{cfg['tag']}" if cfg.get("tag") else name, sha256_of(file) if file else None
        parents = (Parent(kind="weights", name=tagged, architecture=architecture, sha256=digest, license=cfg.get("license")),)
    return timm_backbone(name, model, args, parents)


def from_torchvision(config: BackboneConfig, classes: int) -> Backbone:
    """Build a network of torchvision. torchvision downloads the weights.

    Args:
        config: name of the backbone (``torchvision:NAME``), and options for its weights.
        classes: number of outputs of the new head.

    Raises:
        BackboneError: the name is unknown, or its weights cannot be downloaded or loaded.
    """
    backbone = random_network(config.name, classes)
    if not config.pretrained:
        return backbone
    check_reachable(config.name, config.weights_dir)
    path, weights = fetch_torchvision(config.name)
    load_weights(backbone.model, backbone.head_name, path, architecture=config.name)
    name = f"{config.name.removeprefix(TORCHVISION)}.{weights.name}"
    license = weights.meta.get("license", "bsd-3-clause")
    parent = Parent(kind="weights", name=name, architecture=config.name, sha256=sha256_of(path), license=license)
    return dataclasses.replace(backbone, weights_sha256=parent.sha256, parents=(parent,))


def random_network(name: str, classes: int) -> Backbone:
    """Build the timm or torchvision architecture ``name`` with random weights and ``classes`` outputs.

    Raises:
        BackboneError: the name is unknown.
    """
    if not name.startswith(TORCHVISION):
        if not timm.is_model(name.split(".")[0]):
            raise unknown_name(name)
        return timm_backbone(name, create(name, False, classes), {}, ())
    short = name.removeprefix(TORCHVISION)
    if short not in torchvision.models.list_models(module=torchvision.models):
        raise unknown_name(name)
    model = torchvision_model(short, None, classes)
    transform = torchvision.models.get_model_weights(short).DEFAULT.transforms()
    size = int(transform.crop_size[0])
    spec = PreprocessSpec(
        input_size=(size, size),
        crop_pct=size / transform.resize_size[0],
        interpolation=transform.interpolation.value,
        mean=_triple(transform.mean),
        std=_triple(transform.std),
    )
    return Backbone(name, name, model, find_head(model), spec)


def timm_backbone(name: str, model: nn.Module, args: dict[str, Any], parents: tuple[Parent, ...]) -> Backbone:
    """Return the ``Backbone`` of a timm network, with the preprocessing of its weights.

    Args:
        name: name that the user gave.
        model: the network.
        args: arguments of its constructor.
        parents: origin of the weights. Empty for random weights.
    """
    cfg = timm_config(model)
    return Backbone(
        name=name,
        architecture=str(cfg.get("architecture") or name),
        model=model,
        head_name=find_head(model),
        spec=preprocess_of(resolve_data_config({}, model=model)),
        model_args=args,
        weights_sha256=parents[-1].sha256 if parents else None,
        parents=parents,
    )


def timm_config(model: nn.Module) -> dict[str, Any]:
    """Return timm's ``pretrained_cfg`` of ``model``: input, license and tag of the weights."""
    cfg: Any = model.pretrained_cfg
    return dict(cfg)


def build_saved(name: str, *, pretrained: bool, classes: int | None, **changes: Any) -> tuple[nn.Module, TimmConfig]:
    """Build the network of a ``local-dir:`` folder or an ``hf-hub:`` repository, and return it with its ``config.json``.

    Args:
        name: name with its prefix.
        pretrained: load the weights. In a folder they must be a safetensors file.
        classes: number of outputs of the new head. ``None`` keeps the published head.
        changes: constructor arguments that replace the saved ones.

    Raises:
        BackboneError: ``config.json`` is not timm's or has arguments outside the allow-list, or the weights cannot be loaded.
    """
    if name.startswith(LOCAL_DIR):
        folder = Path(name.removeprefix(LOCAL_DIR))
        saved = folder_config(folder)
        # The file instead of the folder, because timm would also load a pickle from a folder.
        source = {"file": str(local_dir_weights(folder))} if pretrained else {}
    else:
        repository = name.removeprefix(HUB)
        try:
            saved = hub_config(repository)
        except OSError as error:
            raise BackboneError(f"config.json of {name} cannot be downloaded: {first_line(error)}") from error
        source = {"source": "hf-hub", "hf_hub_id": repository}
    cfg, args = {**saved.pretrained_cfg, **source}, {**saved.model_args, **changes}
    return create(saved.architecture, pretrained, classes, shown=name, pretrained_cfg=cfg, **args), saved


def create(architecture: str, pretrained: bool, classes: int | None, *, shown: str | None = None, **args: Any) -> nn.Module:
    """Build a network with ``timm.create_model``.

    Args:
        architecture: timm name.
        pretrained: load the weights.
        classes: number of outputs. ``None`` keeps the published head.
        shown: name in error messages. The default is ``architecture``.
        args: arguments of ``timm.create_model``.

    Raises:
        BackboneError: the network cannot be built, or its weights cannot be loaded.
    """
    if classes is not None:
        args["num_classes"] = classes
    try:
        model = timm.create_model(architecture, pretrained=pretrained, **args)
    except (OSError, safetensors.SafetensorError, *BUILD_ERRORS) as error:
        raise BackboneError(
            f"the weights of {shown or architecture} cannot be loaded: {first_line(error)} Check the network connection, or use local "
            f"weights with local-dir:PATH, --weights FILE or --weights-dir FOLDER. --random-weights needs none."
        ) from error
    assert isinstance(model, nn.Module)
    return model


def preprocess_of(data: dict[str, Any]) -> PreprocessSpec:
    """Convert timm's preprocessing settings to a ``PreprocessSpec``.

    Args:
        data: settings by timm's keys. ``input_size`` is (channels, height, width) or (height, width), px.

    Raises:
        BackboneError: the network's input does not have three channels.
    """
    size = [int(value) for value in data["input_size"]]
    if len(size) == 3 and size[0] != 3:
        raise BackboneError(f"the backbone needs images with {size[0]} channel(s), but edgetl uses 3 (RGB). Choose another backbone.")
    return PreprocessSpec(
        input_size=(size[-2], size[-1]),
        crop_mode=data["crop_mode"],
        crop_pct=float(data["crop_pct"]),
        interpolation=data["interpolation"],
        mean=_triple(data["mean"]),
        std=_triple(data["std"]),
    )


def _triple(values: Sequence[float]) -> tuple[float, float, float]:
    if len(values) != 3:
        raise BackboneError(f"the backbone needs images with {len(values)} channel(s), but edgetl uses 3 (RGB). Choose another backbone.")
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def fixed_size(model: nn.Module) -> bool:
    """Return True if the network accepts only one image size, as most transformers do.

    Also True for torchvision networks, because torchvision does not specify it.
    """
    return not hasattr(model, "pretrained_cfg") or bool(timm_config(model).get("fixed_input_size"))
