"""Zero-shot head of CLIP: cosine similarity of the projected image features to one text embedding per class.

Source: Radford et al. 2021, arXiv:2103.00020. Nothing is fitted. The text embeddings come from the text tower that belongs to the backbone.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
import torch
from numpy.typing import NDArray
from torch import nn

from edgetl.core.files.regular import open_plain
from edgetl.errors import ConfigError, first_line
from edgetl.train.heads.modules import FittedHead, HeadSpec, TextProjection, linear_layer

# Scale of the similarities. CLIP limits its trained scale to 100, and the published models reach this limit.
LOGIT_SCALE = 100.0
MAX_BYTES = 64_000_000
OPTION = "--text-embeddings"


def read_text_embeddings(path: Path, labels: Sequence[str]) -> NDArray[np.float32]:
    """Read the text embedding of each class.

    Args:
        path: ``.npz`` or ``.safetensors`` with one vector per class, under the name of the class; or ``.npy`` with a matrix
            ``[classes, size]`` in the order of ``labels``.
        labels: names of the classes, in the order of the outputs.

    Returns:
        float32 ``[classes, size]``, rows of length 1.

    Raises:
        ConfigError: the file cannot be read, lacks a class, or has other values than vectors of one size.
    """
    rows = _read(path)
    if not isinstance(rows, Mapping):
        if rows.ndim != 2 or len(rows) != len(labels):
            raise ConfigError(
                f"{OPTION} {path} has an array of shape {rows.shape}, but the images have {len(labels)} classes. Give one row per "
                f"class in the order of their sorted names, or a .npz file with one vector under each name."
            )
        rows = dict(zip(labels, rows, strict=True))
    if missing := [label for label in labels if label not in rows]:
        raise ConfigError(
            f"{OPTION} {path} has no vector for {', '.join(missing[:5])}. Its names are {', '.join(sorted(rows)[:5])}. Name the vectors "
            f"like the class folders."
        )
    vectors = [np.asarray(rows[label]) for label in labels]
    if any(vector.ndim != 1 or vector.shape != vectors[0].shape or vector.dtype.kind != "f" for vector in vectors):
        raise ConfigError(f"{OPTION} {path} does not have one vector of floating-point numbers per class, all of the same size.")
    matrix = np.stack(vectors).astype(np.float32)
    lengths = np.linalg.norm(matrix, axis=1, keepdims=True)
    if not np.isfinite(lengths).all() or not (lengths > 0).all():
        raise ConfigError(f"{OPTION} {path} has a vector of zeros, or with values that are not finite. Compute the embeddings again.")
    normalized: NDArray[np.float32] = matrix / lengths
    return normalized


def _read(path: Path) -> Mapping[str, NDArray[Any]] | NDArray[Any]:
    """Read the arrays of a file without running code from it."""
    try:
        with open_plain(path) as file:
            if file.seek(0, 2) > MAX_BYTES:
                raise ConfigError(f"{OPTION} {path} has more than {MAX_BYTES / 1e6:.0f} MB. It is not a file of text embeddings.")
        if path.suffix == ".safetensors":
            return safetensors.numpy.load_file(path)
        if path.suffix not in (".npy", ".npz"):
            raise ConfigError(f"{OPTION} {path} is not a .npz, .safetensors or .npy file.")
        if path.suffix == ".npz":
            with zipfile.ZipFile(path) as archive:
                if sum(item.file_size for item in archive.infolist()) > MAX_BYTES:
                    raise ConfigError(
                        f"{OPTION} {path} unpacks to more than {MAX_BYTES / 1e6:.0f} MB. It is not a file of text embeddings."
                    )
        found = np.load(path)
        return found if isinstance(found, np.ndarray) else {name: found[name] for name in found.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, safetensors.SafetensorError) as error:
        raise ConfigError(f"{OPTION} {path} cannot be read: {first_line(error)} Write it with numpy.savez or safetensors.") from error


def make_zero_shot(embeddings: NDArray[np.float32], width: int, projection: nn.Linear | None) -> FittedHead:
    """Make a zero-shot head: ``logits = 100 * (cosine(projected features, text embedding) - 1)``.

    Args:
        embeddings: float32 ``[classes, size]``, rows of length 1.
        width: number of the backbone's features.
        projection: published projection of the features to ``size`` values. ``None``: the features are not projected (SigLIP).

    Raises:
        ConfigError: the embeddings have another size than the projected features.
    """
    classes, size = embeddings.shape
    outputs = width if projection is None else projection.out_features
    if outputs != size:
        raise ConfigError(
            f"the text embeddings have {size} values, but the backbone projects images to {outputs}. Use embeddings of the text tower that "
            f"belongs to the backbone, and weights that are not fine-tuned on ImageNet."
        )
    adapter = TextProjection(width, size)
    with torch.no_grad():
        if projection is None:
            nn.init.eye_(adapter.projection.weight)
            nn.init.zeros_(adapter.projection.bias)
        else:
            adapter.projection.weight.copy_(projection.weight)
            adapter.projection.bias.copy_(projection.bias)
    # As in the cosine head, the constant -1 gives a bias that exporters do not remove.
    head = linear_layer(LOGIT_SCALE * torch.from_numpy(embeddings), torch.full((classes,), -LOGIT_SCALE))
    return FittedHead(HeadSpec(kind="text", embedding=size), adapter.eval().requires_grad_(False), head, math.nan)
