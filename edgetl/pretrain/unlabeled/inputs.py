"""Inputs of a continued pretraining: the start, and the unlabeled images, of which a part measures the result."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from edgetl.core.files.names import printable
from edgetl.core.preprocess import PreprocessSpec
from edgetl.core.progress import Progress
from edgetl.data.folder import Sample, scan_unlabeled
from edgetl.errors import BackboneError, DataError
from edgetl.pretrain.options import MIN_IMAGES
from edgetl.train.artifacts.loading.build import fixed_size
from edgetl.train.artifacts.loading.lineage import pretraining_of
from edgetl.train.artifacts.loading.load import load_backbone
from edgetl.train.config.options import BackboneConfig, TrainConfig
from edgetl.train.inputs.samplers import BatchOptions
from edgetl.train.networks.backbone import Backbone, with_intensity
from edgetl.train.networks.pruned import PRUNED
from edgetl.train.workflows.finetune import choose_device

# Fraction of the images that measures the result.
HELD_OUT = 0.1


class CropSide(NamedTuple):
    """Side of a training image relative to the input, and the number of which it is a multiple, px.

    Objects in a random crop are larger than in the whole image, so that the side is smaller than that of the input (Touvron et al. 2019,
    "Fixing the train-test resolution discrepancy", arXiv:1906.06423).
    """

    ratio: float
    multiple: int


@dataclass(frozen=True)
class Inputs:
    """Start and images of a continued pretraining.

    Attributes:
        start: the start, with the license and the lineage of all parents.
        train: images that train.
        held: images that measure the result.
        known: perceptual hashes of the images that pretrained the start.
        spec: preprocessing of the start at the side of the training images.
        options: batch size, seed, loader processes and device.
    """

    start: Backbone
    train: Sequence[Sample]
    held: Sequence[Sample]
    known: frozenset[int]
    spec: PreprocessSpec
    options: BatchOptions

    def data_fingerprint(self) -> str:
        """Return the SHA-256 (hex) over the contents of all images."""
        contents = sorted(sample.content for sample in (*self.train, *self.held))
        return hashlib.sha256("\n".join(contents).encode()).hexdigest()

    def identity(self, *facts: str) -> str:
        """Return the SHA-256 (hex) over the inputs and further facts. A checkpoint with another identity is not resumed."""
        parents = [parent.model_dump_json() for parent in self.start.parents]
        return hashlib.sha256("\n".join((*facts, self.data_fingerprint(), str(self.options.seed), *parents)).encode()).hexdigest()


def load_start(config: BackboneConfig) -> Backbone:
    """Load the backbone whose pretraining continues.

    Raises:
        BackboneError: it cannot be loaded, or is not a timm network.
    """
    start = load_backbone(config, 2)
    if not hasattr(start.model, "pretrained_cfg") or PRUNED in start.model_args or start.columns is not None:
        raise BackboneError(
            f"{config.name} cannot be written in timm's format: it is no network of timm, or was pruned. Choose another --backbone."
        )
    return start


def read_inputs(data: Path, start: Backbone, config: TrainConfig, side: CropSide, batch_size: int, progress: Progress) -> Inputs:
    """Read the images. Load the networks before: mistakes in names are found at once then.

    Raises:
        ConfigError: there is no GPU for ``device="cuda"``.
        DataError: there are fewer than ``MIN_IMAGES`` different images.
    """
    device, seed = choose_device(config.run.device), config.run.seed
    train, held = _read(data, seed, progress)
    start = with_intensity(start, "auto", (*train, *held))
    spec = start.spec
    if not fixed_size(start.model):
        height, width = (max(32, round(side.ratio * length / side.multiple) * side.multiple) for length in spec.input_size)
        spec = spec.model_copy(update={"input_size": (height, width)})
    options = BatchOptions(batch_size, seed=seed, workers=config.data.workers, device=device)
    return Inputs(start, train, held, pretraining_of(config.backbone).perceptual, spec, options)


def _read(data: Path, seed: int, progress: Progress) -> tuple[list[Sample], list[Sample]]:
    """Scan a folder, and return the images that train and those that measure the result. Of images with equal pixels one counts."""
    scanned = scan_unlabeled(data, progress=progress)
    samples = list({sample.content: sample for sample in reversed(scanned)}.values())[::-1]
    if len(samples) < MIN_IMAGES:
        raise DataError(f"{printable(data)} has {len(samples)} different readable images. At least {MIN_IMAGES} are needed. Add images.")
    order = np.random.default_rng(seed).permutation(len(samples)).tolist()
    count = round(HELD_OUT * len(samples))
    return [samples[index] for index in sorted(order[count:])], [samples[index] for index in sorted(order[:count])]
