"""From a backbone's name to the network: embedded, a run, a folder, a file, or a library's own weights."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors
import timm
import torch
import torchvision
from timm.data import resolve_data_config
from torch import nn

from edgetl.core.bundle import is_run
from edgetl.core.licenses import freedom, most_restrictive
from edgetl.core.manifest import Parent
from edgetl.core.preprocess import PreprocessSpec
from edgetl.errors import BackboneError, ConfigError, first_line
from edgetl.train.artifacts.run import open_run
from edgetl.train.artifacts.sources.embedded import embedded_names, read_embedded
from edgetl.train.artifacts.sources.libraries import HUB, check_reachable, downloaded_file, fetch_torchvision, unknown_name
from edgetl.train.artifacts.sources.timm_config import TimmConfig, folder_config, hub_config
from edgetl.train.artifacts.sources.weights import load_tensors
from edgetl.train.config.options import BackboneConfig
from edgetl.train.config.weights_dir import LOCAL_DIR, find_in_mirror, local_dir_weights, sha256_of, sidecar
from edgetl.train.heads.modules import plain_state
from edgetl.train.networks.backbone import BUILD_ERRORS, TORCHVISION, Backbone, find_head, rebuild, torchvision_model
from edgetl.train.networks.input_size import with_input_size


def load_backbone(config: BackboneConfig, classes: int) -> Backbone:
    """Build the architecture that ``config`` names, load its weights, and give it a head for ``classes``.

    A run is taken with all that it learned but its head. Weights of other names are looked for in ``config.weights``, then in the
    folder ``config.weights_dir``, then where the library keeps or fetches them.

    Raises:
        BackboneError: unknown name (the nearest are named), weights not found or not fitting, or no linear head.
    """
    backbone = _find(config, classes)
    if config.license is not None:
        parents = tuple(_with_license(parent, config.license) for parent in backbone.parents)
        backbone = dataclasses.replace(backbone, parents=parents)
    license = most_restrictive(parent.license for parent in backbone.parents)
    spec = _override(backbone.spec, config)
    if spec.input_size != backbone.spec.input_size:
        backbone = with_input_size(backbone, spec.input_size)
    return dataclasses.replace(backbone, spec=spec, license=license)


def load_published(config: BackboneConfig) -> nn.Module | None:
    """The published network that ``config`` names with the head that it was published with, or none where the weights have no head."""
    name = config.name
    if config.weights is not None or name in embedded_names() or name.startswith(TORCHVISION):
        return None
    local = name.startswith((LOCAL_DIR, HUB)) or config.weights_dir is None
    if not local and (found := find_in_mirror(name, Path(str(config.weights_dir)))):
        if not found.is_dir():
            return None
        name = f"{LOCAL_DIR}{found}"
    model = build_saved(name, pretrained=True, classes=None)[0] if name.startswith((LOCAL_DIR, HUB)) else _create(name, True, None)
    return model if timm_config(model).get("num_classes") else None


def _with_license(parent: Parent, license: str) -> Parent:
    """The parent with the license that the user read on its card, where its own says nothing that edgetl knows."""
    return parent.model_copy(update={"license": license}) if freedom(parent.license) == "unknown" else parent


def _find(config: BackboneConfig, classes: int) -> Backbone:
    name = config.name
    own = name in embedded_names() or is_run(name) or name.startswith((LOCAL_DIR, HUB))
    if config.weights is not None and (own or not config.pretrained):
        other = f"--backbone {name}, which has weights of its own" if own else "--random-weights"
        raise ConfigError(f"--weights {config.weights} cannot go with {other}. Name the architecture of the file with --backbone.")
    if is_run(name):
        return _from_run(Path(name), config, classes)
    if name in embedded_names():
        return _from_embedded(config, classes)
    if config.weights is not None:
        return _from_file(Path(config.weights), config, classes)
    if name.startswith(LOCAL_DIR):
        return _from_folder(Path(name.removeprefix(LOCAL_DIR)), config, classes)
    if config.pretrained and config.weights_dir is not None and (found := find_in_mirror(name, Path(config.weights_dir))):
        return _from_folder(found, config, classes) if found.is_dir() else _from_file(found, config, classes)
    return _from_torchvision(config, classes) if name.startswith(TORCHVISION) else _from_timm(config, classes)


def _from_run(path: Path, config: BackboneConfig, classes: int) -> Backbone:
    """A fine-tuned network as a backbone: the next level of the pyramid."""
    run = open_run(path)
    old = run.record.backbone
    if old.columns and not config.pretrained:
        raise ConfigError(
            f"{path} has columns, which random weights would be frozen in. Name its architecture: --backbone {old.architecture}."
        )
    state = plain_state(run.load_model())  # first: it checks the record of the network
    model = rebuild(old.architecture, dict(old.model_args), classes, old.columns)
    head_name = find_head(model)  # not the run's: its head may be another one than the architecture's own
    if config.pretrained:
        fill(model, head_name, path, architecture=old.architecture, state=state)
    return Backbone(
        name=config.name,
        architecture=old.architecture,
        model=model,
        head_name=head_name,
        spec=run.record.preprocess,
        model_args=dict(old.model_args),
        weights_sha256=run.record.files["weights.safetensors"] if config.pretrained else None,
        parents=(*old.parents, run.as_parent()) if config.pretrained else (),
        columns=old.columns,
    )


def _from_embedded(config: BackboneConfig, classes: int) -> Backbone:
    path, record = read_embedded(config.name)
    model = rebuild(record.architecture, {}, classes)
    head_name = find_head(model)
    parents: tuple[Parent, ...] = ()
    if config.pretrained:
        digest = sha256_of(path)
        if digest != record.weights_sha256:
            raise BackboneError(f"{path} is not the file that {path.stem}.json names (SHA-256 differs). Install edgetl again.")
        fill(model, head_name, path, architecture=record.architecture)
        parents = (
            Parent(
                kind="embedded", name=record.name, architecture=record.architecture, sha256=digest, license=record.license,
                data_fingerprint=record.pictures_sha256,
            ),
        )  # fmt: skip
    digest_of = parents[0].sha256 if parents else None
    return Backbone(config.name, record.architecture, model, head_name, record.preprocess, weights_sha256=digest_of, parents=parents)


def _from_file(path: Path, config: BackboneConfig, classes: int) -> Backbone:
    """The named architecture with the tensors of a file; what stands beside it (``NAME.json``) says how its input is made."""
    name = config.name.removeprefix(HUB).rpartition("/")[2].partition("@")[0]
    backbone = _architecture(name, classes)
    fill(backbone.model, backbone.head_name, path, architecture=backbone.architecture)
    facts, digest = sidecar(path), sha256_of(path)
    try:
        # `edgetl pretrain` writes the same facts under its own keys.
        own = {**facts["preprocess"], "license": facts.get("license")} if "preprocess" in facts else facts
        spec = _spec({**backbone.spec.model_dump(), **own})
        parent = Parent(
            kind="weights", name=path.name, architecture=backbone.architecture, sha256=digest, license=own.get("license"),
            data_fingerprint=facts.get("pictures_sha256"),
        )  # fmt: skip
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise BackboneError(f"what stands beside {path} is not in the keys of timm's pretrained_cfg: {first_line(error)}") from error
    return dataclasses.replace(backbone, name=config.name, spec=spec, weights_sha256=digest, parents=(parent,))


def _from_folder(folder: Path, config: BackboneConfig, classes: int) -> Backbone:
    """A folder in timm's form (``config.json``, ``model.safetensors``); a run, which is one too, keeps its lineage."""
    if is_run(folder):
        return _from_run(folder, config, classes)
    model, saved = build_saved(f"{LOCAL_DIR}{folder}", pretrained=config.pretrained, classes=classes)
    parents: tuple[Parent, ...] = ()
    if config.pretrained:
        digest, license = sha256_of(local_dir_weights(folder)), saved.pretrained_cfg.get("license")
        parents = (Parent(kind="weights", name=folder.name, architecture=saved.architecture, sha256=digest, license=license),)
    return _timm_backbone(config.name, model, saved.model_args, parents)


