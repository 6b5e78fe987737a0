"""Model update (``edgetl update``): fit the head of a run on new and replayed images, and write a new run if the gate accepts it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from edgetl.core.output.folders import new_folder, reserved
from edgetl.core.progress import Progress, silent
from edgetl.train.artifacts.run import Run, open_run, run_inputs
from edgetl.train.config.update.options import UpdateConfig
from edgetl.train.config.update.result import Promotion
from edgetl.train.workflows.update.candidate import fit_candidate
from edgetl.train.workflows.update.images import read_new_images
from edgetl.train.workflows.update.network import check_updatable
from edgetl.train.workflows.update.writing import memory_kind, write_update


@dataclass(frozen=True)
class Update:
    """Result of an update.

    Attributes:
        promotion: decision of the promotion gate.
        run: the updated run. ``None`` if the update was rejected: nothing was written, and the previous run stays current.
    """

    promotion: Promotion
    run: Run | None


def update(path: Path, data: Path, config: UpdateConfig, out: Path, *, overwrite: bool = False, progress: Progress = silent) -> Update:
    """Update a run with new images of known classes and of new classes.

    The backbone stays. A new head is fitted on the features of the new images and of replayed images of the run. The promotion gate
    compares both models on the same images, and checks the new labels. A rejected update writes nothing.

    Args:
        path: run to update.
        data: new images: one folder per class, the images of ``config.labels``, or a folder of ``--capture``.
        config: update options.
        out: run folder to write.
        overwrite: replace ``out``.
        progress: called for each step of long operations.

    Raises:
        RunError: ``path`` is not a run, or is damaged.
        ConfigError: the run is not a classifier with a linear last layer, options conflict, or ``out`` exists.
        DataError: the new images cannot be used, or the images of the run are missing.
        StorageError: the run cannot be written.
    """
    run, started = open_run(path), time.monotonic()
    check_updatable(run)
    memory_kind(run, config)
    inputs = {**run_inputs([run], config.data), "the new images": data}
    with reserved(out, inputs=inputs, overwrite=overwrite):
        splits = read_new_images(run, data, config, progress=progress)
        candidate = fit_candidate(run, splits, config, progress=progress)
        if not candidate.promotion.promoted:
            return Update(candidate.promotion, None)
        with new_folder(out, inputs=inputs, overwrite=overwrite) as folder:
            write_update(folder, run, candidate, config, started=started)
    return Update(candidate.promotion, open_run(out))
