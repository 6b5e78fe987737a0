"""Augmentation preview: a chart of training images as evaluated, and with random augmentation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from edgetl.core.output.folders import check_chart, write_chart
from edgetl.core.progress import Progress, silent
from edgetl.data.loading import stratified
from edgetl.data.shards.names import is_shards
from edgetl.train.artifacts.plots import plain_text
from edgetl.train.config.anomaly.options import refuse_anomaly
from edgetl.train.config.options import TrainConfig
from edgetl.train.config.paths import training_inputs
from edgetl.train.config.resolve import check_conflicts, resolve
from edgetl.train.config.tasks import pool_few_images, scan_images, scan_splits, split_images
from edgetl.train.inputs.augmentation import make_augmentation, mirrors_well
from edgetl.train.inputs.dataset import ImageDataset
from edgetl.train.workflows.finetune import prepare

ROWS, VIEWS = 6, 7


def draw_preview(data: Path, config: TrainConfig, path: Path, *, progress: Progress = silent) -> None:
    """Draw an augmentation preview: one row per image, first as evaluated, then with random augmentation.

    Args:
        data: image folder, or shards. A few training images of all classes are drawn.
        config: training options.
        path: chart to write. Its suffix selects the format, such as ``.png``.
        progress: called during the scan.

    Raises:
        ConfigError: the suffix is not an image format, or the existing file is not a chart of edgetl.
        DataError: the folder cannot be used.
        BackboneError: the backbone, which defines input size and normalization, cannot be loaded.
        StorageError: the file cannot be written.
    """
    check_chart(path, "--preview", inputs=training_inputs(data, config))
    refuse_anomaly(config.data.task, "it has no augmentation to preview")
    check_conflicts(config)
    if is_shards(data):
        splits = scan_splits(data, config, progress=progress)
    else:
        splits = pool_few_images(split_images(scan_images(data, config.data, progress=progress), config, progress=progress), config)
    backbone, plan = prepare(splits, resolve(config, splits))
    flip = mirrors_well(splits.folder.labels) if config.data.flip is None else config.data.flip
    samples = stratified(splits.train, ROWS)
    plain = ImageDataset(samples, backbone.spec, augment=None, seed=config.run.seed)
    changed = ImageDataset(samples, backbone.spec, augment=make_augmentation(plan.augment, backbone.spec, flip=flip), seed=config.run.seed)
    figure = Figure(figsize=(1.5 * (VIEWS + 1), 1.6 * len(samples) + 0.5), layout="constrained")
    for row, axes in enumerate(np.atleast_2d(figure.subplots(len(samples), VIEWS + 1))):
        for column, panel in enumerate(axes):
            # The index counts images over all epochs, and each epoch has one view of an image.
            image, _ = plain[row] if column == 0 else changed[(column - 1) * len(samples) + row]
            pixels = image.numpy().transpose(1, 2, 0) * np.array(backbone.spec.std) + np.array(backbone.spec.mean)
            panel.imshow(pixels.clip(0, 1))
            panel.set_axis_off()
            panel.set_title(plain_text(splits.folder.truth(samples[row])) if column == 0 else "", fontsize=8)
    figure.suptitle(
        f"first column: as evaluated; others: augmentation {plan.augment}, {'with' if flip else 'without'} horizontal flips", fontsize=9
    )
    write_chart(figure, path, dpi=110)
