"""Weights that timm or torchvision downloads: their path in the library's cache, and a check that their host is reachable."""

from __future__ import annotations

import difflib
import os
import socket
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import huggingface_hub
import timm
import torch
import torchvision
from huggingface_hub import constants

from edgetl.errors import BackboneError, first_line
from edgetl.train.config.weights_dir import EMBEDDED_BACKBONE
from edgetl.train.networks.backbone import TORCHVISION

HUB = "hf-hub:"
# Weight files that timm looks for in a hub repository, in timm's order.
HUB_FILES = ("model.safetensors", "open_clip_model.safetensors", "pytorch_model.bin", "open_clip_pytorch_model.bin")


def downloaded_file(name: str) -> Path | None:
    """Return the weights file of the backbone ``name`` in the library's own cache, or ``None`` if it was not downloaded yet.

    Raises:
        BackboneError: the name is unknown, or is not valid on the hub.
    """
    if name.startswith(TORCHVISION):
        path = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlsplit(_torchvision_url(name)).path).name
        return path if path.is_file() else None
    repository = _repository(name)
    if repository is None:
        return None
    try:
        found = [huggingface_hub.try_to_load_from_cache(repository[0], file, revision=repository[1]) for file in HUB_FILES]
    except ValueError as error:
        raise BackboneError(
            f"{name} is not a valid hub name: {first_line(error)} Give hf-hub:ORG/NAME or hf-hub:ORG/NAME@REVISION."
        ) from error
    return next((Path(path) for path in found if isinstance(path, str)), None)


def fetch_torchvision(name: str) -> tuple[Path, Any]:
    """Return the file of a torchvision classifier's default weights, and their torchvision enum entry.

    The file is downloaded if it is not in torch's cache.

    Raises:
        BackboneError: the file cannot be downloaded, or its hash is wrong.
    """
    weights = torchvision.models.get_model_weights(name.removeprefix(TORCHVISION)).DEFAULT
    if downloaded_file(name) is None:
        try:
            weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
        except (OSError, RuntimeError) as error:
            raise BackboneError(f"the weights of {name} cannot be downloaded: {first_line(error)}") from error
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(urlsplit(weights.url).path).name, weights


def check_reachable(name: str, weights_dir: str | None) -> None:
    """Check that the weights of ``name`` are on this machine or that their host is reachable.

    The hub's own client would retry for a minute before it fails.

    Raises:
        BackboneError: the weights are not on this machine, and their host is unreachable or the network is forbidden.
    """
    if downloaded_file(name) is not None:
        return
    host = urlsplit(_torchvision_url(name) if name.startswith(TORCHVISION) else constants.ENDPOINT).hostname or ""
    reason = "HF_HUB_OFFLINE forbids the network" if constants.HF_HUB_OFFLINE and not name.startswith(TORCHVISION) else _unreachable(host)
    if reason is None:
        return
    places = [f"the folder {weights_dir}"] if weights_dir else []
    places += [f"the cache {torch.hub.get_dir() if name.startswith(TORCHVISION) else constants.HF_HUB_CACHE}", host]
    raise BackboneError(
        f"the weights of {name} are not on this machine and cannot be downloaded: {reason}. Searched: {', '.join(places)}. "
        f"Download them on a machine with a network connection and give their folder with --weights-dir. Or use "
        f"--backbone {EMBEDDED_BACKBONE}, which is included in edgetl."
    )


def unknown_name(name: str) -> BackboneError:
    """Return the error for an unknown backbone name, with the most similar known names."""
    if Path(name).is_dir():
        return BackboneError(f"{name} is a folder, but not a run. If it has weights in timm's format, give local-dir:{name}.")
    known = [*timm.list_models(), *(TORCHVISION + other for other in torchvision.models.list_models(module=torchvision.models))]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"Similar names: {', '.join(near)}." if near else "See `edgetl models` and timm.list_models()."
    library = "torchvision has no classifier" if name.startswith(TORCHVISION) else "timm has no backbone"
    return BackboneError(f"{library} named {name.removeprefix(TORCHVISION)!r}. {hint}")


def _repository(name: str) -> tuple[str, str | None] | None:
    if name.startswith(HUB):
        repository, _, revision = name.removeprefix(HUB).partition("@")
        return repository, revision or None
    try:
        cfg = timm.get_pretrained_cfg(name, allow_unregistered=True)
    except RuntimeError as error:
        tags = ", ".join(timm.list_pretrained(f"{name.split('.')[0]}.*")) or "none"
        raise BackboneError(
            f"timm has no weights named {name}. Available: {tags}. Use --weights or --weights-dir for a local file."
        ) from error
    return (cfg.hf_hub_id, None) if cfg is not None and cfg.hf_hub_id else None


def _torchvision_url(name: str) -> str:
    short = name.removeprefix(TORCHVISION)
    if short not in torchvision.models.list_models(module=torchvision.models):
        raise unknown_name(name)
    return str(torchvision.models.get_model_weights(short).DEFAULT.url)


def _unreachable(host: str) -> str | None:
    """Return the reason why ``host`` is unreachable, or ``None``. Only its address is resolved; behind a proxy nothing is checked."""
    if urllib.request.getproxies() or os.environ.get("HF_ENDPOINT"):
        return None
    try:
        socket.getaddrinfo(host, 443)
    except OSError as error:
        return f"{host}: {error.strerror or error}"
    return None
