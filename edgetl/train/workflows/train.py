"""Training workflow (``edgetl train``): check paths and options, scan, split, and fine-tune or compare strategies."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from pathlib import Path

from edgetl.core.bundle import is_run
from edgetl.core.output.folders import remove_side_folder, reserved
from edgetl.core.output.ownership import CHECKPOINTS_SUFFIX
from edgetl.core.progress import Progress, silent
from edgetl.errors import ConfigError
from edgetl.executors.tasks import Tasks
from edgetl.train.artifacts.run import Run, open_run
from edgetl.train.config.options import TrainConfig
from edgetl.train.config.paths import training_inputs
from edgetl.train.config.resolve import check_conflicts
from edgetl.train.config.tasks import scan_splits
from edgetl.train.loop.processes import rank
from edgetl.train.loop.resume import check_complete
from edgetl.train.workflows.anomaly.fit import fit_normal
from edgetl.train.workflows.compare import compare, compare_in_tasks
from edgetl.train.workflows.finetune import fine_tune

_log = logging.getLogger(__name__)


def train(data: Path, config: TrainConfig, out: Path, *, overwrite: bool = False, resume: bool = False, progress: Progress = silent) -> Run:
    """Fine-tune a backbone on the images in ``data``, and write a run folder. The task ``anomaly`` fits a detector to normal images.

    The images are scanned and split into training, validation and test images. Then ``config.optim.strategy`` selects a training with
    one strategy or a comparison of strategies. ``out`` is checked and locked before the first image is read.

    Args:
        data: image folder, with one subfolder per class, or with a label table that ``config.data.labels`` names. Or shards: a pattern such
            as ``shards/{00000..00999}.tar``, or a folder that `edgetl pack` wrote.
        config: training options.
        out: run folder to write.
        overwrite: replace ``out`` and the state of a stopped training.
        resume: continue a stopped training from its last saved state. A complete run of the same training is returned.
        progress: called for each step of long operations.

    Returns:
        The run. ``Run.record`` contains the scores, and ``Run.path`` is ``out``.

    Raises:
        ConfigError: options conflict, ``out`` exists, the device is missing, or the state of a stopped training exists.
        DataError: the folder cannot be used, too many test images are copies of training images, or no training or validation image is
            left.
        BackboneError: the backbone cannot be found or loaded.
        LicenseError: the license of its weights does not fit ``config.backbone.license_policy``.
        TrainingError: the training diverged.
        StoppedError: a signal stopped the training after its state was saved.
        MissingExtraError: the package of a logger is not installed.
        StorageError: the run cannot be written.
    """
    if resume and not overwrite and is_run(out):
        return _complete_run(data, config, out)
    inputs = training_inputs(data, config)
    check_conflicts(config)
    with reserved(out, inputs=inputs, overwrite=overwrite) if rank() == 0 else nullcontext():
        splits = scan_splits(data, config, progress=progress)
        workflow = fit_normal if splits.folder.task == "anomaly" else compare if config.optim.strategy == "compare" else fine_tune
        return workflow(splits, config, out, overwrite=overwrite, resume=resume, progress=progress)


def train_in_tasks(data: Path, config: TrainConfig, out: Path, tasks: Tasks, *, overwrite: bool = False, resume: bool = False) -> Run:
    """Compare strategies as ``train`` does with the strategy ``compare``. Each strategy is a task, and scans the images again.

    Args:
        data: as for ``train``.
        config: training options with the strategy ``compare``.
        out: run folder to write. The hosts of the tasks share it, the data and the weights.
        tasks: execution of the strategies.
        overwrite: as for ``train``.
        resume: as for ``train``.

    Raises:
        ConfigError: also for another strategy, and for the task ``anomaly``.
        EngineError: the process of a task ended in all attempts.
        EdgetlError: as for ``train``.
    """
    if config.optim.strategy != "compare":
        raise ConfigError("--on and --processes need --strategy compare: each compared strategy is a task. Remove the option.")
    if resume and not overwrite and is_run(out):
        return _complete_run(data, config, out)
    check_conflicts(config)
    with reserved(out, inputs=training_inputs(data, config), overwrite=overwrite):
        splits = scan_splits(data, config, progress=tasks.progress)
        if splits.folder.task == "anomaly":
            raise ConfigError("--on and --processes: the task anomaly has no strategies to compare. Remove the option.")
        return compare_in_tasks(splits, config, out, tasks, overwrite=overwrite, resume=resume)


def _complete_run(data: Path, config: TrainConfig, out: Path) -> Run:
    """Return the complete run of a training that was stopped before it removed its saved states, or that was not stopped at all."""
    useless = check_complete(out, data, config.given())
    _log.info("the training of %s is complete: nothing is left to resume", out)
    if useless and rank() == 0:
        remove_side_folder(out.with_name(f"{out.name}{CHECKPOINTS_SUFFIX}"))
    return open_run(out)
