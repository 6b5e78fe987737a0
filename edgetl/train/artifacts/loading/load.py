"""Backbone loading: an embedded or installed backbone, a run, a folder, a weights file, or the weights of timm, torchvision or a hub."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

from torch import nn

from edgetl.core.bundle import is_run
from edgetl.core.licenses import freedom, most_restrictive
from edgetl.core.lineage import Parent
from edgetl.core.preprocess import PreprocessSpec
from edgetl.errors import BackboneError, ConfigError, first_line
from edgetl.train.artifacts.continued import read_continued
from edgetl.train.artifacts.loading.build import (
    build_saved,
    create,
    from_timm,
    from_torchvision,
    preprocess_of,
    random_network,
    timm_backbone,
    timm_config,
)
from edgetl.train.artifacts.loading.catalogue import embedded_names, packaged_names, read_embedded
from edgetl.train.artifacts.loading.installed import from_lite0, published_lite0
from edgetl.train.artifacts.loading.libraries import HUB
from edgetl.train.artifacts.loading.weights import load_weights
from edgetl.train.artifacts.record import WEIGHTS_NAME
from edgetl.train.artifacts.run import open_run
from edgetl.train.config.options import BackboneConfig
from edgetl.train.config.weights_dir import LITE0, LOCAL_DIR, find_weights, local_dir_weights, sha256_of, sidecar
from edgetl.train.heads.modules import plain_state
from edgetl.train.networks.backbone import TORCHVISION, Backbone, find_head, rebuild
from edgetl.train.networks.input_size import with_input_size


def load_backbone(config: BackboneConfig, classes: int) -> Backbone:
    """Load a backbone with its pretrained weights and a new linear head.

    ``config.name`` is an embedded backbone, ``lite0``, a run folder, ``local-dir:FOLDER``, a timm name, ``torchvision:NAME`` or
    ``hf-hub:ORG/NAME``. A run provides all its weights except the head. The weights of a timm, torchvision or hub name are searched in
    ``config.weights``, then in the folder ``config.weights_dir``, then in the library's cache, and are downloaded last.

    Args:
        config: name and options of the backbone.
        classes: number of outputs of the new head.

    Returns:
        The backbone with its preprocessing, license and lineage. Its network maps float32 ``[batch, 3, H, W]`` to logits
        ``[batch, classes]``.

    Raises:
        BackboneError: the name is unknown, the weights are missing or do not fit, or the network has no linear head.
        ConfigError: options conflict, for example ``weights`` together with a run.
        MissingExtraError: the package with the weights of ``lite0`` is not installed.
        RunError: the run is damaged.
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
    """Return the network that ``config`` names with its published head, or ``None`` if the weights have no head.

    Raises:
        BackboneError: the network cannot be built, or its weights cannot be loaded.
    """
    name = config.name
    if config.weights is not None or name in embedded_names() or name.startswith(TORCHVISION):
        return None
    if name == LITE0:
        return published_lite0()
    local = name.startswith((LOCAL_DIR, HUB)) or config.weights_dir is None
    if not local and (found := find_weights(name, Path(str(config.weights_dir)))):
        if not found.is_dir():
            return None
        name = f"{LOCAL_DIR}{found}"
    model = build_saved(name, pretrained=True, classes=None)[0] if name.startswith((LOCAL_DIR, HUB)) else create(name, True, None)
    return model if timm_config(model).get("num_classes") else None


def _with_license(parent: Parent, license: str) -> Parent:
    """Return ``parent`` with ``license`` if its own license is not stated or unknown."""
    return parent.model_copy(update={"license": license}) if freedom(parent.license) == "unknown" else parent


def _find(config: BackboneConfig, classes: int) -> Backbone:
    name = config.name
    own = name in packaged_names() or is_run(name) or name.startswith((LOCAL_DIR, HUB))
    if config.weights is not None and (own or not config.pretrained):
        other = f"--backbone {name}, which has its own weights" if own else "--random-weights"
        raise ConfigError(f"--weights {config.weights} conflicts with {other}. Give the architecture of the file with --backbone.")
    if is_run(name):
        return _from_run(Path(name), config, classes)
    if name in embedded_names():
        return _from_embedded(config, classes)
    if name == LITE0:
        return from_lite0(classes, pretrained=config.pretrained)
    if config.weights is not None:
        return _from_file(Path(config.weights), config, classes)
    if name.startswith(LOCAL_DIR):
        return _from_folder(Path(name.removeprefix(LOCAL_DIR)), config, classes)
    if config.pretrained and config.weights_dir is not None and (found := find_weights(name, Path(config.weights_dir))):
        return _from_folder(found, config, classes) if found.is_dir() else _from_file(found, config, classes)
    return from_torchvision(config, classes) if name.startswith(TORCHVISION) else from_timm(config, classes)