def _from_timm(config: BackboneConfig, classes: int) -> Backbone:
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
        model = _create(name, config.pretrained, classes)
    parents: tuple[Parent, ...] = ()
    if config.pretrained:
        cfg, file = timm_config(model), downloaded_file(name)
        parents = (
            Parent(
                kind="weights",
                name=f"{cfg.get('architecture')}.{cfg.get('tag')}" if cfg.get("tag") else name,
                architecture=str(cfg.get("architecture") or name),
                sha256=sha256_of(file) if file else None,
                license=cfg.get("license"),
            ),
        )
    return _timm_backbone(name, model, args, parents)


def _from_torchvision(config: BackboneConfig, classes: int) -> Backbone:
    backbone = _architecture(config.name, classes)
    if not config.pretrained:
        return backbone
    check_reachable(config.name, config.weights_dir)
    # Fetched and read by ourselves: torchvision's own loading would run what a file brings.
    path, weights = fetch_torchvision(config.name)
    fill(backbone.model, backbone.head_name, path, architecture=config.name)
    name = f"{config.name.removeprefix(TORCHVISION)}.{weights.name}"
    license = weights.meta.get("license", "bsd-3-clause")
    parent = Parent(kind="weights", name=name, architecture=config.name, sha256=sha256_of(path), license=license)
    return dataclasses.replace(backbone, weights_sha256=parent.sha256, parents=(parent,))


