"""Evaluation of a run on labeled images with the trained network."""

from __future__ import annotations

from pathlib import Path

from edgetl.core.progress import Progress, silent
from edgetl.data.loading import batches
from edgetl.errors import ConfigError
from edgetl.runtime.evaluation import EvaluationConfig, EvaluationReport, compute_outputs, images_to_evaluate, report
from edgetl.train.artifacts.run import open_run
from edgetl.train.inputs.features import choose_engine


def evaluate_run(path: Path, data: Path, config: EvaluationConfig | None = None, *, progress: Progress = silent) -> EvaluationReport:
    """Evaluate the run at ``path`` on the labeled images in ``data``.

    Images that trained or selected this run or an ancestor are excluded unless ``config.every_image`` is on.

    Args:
        path: run folder.
        data: image folder.
        config: evaluation options.
        progress: called for each batch.

    Raises:
        RunError: ``path`` is not a run.
        ConfigError: the label table is missing or its columns do not fit, or a variant is given, which a run does not have.
        DataError: the folder has other classes or no unseen image.
        StorageError: ``config.save`` cannot be written.
    """
    config = config or EvaluationConfig()
    if config.variant is not None:
        raise ConfigError(f"{path} is a run and has no variants. Remove --variant, or give a bundle.")
    run = open_run(path)
    record = run.record
    images = images_to_evaluate(data, config, record.decoding, run.seen_images().all, progress=progress)
    first = next(batches(images.samples, record.preprocess))
    logits = choose_engine(run.load_model(), first, len(images.samples), "cpu")
    outputs = compute_outputs(logits, images.samples, record.preprocess, progress=progress)
    return report(path, None, images, record.decoding, outputs, save=config.save)
