"""Unlabeled images of a folder with their frozen features."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from edgetl.core.files.names import printable
from edgetl.core.progress import Progress, silent
from edgetl.data.folder import ImageFolder, scan_unlabeled
from edgetl.errors import DataError
from edgetl.train.artifacts.loading.load import load_backbone
from edgetl.train.config.options import TrainConfig
from edgetl.train.networks.backbone import with_intensity
from edgetl.train.workflows.audit.features import compute_features
from edgetl.train.workflows.finetune import choose_device

# Principal components of the features. More have no benefit for distances, and cost time.
COMPONENTS = 64


@dataclass(frozen=True, eq=False)
class UnlabeledImages:
    """Readable images of a folder, without copies.

    Attributes:
        names: paths in the folder.
        contents: content hash of each image.
        features: float32 ``[n, width]``.
        backbone: name of the network.
    """

    names: tuple[str, ...]
    contents: tuple[str, ...]
    features: NDArray[np.float32]
    backbone: str


def read_unlabeled(root: Path, config: TrainConfig, *, least: int, progress: Progress = silent) -> UnlabeledImages:
    """Scan the images below ``root``, and compute their frozen features. Of images with equal pixels only the first counts.

    Args:
        root: folder of images. Folders in it have no meaning.
        config: backbone options.
        least: smallest number of images.
        progress: called for each step.

    Raises:
        DataError: ``root`` is not a folder, or has fewer than ``least`` different images.
        BackboneError: the backbone cannot be found or loaded.
    """
    scanned = scan_unlabeled(root, progress=progress)
    samples = tuple({sample.content: sample for sample in reversed(scanned)}.values())[::-1]
    if len(samples) < least:
        raise DataError(f"{printable(root)} has {len(samples)} different readable images. At least {least} are needed. Add images.")
    backbone = with_intensity(load_backbone(config.backbone, 2), config.data.intensity, samples)
    found = compute_features(ImageFolder(root, (), samples, ()), backbone, device=choose_device(config.run.device), progress=progress)
    return UnlabeledImages(
        names=tuple(sample.path.relative_to(root).as_posix() for sample in samples),
        contents=tuple(sample.content for sample in samples),
        features=found.features,
        backbone=backbone.name,
    )


def components(features: NDArray[np.float32], *, seed: int) -> NDArray[np.float32]:
    """Return the principal components of the features with unit length, float32 ``[n, at most COMPONENTS]``."""
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-6)
    reduced: NDArray[np.float32] = PCA(min(COMPONENTS, *unit.shape), random_state=seed).fit_transform(unit).astype(np.float32)
    return reduced