def _architecture(name: str, classes: int) -> Backbone:
    """The named architecture with random weights."""
    if not name.startswith(TORCHVISION):
        if not timm.is_model(name.split(".")[0]):
            raise unknown_name(name)
        return _timm_backbone(name, _create(name, False, classes), {}, ())
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


def _timm_backbone(name: str, model: nn.Module, args: dict[str, Any], parents: tuple[Parent, ...]) -> Backbone:
    cfg = timm_config(model)
    return Backbone(
        name=name,
        architecture=str(cfg.get("architecture") or name),
        model=model,
        head_name=find_head(model),
        spec=_spec(resolve_data_config({}, model=model)),
        model_args=args,
        weights_sha256=parents[0].sha256 if parents else None,
        parents=parents,
    )


def timm_config(model: nn.Module) -> dict[str, Any]:
    """What timm knows of a model's weights: input, license, tag."""
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
    return _create(saved.architecture, pretrained, classes, shown=name, pretrained_cfg=cfg, **args), saved


def _create(architecture: str, pretrained: bool, classes: int | None, *, shown: str | None = None, **args: Any) -> nn.Module:
    """Call ``timm.create_model``. ``classes`` none keeps the published head; ``shown`` is the name that the user gave."""
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


def fill(model: nn.Module, head_name: str | None, path: Path, *, architecture: str, state: dict[str, torch.Tensor] | None = None) -> None:
    """Load a file's tensors, or ``state``, into everything but the head, whose size differs.

    Raises:
        BackboneError: the file cannot be read, or does not fit.
    """
    state = load_tensors(path) if state is None else state
    own = model.state_dict()
    wanted = {key: value for key, value in own.items() if head_name is None or not key.startswith(f"{head_name}.")}
    # A finished network has no use for the counter of batches, and many files leave it out.
    wanted = {key: value for key, value in wanted.items() if key in state or not key.endswith("num_batches_tracked")}
    missing = sorted(key for key, value in wanted.items() if key not in state or state[key].shape != value.shape)
    if missing:
        raise BackboneError(f"{path} does not fit {architecture}: {len(missing)} tensors are missing or differ in shape ({missing[0]}…).")
    with torch.no_grad():
        model.load_state_dict({key: state[key].to(value.dtype) for key, value in wanted.items()}, strict=False)


def _spec(data: dict[str, Any]) -> PreprocessSpec:
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


def _override(spec: PreprocessSpec, config: BackboneConfig) -> PreprocessSpec:
    given = {name: getattr(config, name) for name in ("input_size", "mean", "std", "crop_pct", "interpolation", "resize")}
    changes = {name: value for name, value in given.items() if value is not None}
    if any(not math.isfinite(value) or value <= 0 for value in changes.get("std", ())):
        raise ConfigError(f"--std {changes['std']} must be three numbers above 0.")
    return spec.model_copy(update=changes)


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
    """Whether the network takes images of one size only, such as most transformers; torchvision's do not say, and are not asked."""
    return not hasattr(model, "pretrained_cfg") or bool(timm_config(model).get("fixed_input_size"))
