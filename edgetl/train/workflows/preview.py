"""A sheet of what training will see: each picture's evaluation view, then random ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from edgetl.core.output.folders import check_chart, write_chart
from edgetl.core.progress import Progress, silent
from edgetl.data.loading import stratified
from edgetl.data.split import split
from edgetl.train.artifacts.plots import plain_text
from edgetl.train.config.options import TrainConfig
from edgetl.train.config.paths import training_inputs
from edgetl.train.config.resolve import check_conflicts, resolve
from edgetl.train.config.tasks import scan_images
from edgetl.train.inputs.augmentation import make_augmentation, mirrors_well
from edgetl.train.inputs.dataset import ImageDataset
from edgetl.train.workflows.finetune import prepare

ROWS, VIEWS = 6, 7


def draw_preview(data: Path, config: TrainConfig, path: Path, *, progress: Progress = silent) -> None:
    """Write the preview as PNG (or the format of the suffix): a row for each of a few training images, the classes in turn.

    Raises:
        ConfigError: the file's suffix is not that of an image, or edgetl did not draw the file that is there.
        BackboneError: the backbone, whose input size and normalization are used, cannot be loaded.
        StorageError: the file cannot be written.
    """
    check_chart(path, "--preview", inputs=training_inputs(data, config))
    check_conflicts(config)
    folder = scan_images(data, config.data, progress=progress)
    splits = split(folder, seed=config.run.seed, val=config.data.val, test=config.data.test)
    backbone, plan = prepare(splits, resolve(config, splits))
    flip = mirrors_well(splits.folder.labels) if config.data.flip is None else config.data.flip
    samples = stratified(splits.train, ROWS)
    plain = ImageDataset(samples, backbone.spec, augment=None, seed=config.run.seed)
    changed = ImageDataset(samples, backbone.spec, augment=make_augmentation(plan.augment, backbone.spec, flip=flip), seed=config.run.seed)
    figure = Figure(figsize=(1.5 * (VIEWS + 1), 1.6 * len(samples) + 0.5), layout="constrained")
    for row, axes in enumerate(np.atleast_2d(figure.subplots(len(samples), VIEWS + 1))):
        for column, panel in enumerate(axes):
            # An index counts images through all epochs: one view an epoch.
            image, _ = plain[row] if column == 0 else changed[(column - 1) * len(samples) + row]
            pixels = image.numpy().transpose(1, 2, 0) * np.array(backbone.spec.std) + np.array(backbone.spec.mean)
            panel.imshow(pixels.clip(0, 1))
            panel.set_axis_off()
            panel.set_title(plain_text(splits.folder.truth(samples[row])) if column == 0 else "", fontsize=8)
    figure.suptitle(
        f"first column: as evaluated; others: augmentation {plan.augment}, {'mirrored too' if flip else 'not mirrored'}", fontsize=9
    )
    write_chart(figure, path, dpi=110)
