"""Accuracy of a bundle's variant on labelled images it has not seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.core.bundle import hash_prefix, open_bundle
from edgetl.core.config import StrictModel
from edgetl.core.files.text import printable
from edgetl.core.metrics import evaluate
from edgetl.core.preprocess import InputForm, PreprocessSpec
from edgetl.core.progress import Progress, silent
from edgetl.core.results import Evaluation
from edgetl.core.tasks import OutputDecoding
from edgetl.data.folder import ImageFolder, Sample, scan
from edgetl.data.loading import batches, pixel_batches, truth_of
from edgetl.data.notes import ScanNote
from edgetl.data.selection import NO_SELECTION, Selection
from edgetl.data.table.rows import Table
from edgetl.data.table.scan import scan_table
from edgetl.errors import ConfigError, DataError
from edgetl.runtime.predictor import load


class EvaluationReport(StrictModel):
    """Result of an evaluation, with the model and the images that were left out.

    Attributes:
        model: the run's or bundle's folder.
        variant: the bundle's variant; none for a run.
        left_out: images not scored because the model was trained or selected on them.
        broken: images not scored because they cannot be decoded.
        result: the figures.
        notes: of the scan: files that were left out or read in an unusual way.
    """

    model: str
    variant: str | None
    left_out: int
    broken: int
    result: Evaluation
    notes: tuple[ScanNote, ...] = ()


def evaluate_bundle(
    path: Path,
    data: Path,
    *,
    labels: Path | None = None,
    variant: str | None = None,
    every_image: bool = False,
    selection: Selection = NO_SELECTION,
    threads: int | None = None,
    progress: Progress = silent,
) -> EvaluationReport:
    """Score one variant of the bundle at ``path`` on the labelled folder ``data``.

    Args:
        path: the bundle.
        data: class folders named like the bundle's labels, or the images that ``labels`` names.
        labels: a CSV file with the bundle's labels (or its number) as columns, or of a classifier with one column of class names.
        variant: as in ``edgetl.load``.
        every_image: also score images that the model was trained or selected on.
        selection: patterns of files to use, or to leave out, that overrule the scan.
        threads: as in ``edgetl.load``.
        progress: called after each batch.

    Raises:
        ConfigError: ``labels`` is missing, or its columns do not fit.
        DataError: the folder has other classes, or no unseen image.
    """
    bundle = open_bundle(path)
    predictor = load(bundle, variant=variant, threads=threads)
    seen = frozenset() if every_image else bundle.seen_images()
    samples, found = unseen_samples(data, labels, predictor.decoding, seen, selection=selection, progress=progress)
    result = score(predictor.logits, samples, predictor.spec, predictor.decoding, form=predictor.input_form, progress=progress)
    name = predictor.variant.name if predictor.variant else None
    return report(path, name, samples, found, result)


def unseen_samples(
    data: Path,
    labels: Path | None,
    decoding: OutputDecoding,
    seen: frozenset[int],
    *,
    selection: Selection = NO_SELECTION,
    progress: Progress = silent,
) -> tuple[list[Sample], ImageFolder]:
    """The readable images of ``data`` that are not in ``seen``, and the scanned folder.

    Raises:
        ConfigError: ``labels``, a CSV file, is missing, or its columns do not fit.
        DataError: unknown classes, or nothing left.
    """
    if labels is None and decoding.task != "classification":
        wanted = ", ".join(("file", *decoding.labels[:5]))
        raise ConfigError(f"this is a {decoding.task} model: say what the images hold with --labels FILE.csv (columns {wanted}).")
    if labels is not None and selection.include:
        raise ConfigError("--include adds files to class folders, and --labels names its files; add rows to the table.")
    if labels is None:
        folder = scan(data, known_labels=decoding.labels, selection=selection, progress=progress)
    elif decoding.task == "classification":
        folder = scan_table(data, Table(labels, decoding.task, classes=decoding.labels, selection=selection), known=True, progress=progress)
    else:
        folder = scan_table(data, Table(labels, decoding.task, decoding.labels, selection=selection), known=True, progress=progress)
    samples = [sample for sample in folder.samples if hash_prefix(sample.content) not in seen]
    if not samples:
        raise DataError(
            f"the model was trained or selected on all {len(folder.samples)} images of {data}. Give other images, or score them with --all."
        )
    return samples, folder


def report(model: Path, variant: str | None, samples: Sequence[Sample], folder: ImageFolder, result: Evaluation) -> EvaluationReport:
    """Report on ``samples``, the scored images of ``folder``."""
    left_out = len(folder.samples) - len(samples)
    return EvaluationReport(
        model=printable(model), variant=variant, left_out=left_out, broken=len(folder.broken), result=result, notes=folder.notes
    )


def score(
    logits: Callable[[Any], NDArray[np.float32]],
    samples: Sequence[Sample],
    spec: PreprocessSpec,
    decoding: OutputDecoding,
    *,
    form: InputForm = "float",
    progress: Progress = silent,
) -> Evaluation:
    """Evaluate a function from images (in the given form, see ``to_batch``) to outputs ``[batch, labels]`` on ``samples``."""
    outputs: list[NDArray[np.float32]] = []
    done = 0
    for batch in batches(samples, spec) if form == "float" else pixel_batches(samples, spec):
        outputs.append(logits(batch))
        done += len(batch)
        progress("evaluating", done, len(samples))
    return evaluate(decoding, truth_of(samples), np.concatenate(outputs))
