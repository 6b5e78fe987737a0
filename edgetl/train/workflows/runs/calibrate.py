"""Calibration of a run (``edgetl calibrate``): temperature of its scores, and threshold of unknown images."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgetl.core.output.folders import new_folder
from edgetl.core.progress import Progress, silent
from edgetl.data.folder import Sample
from edgetl.data.loading import batches, truth_of
from edgetl.data.predictions import PREDICTIONS_NAME
from edgetl.errors import ConfigError
from edgetl.runtime.evaluation import compute_outputs
from edgetl.train.artifacts.run import Run, open_run
from edgetl.train.artifacts.writer import Results, hash_files, write_predictions, write_record
from edgetl.train.config.calibration import calibrate, calibration_conflicts
from edgetl.train.config.options import CalibrationConfig
from edgetl.train.inputs.features import choose_engine


def calibrate_run(path: Path, config: CalibrationConfig | None = None, *, data: Path | None = None, progress: Progress = silent) -> Run:
    """Calibrate the scores of a run, and replace its ``run.json`` and ``predictions.csv``.

    The temperature and the threshold are chosen on the validation images. An earlier calibration is replaced. The weights do not change.

    Args:
        path: run folder.
        config: calibration options. Default: a temperature, and no threshold.
        data: folder of the run's images. The default is the folder that the run was trained on.
        progress: called for each batch.

    Returns:
        The calibrated run. ``Run.record`` contains the figures before and after the calibration.

    Raises:
        RunError: ``path`` is not a run.
        ConfigError: the task has no scores or options conflict; the run is adapted to another domain; or the folder contains files that
            edgetl did not write.
        DataError: the run's images are missing.
        StorageError: the run cannot be written.
    """
    run, config = open_run(path), config or CalibrationConfig(calibrate=True)
    record = run.record
    _check_request(run, config)
    with new_folder(path, overwrite=True) as folder:
        val, test = run.samples(record.selection_part, data), run.samples("test", data)
        outputs, truth = _outputs(run, [*val, *test], progress), truth_of([*val, *test])
        decoding, calibration = calibrate(record.decoding, truth, outputs, config, validation=len(val))
        results = Results.of(decoding, truth, outputs, validation=len(val))
        shutil.copytree(run.path, folder, dirs_exist_ok=True)
        write_predictions(folder, run.splits(), results, record.selection_part)
        changes = {
            "decision_rule": decoding.decision_rule,
            "calibration": calibration,
            "validation": results.validation,
            "test": results.test,
            "files": {**record.files, PREDICTIONS_NAME: hash_files(folder)[PREDICTIONS_NAME]},
        }
        write_record(folder, record.model_copy(update=changes))
    return open_run(path)


def _check_request(run: Run, config: CalibrationConfig) -> None:
    """Raise a ``ConfigError`` if the options conflict, or the run cannot be calibrated."""
    if found := [*calibration_conflicts(config, run.record.task)]:
        raise ConfigError(". ".join(found) + ".")
    if run.record.adaptation is not None:
        raise ConfigError(
            f"{run.path} cannot be calibrated: its validation images are not of the domain to which it was adapted. To calibrate for this "
            f"domain, fine-tune on labeled images of it: edgetl train LABELED --backbone {run.path} --calibrate."
        )


def _outputs(run: Run, samples: Sequence[Sample], progress: Progress) -> NDArray[np.float32]:
    """Return the outputs for validation and test images. In a cross-validated run, the first ones are the out-of-fold outputs."""
    record = run.record
    known = run.out_of_fold_outputs() if record.folds else np.empty((0, len(record.labels)), np.float32)
    if not (new := samples[len(known) :]):
        return known
    logits = choose_engine(run.load_model(), next(batches(new, record.preprocess)), len(new), "cpu")
    return np.concatenate([known, compute_outputs(logits, new, record.preprocess, progress=progress)])
