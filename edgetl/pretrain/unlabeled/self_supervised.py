"""Self-supervised continued pretraining: a backbone learns from the unlabeled images of a folder, without a teacher."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from timm.optim import param_groups_weight_decay
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from edgetl.core.images.decode import load_image
from edgetl.core.output.folders import locked_folder
from edgetl.core.preprocess import PreprocessSpec
from edgetl.core.progress import Progress, silent
from edgetl.data.folder import Sample
from edgetl.pretrain.loop import CHECKPOINT_NAME, Checkpoint, Descent, descend
from edgetl.pretrain.options import SelfSupervisedConfig
from edgetl.pretrain.unlabeled.inputs import CropSide, Inputs, load_start, read_inputs
from edgetl.pretrain.unlabeled.vicreg import VicReg
from edgetl.pretrain.unlabeled.writer import check_empty, publish
from edgetl.train.artifacts.continued import ContinuedRecord
from edgetl.train.artifacts.loading.lineage import seen_by_ancestors
from edgetl.train.config.options import TrainConfig
from edgetl.train.config.plan import steps_per_epoch
from edgetl.train.inputs.dataset import default_workers, leave_signals, training_view
from edgetl.train.inputs.features import FeatureFunction, choose_engine
from edgetl.train.inputs.samplers import BatchOptions, draw_seed, make_sampler
from edgetl.train.networks.backbone import feature_extractor
from edgetl.train.networks.stages import Stage, choose_stages, find_stages, set_trainable

# The options that `python -m bench.accuracy.self_supervised` measures.
SIDE = CropSide(0.625, 16)
UNFREEZE = "0.5"
# Highest learning rate of the projection. It trains alone first, for this ratio of the steps.
PROJECTION_LR, FIRST_STEPS = 1e-3, 0.2
WEIGHT_DECAY = 0.02
SMALLEST_CROP = 0.3
SMALLEST_SPREAD = 1e-2
# Pairs of views of each held image that measure the result.
ROUNDS = 4
CHECKPOINT_STEPS = 25
# Number of images to report to `choose_engine`: large, because converting the frozen network to a faster engine always pays off.
MANY = 10**6

_log = logging.getLogger(__name__)


def pretrain_self_supervised(
    data: Path, out: Path, config: TrainConfig, own: SelfSupervisedConfig, *, progress: Progress = silent
) -> ContinuedRecord:
    """Continue the pretraining of a backbone on the images of a folder, without labels, and write the backbone into ``out``.

    Two random views of an image get similar features (VICReg: Bardes et al. 2022, arXiv:2105.04906). The early stages and the BatchNorm
    layers are frozen, and the features stay near those before the training.

    A checkpoint is written at regular intervals. After an interruption, the same call continues from it.

    Args:
        data: folder of images. Folders in it have no meaning.
        out: folder to write, in timm's format: ``load_backbone`` loads it as ``local-dir:OUT``.
        config: options of the start, device and seed.
        own: options of the training.
        progress: called for each image and step.

    Returns:
        The record in ``self-supervised.json``.

    Raises:
        ConfigError: ``out`` has other files, or overlaps ``data``.
        DataError: there are fewer than ``MIN_IMAGES`` different images.
        BackboneError: the start cannot be loaded, or is not a timm network.
        TrainingError: the loss became infinite or not a number.
    """
    started = time.monotonic()
    with locked_folder(out, inputs={"the folder of images": data}):
        check_empty(out)
        seen, start = seen_by_ancestors(config.backbone), load_start(config.backbone)
        inputs = read_inputs(data, start, config, SIDE, own.batch_size, progress)
        module, matched_before = _build(inputs)
        path, identity = out / CHECKPOINT_NAME, inputs.identity(own.model_dump_json(), inputs.spec.model_dump_json())
        checkpoint = Checkpoint(path, module, CHECKPOINT_STEPS, identity=identity, inputs="backbone, images or options")
        _train(module, inputs, own, checkpoint, progress)
        matched = _match_after(module, inputs, own, matched_before)
        seconds = round(time.monotonic() - started + checkpoint.seconds_before, 1)
        facts = {"method": "vicreg", "steps": own.steps, "seconds": seconds, "matched_before": matched_before, "matched": matched}
        return publish(out, inputs, module.network, seen=seen, facts=facts)


def _build(inputs: Inputs) -> tuple[VicReg, float]:
    """Return the loss with the network that trains, and ``match`` of the held images before the training."""
    start = inputs.start
    network, frozen = (feature_extractor(start.model, start.head_name).to(memory_format=torch.channels_last) for _ in range(2))
    before = choose_engine(frozen, _example(inputs), MANY, inputs.options.device)
    features = _held_features(before, inputs)
    torch.manual_seed(inputs.options.seed)
    return VicReg(network, before, features.flatten(0, 2).std(dim=0) + SMALLEST_SPREAD), match(features)


def _match_after(module: VicReg, inputs: Inputs, own: SelfSupervisedConfig, before: float) -> float:
    """Return ``match`` of the held images after the training, and log a warning if it is not above that ``before``."""
    after = match(_held_features(choose_engine(module.network.eval(), _example(inputs), 0, inputs.options.device), inputs))
    if after <= before:
        _log.warning(
            "matched views did not rise (%.3f before, %.3f after): the features did not change as intended. Give more images, or set "
            "another --lr (now %g) or more --steps (now %d)",
            before,
            after,
            own.lr,
            own.steps,
        )
    return after


def _train(module: VicReg, inputs: Inputs, own: SelfSupervisedConfig, checkpoint: Checkpoint, progress: Progress) -> None:
    """Train the projection alone, and then together with the last stages of the network, from the step of the checkpoint."""
    alone = math.ceil(FIRST_STEPS * own.steps)
    # One cell gives full batches. The covariances of a small last batch would be noise.
    options = replace(inputs.options, cells=(0,) * len(inputs.train))

    def phase(steps: range, saved: Checkpoint, trained: tuple[Stage, ...], name: str) -> None:
        module.is_frozen = not trained
        set_trainable(module.train().network, trained, freeze_batchnorm=True)
        groups = [
            {**group, "lr": lr}
            for part, lr in ((module.network, own.lr), (module.project, PROJECTION_LR))
            for group in param_groups_weight_decay(part, WEIGHT_DECAY)
        ]
        optimizer = torch.optim.AdamW([group for group in groups if group["params"]])
        descent = Descent(module, optimizer, saved.first + len(steps), options.seed, f"--lr (now {own.lr:g})", name=name)
        descend(descent, _pairs(inputs, inputs.train, options, steps), saved, options.device, progress)

    if not checkpoint.restore():
        phase(range(alone), Checkpoint(checkpoint.path, module, alone, identity="", inputs=""), (), "training the projection")
    stages = choose_stages(find_stages(inputs.start.model, inputs.start.head_name), UNFREEZE)
    phase(range(alone + checkpoint.first, alone + own.steps), checkpoint, stages, "pretraining")


class _Pairs(Dataset[tuple[torch.Tensor]]):
    """Two random views of each image, float32 ``[2, 3, H, W]``, normalized. An index counts images over all epochs and seeds the views."""

    def __init__(self, samples: Sequence[Sample], spec: PreprocessSpec, seed: int) -> None:
        self._samples, self._spec, self._seed = samples, spec, seed
        self._augment = v2.Compose(
            [
                v2.RandomResizedCrop(spec.input_size, scale=(SMALLEST_CROP, 1.0)),
                v2.RandomHorizontalFlip(),
                v2.RandomApply([v2.ColorJitter(0.2, 0.2, 0.2, 0.025)], 0.8),
                v2.RandomApply([v2.GaussianBlur(9, (0.1, 2.0))], 0.2),
            ]
        )

    def __getitem__(self, index: int) -> tuple[torch.Tensor]:
        image = load_image(self._samples[index % len(self._samples)].path, intensity=self._spec.intensity)
        seeds = (draw_seed(self._seed, 2 * index + view) for view in range(2))
        return (torch.stack([training_view(image, self._spec, self._augment, seed) for seed in seeds]),)


def _pairs(inputs: Inputs, samples: Sequence[Sample], options: BatchOptions, steps: range) -> DataLoader[tuple[torch.Tensor]]:
    """Load the batches of ``steps``: one tensor, float32 ``[batch, 2, 3, H, W]``."""
    workers = default_workers() if options.workers is None else options.workers
    sampler = make_sampler(len(samples), options, steps)
    return DataLoader(_Pairs(samples, inputs.spec, options.seed), batch_sampler=sampler, num_workers=workers, worker_init_fn=leave_signals)


def _example(inputs: Inputs) -> NDArray[np.float32]:
    """Return a batch of both views of the images of a step, all zeros."""
    return np.zeros((2 * inputs.options.batch_size, 3, *inputs.spec.input_size), np.float32)


def _held_features(network: FeatureFunction, inputs: Inputs) -> torch.Tensor:
    """Return the features of random views of the held images, float32 ``[rounds, images, 2, width]``."""
    steps = range(ROUNDS * steps_per_epoch(len(inputs.held), inputs.options.batch_size))
    pairs = [network(views.flatten(0, 1).numpy()) for (views,) in _pairs(inputs, inputs.held, inputs.options, steps)]
    rows = torch.from_numpy(np.concatenate(pairs))
    return rows.view(ROUNDS, -1, 2, rows.shape[1])


def match(features: torch.Tensor) -> float:
    """Return the ratio of views whose nearest neighbor among the other views of a round is that of the same image.

    Args:
        features: features of two views of each image, float32 ``[rounds, images, 2, width]``. The cosine compares them, without their mean.
    """
    one, two = F.normalize(features - features.mean(dim=(0, 1, 2)), dim=-1).unbind(dim=2)
    cosines = one @ two.transpose(1, 2)
    own = torch.arange(cosines.shape[1])
    return float(torch.cat([cosines.argmax(dim=2) == own, cosines.argmax(dim=1) == own]).float().mean())
