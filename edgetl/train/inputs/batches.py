"""Training batches: cached activations if possible, else images. Images are augmented on the GPU if one is used."""

from __future__ import annotations

from torchvision.transforms import v2

from edgetl.train.inputs.activation_cache import CacheOptions, cache_activations
from edgetl.train.inputs.dataset import TrainingBatches, TrainingImages, training_batches, validation_batches
from edgetl.train.inputs.gpu_augmentation import gpu_batches
from edgetl.train.inputs.samplers import BatchOptions
from edgetl.train.networks.backbone import Backbone


def make_batches(
    backbone: Backbone,
    images: TrainingImages,
    augment: v2.Transform | None,
    options: BatchOptions,
    *,
    steps: range,
    cache: CacheOptions | None = None,
) -> TrainingBatches:
    """Make the batches of ``steps``.

    The batches contain activations if ``cache`` is given, the network can be split, and the cache is within its size limit. Otherwise they
    contain images.
    """
    if cache and (cached := cache_activations(backbone, images, augment, options, steps=steps, cache=cache)):
        return cached
    make = gpu_batches if options.device == "cuda" and augment else training_batches
    train = make(images, backbone.spec, augment, options, steps=steps)
    return TrainingBatches(backbone, train, validation_batches(images.val, backbone.spec, options))