def _from_run(path: Path, config: BackboneConfig, classes: int) -> Backbone:
    """Load the network of a run as a backbone, with a new head."""
    run = open_run(path)
    old = run.record.backbone
    if old.columns and not config.pretrained:
        raise ConfigError(
            f"{path} is a progressive network, which --random-weights would freeze with random weights. "
            f"Use --backbone {old.architecture} instead."
        )
    state = plain_state(run.load_model())  # before the next line, because it checks the record of the network
    model = rebuild(old.architecture, dict(old.model_args), classes, old.columns)
    head_name = find_head(model)  # the run's head may differ from the architecture's own
    if config.pretrained:
        load_weights(model, head_name, path, architecture=old.architecture, state=state)
    found = dataclasses.replace(run.backbone(model), name=config.name, head_name=head_name, weights_sha256=None, parents=())
    if not config.pretrained:
        return found
    return dataclasses.replace(found, weights_sha256=run.record.files[WEIGHTS_NAME], parents=(*old.parents, run.as_parent()))


def _from_embedded(config: BackboneConfig, classes: int) -> Backbone:
    path, record = read_embedded(config.name)
    model = rebuild(record.architecture, {}, classes)
    head_name = find_head(model)
    parents: tuple[Parent, ...] = ()
    if config.pretrained:
        digest = sha256_of(path)
        if digest != record.weights_sha256:
            raise BackboneError(f"{path} is damaged: its SHA-256 differs from the hash in {path.stem}.json. Install edgetl again.")
        load_weights(model, head_name, path, architecture=record.architecture)
        parent = Parent(
            kind="embedded",
            name=record.name,
            architecture=record.architecture,
            sha256=digest,
            license=record.license,
            data_fingerprint=record.images_sha256,
        )
        parents = (parent,)
    loaded = parents[0].sha256 if parents else None
    return Backbone(config.name, record.architecture, model, head_name, record.preprocess, weights_sha256=loaded, parents=parents)


def _from_file(path: Path, config: BackboneConfig, classes: int) -> Backbone:
    """Build the architecture, load a weights file, and read the preprocessing from ``NAME.json`` beside it."""
    name = config.name.removeprefix(HUB).rpartition("/")[2].partition("@")[0]
    backbone = random_network(name, classes)
    load_weights(backbone.model, backbone.head_name, path, architecture=backbone.architecture)
    facts, digest = sidecar(path), sha256_of(path)
    try:
        # `edgetl pretrain` writes the same facts under its own keys.
        own = {**facts["preprocess"], "license": facts.get("license")} if "preprocess" in facts else facts
        spec = preprocess_of({**backbone.spec.model_dump(), **own})
        parent = Parent(
            kind="weights",
            name=path.name,
            architecture=backbone.architecture,
            sha256=digest,
            license=own.get("license"),
            data_fingerprint=facts.get("images_sha256"),
        )
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise BackboneError(
            f"{path.with_suffix('.json')} does not have the keys of timm's pretrained_cfg: {first_line(error)} Correct or remove the file."
        ) from error
    return dataclasses.replace(backbone, name=config.name, spec=spec, weights_sha256=digest, parents=(parent,))


def _from_folder(folder: Path, config: BackboneConfig, classes: int) -> Backbone:
    """Load a folder in timm's format (``config.json``, ``model.safetensors``). A run has the same files and keeps its lineage."""
    if is_run(folder):
        return _from_run(folder, config, classes)
    model, saved = build_saved(f"{LOCAL_DIR}{folder}", pretrained=config.pretrained, classes=classes)
    parents: tuple[Parent, ...] = ()
    if config.pretrained:
        if (continued := read_continued(folder)) is not None:
            parents = (*continued.parents, continued.as_parent())
        else:
            digest, license = sha256_of(local_dir_weights(folder)), saved.pretrained_cfg.get("license")
            parents = (Parent(kind="weights", name=folder.name, architecture=saved.architecture, sha256=digest, license=license),)
    return timm_backbone(config.name, model, saved.model_args, parents)


def _override(spec: PreprocessSpec, config: BackboneConfig) -> PreprocessSpec:
    given = {name: getattr(config, name) for name in ("input_size", "mean", "std", "crop_pct", "interpolation", "resize")}
    changes = {name: value for name, value in given.items() if value is not None}
    if any(not math.isfinite(value) or value <= 0 for value in changes.get("std", ())):
        raise ConfigError(f"--std is {changes['std']}. Give three numbers above 0.")
    return spec.model_copy(update=changes)
