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

from edgetl.core.manifest import Parent
from edgetl.core.preprocess import PreprocessSpec
from edgetl.errors import BackboneError, first_line
from edgetl.train.artifacts.loading.libraries import HUB, check_reachable, downloaded_file, fetch_torchvision, unknown_name
from edgetl.train.artifacts.loading.timm_config import TimmConfig, folder_config, hub_config
from edgetl.train.artifacts.loading.weights import load_weights
from edgetl.train.config.options import BackboneConfig
from edgetl.train.config.weights_dir import LOCAL_DIR, local_dir_weights, sha256_of
from edgetl.train.networks.backbone import BUILD_ERRORS, TORCHVISION, Backbone, find_head, torchvision_model


def from_timm(config: BackboneConfig, classes: int) -> Backbone:
    """Network of timm or of a hub, with the weights that the library fetches."""
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
    """Network of torchvision, with the weights that the library fetches."""
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
    """The named architecture with random weights."""
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
    """Backbone of a timm network with the preprocessing of its weights."""
    cfg = timm_config(model)
    return Backbone(
        name=name,
        architecture=str(cfg.get("architecture") or name),
        model=model,
        head_name=find_head(model),
        spec=preprocess_of(resolve_data_config({}, model=model)),
        model_args=args,
        weights_sha256=parents[0].sha256 if parents else None,
        parents=parents,
    )


def timm_config(model: nn.Module) -> dict[str, Any]:
    """timm's description of a model's weights: input, license, tag."""
    cfg: Any = model.pretrained_cfg
    return dict(cfg)


def build_saved(name: str, *, pretrained: bool, classes: int | None, **changes: Any) -> tuple[nn.Module, TimmConfig]:
    """Build the network of a ``local-dir:`` folder or an ``hf-hub:`` repository; also return its ``config.json``.

    Args:
        name: with its prefix.
        pretrained: load the weights, a safetensors file in a folder.
        classes: of the new head; none keeps the one that the weights were published with.
        changes: of the saved arguments.

    Raises:
        BackboneError: it is not in timm's form, holds arguments outside the allow-list, or cannot be loaded.
    """
    if name.startswith(LOCAL_DIR):
        folder = Path(name.removeprefix(LOCAL_DIR))
        saved = folder_config(folder)
        # The file, and not the folder, in which timm would take a pickle too.
        place = {"file": str(local_dir_weights(folder))} if pretrained else {}
    else:
        repository = name.removeprefix(HUB)
        try:
            saved = hub_config(repository)
        except OSError as error:
            raise BackboneError(f"config.json of {name} cannot be fetched: {first_line(error)}") from error
        place = {"source": "hf-hub", "hf_hub_id": repository}
    cfg, args = {**saved.pretrained_cfg, **place}, {**saved.model_args, **changes}
    return create(saved.architecture, pretrained, classes, shown=name, pretrained_cfg=cfg, **args), saved


def create(architecture: str, pretrained: bool, classes: int | None, *, shown: str | None = None, **args: Any) -> nn.Module:
    """Call ``timm.create_model``. ``classes`` none keeps the published head; ``shown`` is the name in messages."""
    if classes is not None:
        args["num_classes"] = classes
    try:
        model = timm.create_model(architecture, pretrained=pretrained, **args)
    except (OSError, safetensors.SafetensorError, *BUILD_ERRORS) as error:
        raise BackboneError(
            f"the weights of {shown or architecture} cannot be loaded: {first_line(error)} Weights come from a cache, a hub (network) or a "
            f"folder: use local-dir:PATH, --weights FILE, --weights-dir FOLDER, or --random-weights."
        ) from error
    assert isinstance(model, nn.Module)
    return model


def preprocess_of(data: dict[str, Any]) -> PreprocessSpec:
    """Preprocessing from timm's keys; a size of three numbers is channels, height, width.

    Raises:
        BackboneError: not three channels.
    """
    size = [int(value) for value in data["input_size"]]
    if len(size) == 3 and size[0] != 3:
        raise BackboneError(f"the backbone takes {size[0]} channel(s); edgetl's images have 3 (RGB). Choose another backbone.")
    return PreprocessSpec(
        input_size=(size[-2], size[-1]),
        crop_mode=data["crop_mode"],
        crop_pct=float(data["crop_pct"]),
        interpolation=data["interpolation"],
        mean=_triple(data["mean"]),
        std=_triple(data["std"]),
    )


def _triple(values: Sequence[float]) -> tuple[float, float, float]:
    """Three channel values; a backbone for another number of channels is refused.

    Raises:
        BackboneError: not three values.
    """
    if len(values) != 3:
        raise BackboneError(f"the backbone takes {len(values)} channel(s); edgetl's images have 3 (RGB). Choose another backbone.")
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def fixed_size(model: nn.Module) -> bool:
    """True if the network takes images of one size only, as most transformers do; also for torchvision, which states nothing."""
    return not hasattr(model, "pretrained_cfg") or bool(timm_config(model).get("fixed_input_size"))
