"""Features of an audit: frozen features and thumbnails of each image, computed once and cached by content."""

from __future__ import annotations

import hashlib
import io
import logging
import math
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgetl.core.bundle import hash_prefix
from edgetl.core.files.atomic import write_bytes
from edgetl.core.files.regular import read_plain
from edgetl.core.preprocess import PreprocessSpec, decode_image, preprocess
from edgetl.core.progress import Progress, silent
from edgetl.data.content.integrity import cache_file
from edgetl.data.content.registration import SIDE, make_thumbnail
from edgetl.data.folder import ImageFolder, Sample
from edgetl.errors import ConfigError, StorageError
from edgetl.train.artifacts.loading.build import fixed_size
from edgetl.train.heads.multi_stage import MultiStageFeatures, check_stage_features
from edgetl.train.inputs.features import FrozenFeatures
from edgetl.train.networks.backbone import Backbone, feature_extractor

_log = logging.getLogger(__name__)

# Small images are enlarged at most by this factor, to a multiple of the stride of most networks. A larger input only costs time.
_ENLARGEMENT, _STEP, _LEAST = 3, 32, 96
# Smallest input side for photos. With the embedded backbone, a probe finds more label errors at 192 px than at 128 px.
_PHOTO = 192
# Version of the cache files. Increase it when the meaning of their arrays changes.
_FORMAT = 3
_ARRAYS = "contents", "features", "stages", "thumbnails"
# Largest cache file. A larger data set is computed each time.
_MAX_CACHE_BYTES = 1_000_000_000


@dataclass(frozen=True, eq=False)
class AuditFeatures:
    """Features of the images of a folder, in the order of its samples.

    Attributes:
        features: last features, float32 ``[n, width]``. They compare images.
        stages: multi-stage features, averaged over the image and its mirror image, float32 ``[n, stages]``. They classify images.
        thumbnails: gray thumbnails, uint8 ``[n, SIDE, SIDE]``.
        enlarged: true for an image that was enlarged to its thumbnail, ``[n]``.
        plain: true for a uniform or dark image, ``[n]``. Its features show little, so that it is not compared.
    """

    features: NDArray[np.float32]
    stages: NDArray[np.float32]
    thumbnails: NDArray[np.uint8]
    enlarged: NDArray[np.bool_]
    plain: NDArray[np.bool_]


def compute_features(folder: ImageFolder, backbone: Backbone, *, device: str, progress: Progress = silent) -> AuditFeatures:
    """Compute the features and thumbnails of all images, or read them from the user's cache folder.

    Raises:
        ImageError: an image cannot be read any more.
    """
    spec = _spec(folder.samples, backbone)
    key = hashlib.sha256(f"{_FORMAT} {backbone.weights_sha256} {spec.model_dump_json()} {backbone.architecture}".encode()).hexdigest()[:16]
    file = cache_file(folder.root, "features", f"-{key}.npz")
    known = _read(file)
    contents = np.array([hash_prefix(sample.content) for sample in folder.samples], np.uint64)
    first = {content: index for index, content in reversed(list(enumerate(contents.tolist())))}
    place = {content: row for row, content in enumerate(known["contents"].tolist())} if known else {}
    missing = [index for content, index in sorted(first.items(), key=lambda item: item[1]) if content not in place]
    if missing:
        computed = _compute([folder.samples[index] for index in missing], backbone, spec, device, progress)
        computed["contents"] = contents[missing]
        known = {name: np.concatenate([known[name], rows]) if known else rows for name, rows in computed.items()}
        place = {content: row for row, content in enumerate(known["contents"].tolist())}
        _write(file, known)
    rows = [place[content] for content in contents.tolist()]
    facts = [sample.facts for sample in folder.samples]
    enlarged = np.array([item is not None and min(item.width, item.height) < SIDE for item in facts])
    plain = np.array([item is not None and (item.uniform or item.dark) for item in facts])
    features, stages = (known[name][rows].astype(np.float32) for name in ("features", "stages"))
    return AuditFeatures(features, stages, known["thumbnails"][rows].astype(np.uint8), enlarged, plain)


def _spec(samples: Sequence[Sample], backbone: Backbone) -> PreprocessSpec:
    """Return the preprocessing with scaled decoding, a smaller input size for small images, and a larger one for photos."""
    spec = backbone.spec.model_copy(update={"decode": "scaled"})
    sides = [min(sample.facts.width, sample.facts.height) for sample in samples if sample.facts]
    if not sides or fixed_size(backbone.model):
        return spec
    side = max(_LEAST, _STEP * math.ceil(_ENLARGEMENT * float(np.median(sides)) / _STEP))
    if min(_PHOTO, side) <= min(spec.input_size) <= side:
        return spec
    side = min(side, max(_PHOTO, *spec.input_size))
    return spec.model_copy(update={"input_size": (side, side)})


def _compute(
    samples: Sequence[Sample], backbone: Backbone, spec: PreprocessSpec, device: str, progress: Progress
) -> dict[str, NDArray[np.generic]]:
    thumbnails = np.zeros((len(samples), SIDE, SIDE), np.uint8)
    index = {sample.path: row for row, sample in enumerate(samples)}

    def prepare(sample: Sample, spec: PreprocessSpec) -> NDArray[np.float32]:
        image = decode_image(sample.path, spec)
        thumbnails[index[sample.path]] = make_thumbnail(image).gray
        return preprocess(image, spec)

    extract = FrozenFeatures(AuditNetwork(backbone, spec.input_size).eval(), spec, device=device, images=len(samples))
    features, stages = np.split(
        extract(samples, prepare=prepare, progress=progress).astype(np.float16), [backbone.head.in_features], axis=1
    )
    return {"features": features, "stages": stages, "thumbnails": thumbnails}


class AuditNetwork(nn.Module):
    """Network for the features of an audit: float32 ``[batch, 3, H, W]`` → ``[batch, width + stages]``, as in ``AuditFeatures``.

    A network without feature maps of its stages has its last features only.
    """

    def __init__(self, backbone: Backbone, size: tuple[int, int]) -> None:
        super().__init__()
        self._width = backbone.head.in_features
        self.network: nn.Module = feature_extractor(backbone.model, backbone.head_name)
        with suppress(ConfigError):
            check_stage_features(self.network, backbone.name, size)
            self.network = MultiStageFeatures(self.network)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Compute the features."""
        plain: torch.Tensor = self.network(images)
        return torch.cat([plain[:, -self._width :], (plain + self.network(images.flip(3))) / 2], dim=1)


def _read(file: Path | None) -> dict[str, NDArray[np.generic]]:
    """Return the cached arrays, or an empty dictionary."""
    if file is None:
        return {}
    try:
        with np.load(io.BytesIO(read_plain(file, max_bytes=_MAX_CACHE_BYTES))) as saved:
            found = {name: saved[name] for name in _ARRAYS}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        _log.debug("feature cache %s is not readable (%s); computing the features again", file, error)
        return {}
    same = len({len(rows) for rows in found.values()}) == 1 and found["thumbnails"].shape[1:] == (SIDE, SIDE)
    return found if same and found["features"].ndim == found["stages"].ndim == 2 else {}


def _write(file: Path | None, arrays: dict[str, NDArray[np.generic]]) -> None:
    if file is None or sum(rows.nbytes for rows in arrays.values()) > _MAX_CACHE_BYTES:
        return
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]  # its stub takes the arrays for the option allow_pickle
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(file, buffer.getvalue())
    except (OSError, StorageError) as error:
        _log.debug("feature cache %s cannot be written: %s", file, error)
