"""Weight files: read tensors without executing code, and load them into a network."""

from __future__ import annotations

import pickle
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import nn

from edgetl.core.files.regular import open_plain
from edgetl.errors import BackboneError, first_line
from edgetl.train.config.weights_dir import SUFFIXES, TORCH_SUFFIXES

# Keys under which training scripts save the tensors in a checkpoint.
_NESTED = ("state_dict", "model_state_dict", "model", "model_ema", "state_dict_ema")


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a ``.safetensors`` file, or of a ``.pth``, ``.pt`` or ``.bin`` file that contains only tensors.

    Args:
        path: the weights file.

    Returns:
        Tensors on the CPU, by name. A ``module.`` prefix is removed from the names in torch files.

    Raises:
        BackboneError: the file is missing or damaged, has another format than its suffix, or contains code.
    """
    try:
        open_plain(path).close()  # the libraries would block on a FIFO
    except OSError as error:
        raise BackboneError(f"{path} cannot be read: {error.strerror}. Give the path of a weights file.") from error
    if path.suffix == ".safetensors":
        return _load_safetensors(path)
    if path.suffix in TORCH_SUFFIXES:
        return _load_torch(path)
    raise BackboneError(f"{path} is not a weights file. Supported suffixes: {', '.join(SUFFIXES)}.")


def _load_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return dict(safetensors.torch.load_file(path))
    except (OSError, safetensors.SafetensorError) as error:
        raise BackboneError(f"{path} cannot be read as safetensors: {first_line(error)} Download the file again.") from error


def _load_torch(path: Path) -> dict[str, torch.Tensor]:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise BackboneError(
            f"{path} contains Python objects other than tensors. Loading them could run code, so edgetl refuses the file. "
            f"If you trust it, load it with torch and save its state_dict with safetensors.torch.save_file."
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise BackboneError(f"{path} cannot be read as torch weights: {first_line(error)} Download the file again.") from error
    for key in _NESTED:
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
            break
    if not isinstance(found, dict) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise BackboneError(f"{path} is not a state_dict. Give a file with tensors under the names of the network's layers.")
    return {str(key).removeprefix("module."): value for key, value in found.items()}


def load_weights(
    model: nn.Module, head_name: str | None, path: Path, *, architecture: str, state: dict[str, torch.Tensor] | None = None
) -> None:
    """Load the tensors of a weights file into all layers of ``model`` except the head, which has another size.

    Args:
        model: network to load the tensors into.
        head_name: name of its head. ``None`` loads every layer.
        path: the weights file.
        architecture: name of the network in error messages.
        state: tensors to use in place of the file's.

    Raises:
        BackboneError: the file cannot be read or does not fit the network.
    """
    state = load_tensors(path) if state is None else state
    own = model.state_dict()
    wanted = {key: value for key, value in own.items() if head_name is None or not key.startswith(f"{head_name}.")}
    # Many files omit the batch counter, which a trained network does not use.
    wanted = {key: value for key, value in wanted.items() if key in state or not key.endswith("num_batches_tracked")}
    missing = sorted(key for key, value in wanted.items() if key not in state or state[key].shape != value.shape)
    if missing:
        raise BackboneError(
            f"{path} does not fit {architecture}: {len(missing)} tensors are missing or differ in shape (first: {missing[0]}). "
            f"Check --backbone and the file."
        )
    with torch.no_grad():
        model.load_state_dict({key: state[key].to(value.dtype) for key, value in wanted.items()}, strict=False)
