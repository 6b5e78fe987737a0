"""Weight files: read tensors without running code, and load them into a network."""

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

# Where training scripts put the tensors inside a checkpoint.
_NESTED = ("state_dict", "model_state_dict", "model", "model_ema", "state_dict_ema")


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a ``.safetensors`` file, or of a ``.pth``, ``.pt`` or ``.bin`` that holds nothing but tensors.

    Raises:
        BackboneError: the file is missing, damaged, of another format than its name, or holds code.
    """
    try:
        open_plain(path).close()  # the libraries open a FIFO too, and wait for its other end
    except OSError as error:
        raise BackboneError(f"{path} cannot be read: {error.strerror}. Give a file of weights.") from error
    if path.suffix == ".safetensors":
        return _load_safetensors(path)
    if path.suffix in TORCH_SUFFIXES:
        return _load_torch(path)
    raise BackboneError(f"{path} is no weights file; edgetl reads {', '.join(SUFFIXES)}.")


def _load_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return dict(safetensors.torch.load_file(path))
    except (OSError, safetensors.SafetensorError) as error:
        raise BackboneError(f"{path} cannot be read as safetensors: {first_line(error)} Fetch the file again.") from error


def _load_torch(path: Path) -> dict[str, torch.Tensor]:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise BackboneError(
            f"{path} holds more than tensors, and edgetl runs nothing that a file brings. "
            f"Load it where you trust it and save its state_dict with safetensors.torch.save_file."
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise BackboneError(f"{path} cannot be read as torch weights: {first_line(error)} Fetch the file again.") from error
    for key in _NESTED:
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
            break
    if not isinstance(found, dict) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise BackboneError(f"{path} is not a state_dict: tensors under the network's own names are needed.")
    return {str(key).removeprefix("module."): value for key, value in found.items()}


def load_weights(
    model: nn.Module, head_name: str | None, path: Path, *, architecture: str, state: dict[str, torch.Tensor] | None = None
) -> None:
    """Load a file's tensors, or ``state``, into all layers but the head, whose size differs.

    Raises:
        BackboneError: the file cannot be read, or does not fit.
    """
    state = load_tensors(path) if state is None else state
    own = model.state_dict()
    wanted = {key: value for key, value in own.items() if head_name is None or not key.startswith(f"{head_name}.")}
    # A trained network does not use the counter of batches, and many files leave it out.
    wanted = {key: value for key, value in wanted.items() if key in state or not key.endswith("num_batches_tracked")}
    missing = sorted(key for key, value in wanted.items() if key not in state or state[key].shape != value.shape)
    if missing:
        raise BackboneError(f"{path} does not fit {architecture}: {len(missing)} tensors are missing or differ in shape ({missing[0]}…).")
    with torch.no_grad():
        model.load_state_dict({key: state[key].to(value.dtype) for key, value in wanted.items()}, strict=False)
