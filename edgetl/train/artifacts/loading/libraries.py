"""Weights that a library fetches: their place in its cache, and the reachability of their host."""

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
from edgetl.train.config.options import DEFAULT_BACKBONE
from edgetl.train.networks.backbone import TORCHVISION

HUB = "hf-hub:"
# What timm looks for in a repository of the hub, in its order.
HUB_FILES = ("model.safetensors", "open_clip_model.safetensors", "pytorch_model.bin", "open_clip_pytorch_model.bin")


def downloaded_file(name: str) -> Path | None:
    """The file in the library's own cache that holds the weights of ``name``; none where it was not fetched yet."""
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
            f"{name} is no name on the hub: {first_line(error)} Give hf-hub:ORG/NAME, or hf-hub:ORG/NAME@REVISION."
        ) from error
    return next((Path(path) for path in found if isinstance(path, str)), None)


def fetch_torchvision(name: str) -> tuple[Path, Any]:
    """The default weights' file of a torchvision classifier, fetched if it is not in torch's cache, and their enum's entry.

    Raises:
        BackboneError: it cannot be fetched, or is not the file that torchvision names.
    """
    weights = torchvision.models.get_model_weights(name.removeprefix(TORCHVISION)).DEFAULT
    if downloaded_file(name) is None:
        try:
            weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
        except (OSError, RuntimeError) as error:
            raise BackboneError(f"the weights of {name} cannot be fetched: {first_line(error)}") from error
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(urlsplit(weights.url).path).name, weights


def check_reachable(name: str, weights_dir: str | None) -> None:
    """Refuse unreachable weights at once; the hub's client would try for a minute.

    Raises:
        BackboneError: they are not on this machine, and the library may not or cannot reach their host.
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
        f"the weights of {name} are not on this machine and cannot be fetched: {reason}. Looked in {', '.join(places)}. "
        f"Fetch them where there is a network and name their folder with --weights-dir, or take --backbone {DEFAULT_BACKBONE}, "
        f"which comes with edgetl."
    )


def unknown_name(name: str) -> BackboneError:
    """Error for a name that no library has, with the nearest names that exist."""
    known = [*timm.list_models(), *(TORCHVISION + other for other in torchvision.models.list_models(module=torchvision.models))]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"The nearest: {', '.join(near)}." if near else "See `edgetl models` and timm.list_models()."
    library = "torchvision has no classifier" if name.startswith(TORCHVISION) else "timm has no backbone"
    return BackboneError(f"{library} called {name.removeprefix(TORCHVISION)!r}. {hint}")


def _repository(name: str) -> tuple[str, str | None] | None:
    if name.startswith(HUB):
        repository, _, revision = name.removeprefix(HUB).partition("@")
        return repository, revision or None
    try:
        cfg = timm.get_pretrained_cfg(name, allow_unregistered=True)
    except RuntimeError as error:
        tags = ", ".join(timm.list_pretrained(f"{name.split('.')[0]}.*")) or "none"
        raise BackboneError(f"timm has no weights called {name}. It has: {tags}. A file of your own: --weights, --weights-dir.") from error
    return (cfg.hf_hub_id, None) if cfg is not None and cfg.hf_hub_id else None


def _torchvision_url(name: str) -> str:
    short = name.removeprefix(TORCHVISION)
    if short not in torchvision.models.list_models(module=torchvision.models):
        raise unknown_name(name)
    return str(torchvision.models.get_model_weights(short).DEFAULT.url)


def _unreachable(host: str) -> str | None:
    """Reason why ``host`` cannot be reached, by a look-up of its address; behind a proxy there is no look-up."""
    if urllib.request.getproxies() or os.environ.get("HF_ENDPOINT"):
        return None
    try:
        socket.getaddrinfo(host, 443)
    except OSError as error:
        return f"{host}: {error.strerror or error}"
    return None
