"""Accuracy of a run on labelled images, by the trained network itself."""

from __future__ import annotations

from pathlib import Path

from edgetl.core.progress import Progress, silent
from edgetl.data.loading import batches
from edgetl.data.selection import NO_SELECTION, Selection
from edgetl.runtime.evaluation import EvaluationReport, report, score, unseen_samples
from edgetl.train.artifacts.run import open_run
from edgetl.train.inputs.features import choose_engine


def evaluate_run(
    path: Path,
    data: Path,
    *,
    labels: Path | None = None,
    every_image: bool = False,
    selection: Selection = NO_SELECTION,
    progress: Progress = silent,
) -> EvaluationReport:
    """Score the run at ``path`` on ``data``.

    Images on which this run, or an ancestor, was trained or selected are left out unless ``every_image``. ``labels`` is a CSV file, which
    all tasks but classification need.

    Raises:
        RunError: not a run.
        ConfigError: ``labels`` is missing, or its columns do not fit.
        DataError: the folder has other classes, or no unseen image.
    """
    run = open_run(path)
    record = run.record
    seen = frozenset() if every_image else run.seen_images().all
    samples, found = unseen_samples(data, labels, record.decoding, seen, selection=selection, progress=progress)
    first = next(batches(samples, record.preprocess))
    logits = choose_engine(run.load_model(), first, len(samples), "cpu")
    result = score(logits, samples, record.preprocess, record.decoding, progress=progress)
    return report(path, None, samples, found, result)
