"""Evaluation of a bundle's variant on labelled images that it has not seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from edgetl.core.bundle import hash_prefix, open_bundle
from edgetl.core.config import StrictModel
from edgetl.core.files.names import printable
from edgetl.core.metrics import evaluate
from edgetl.core.options import METAVAR, OPTION
from edgetl.core.preprocess import InputForm, PreprocessSpec
from edgetl.core.progress import Progress, silent
from edgetl.core.results import Evaluation
from edgetl.core.tasks import OutputDecoding
from edgetl.data.folder import ImageFolder, Sample, scan
from edgetl.data.loading import batches, pixel_batches, truth_of
from edgetl.data.scan_notes import ScanNote
from edgetl.data.selection import Selection
from edgetl.data.table.rows import Table
from edgetl.data.table.scan import scan_table
from edgetl.errors import ConfigError, DataError
from edgetl.runtime.predictor import load


class EvaluationConfig(StrictModel):
    """Options of an evaluation."""

    labels: Path | None = Field(
        default=None,
        description="Label table (CSV) instead of class folders, with the column `file` and the label columns of the training.",
    )
    variant: str | None = Field(
        default=None, description="Variant of a bundle, such as openvino-int8. Default: the first of the bundle, the fastest."
    )
    every_image: bool = Field(
        default=False, description="Include images of the training and validation splits.", json_schema_extra={OPTION: "all"}
    )
    include: tuple[str, ...] = Field(
        default=(),
        description="Glob pattern of files to use that the scan leaves out (masks, thumbnails, hidden files). May be repeated.",
        json_schema_extra={METAVAR: "PATTERN"},
    )
    exclude: tuple[str, ...] = Field(
        default=(),
        description="Glob pattern of files or folders to leave out, such as '*_mask.png'. May be repeated.",
        json_schema_extra={METAVAR: "PATTERN"},
    )
    threads: int | None = Field(
        default=None, ge=1, description="CPU threads per inference. Default: as in the contract of the bundle, or all cores."
    )


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


def evaluate_bundle(path: Path, data: Path, config: EvaluationConfig | None = None, *, progress: Progress = silent) -> EvaluationReport:
    """Evaluate one variant of the bundle at ``path`` on the labelled images of ``data``.

    Args:
        path: the bundle.
        data: class folders named like the bundle's labels, or the images that ``config.labels`` names.
        config: labels, variant, selection of images, and threads.
        progress: called after each batch.

    Raises:
        ConfigError: ``config.labels`` is missing, or its columns do not fit.
        DataError: the folder has other classes, or no unseen image.
    """
    config, bundle = config or EvaluationConfig(), open_bundle(path)
    predictor = load(bundle, variant=config.variant, threads=config.threads)
    samples, found = unseen_samples(data, config, predictor.decoding, bundle.seen_images(), progress=progress)
    result = score(predictor.logits, samples, predictor.spec, predictor.decoding, form=predictor.input_form, progress=progress)
    name = predictor.variant.name if predictor.variant else None
    return report(path, name, samples, found, result)


def unseen_samples(
    data: Path, config: EvaluationConfig, decoding: OutputDecoding, seen: frozenset[int], *, progress: Progress = silent
) -> tuple[list[Sample], ImageFolder]:
    """The readable images of ``data`` that are not in ``seen`` (all with ``config.every_image``), and the scanned folder.

    Raises:
        ConfigError: ``config.labels`` is missing, or its columns do not fit.
        DataError: unknown classes, or nothing left.
    """
    labels, selection = config.labels, Selection(config.include, config.exclude)
    if labels is None and decoding.task != "classification":
        wanted = ", ".join(("file", *decoding.labels[:5]))
        raise ConfigError(f"this is a {decoding.task} model: give the labels of the images with --labels FILE.csv (columns {wanted}).")
    if labels is not None and selection.include:
        raise ConfigError("--include adds files to class folders, and --labels names its files; add rows to the table.")
    if labels is None:
        folder = scan(data, known_labels=decoding.labels, selection=selection, progress=progress)
    elif decoding.task == "classification":
        folder = scan_table(data, Table(labels, decoding.task, classes=decoding.labels, selection=selection), known=True, progress=progress)
    else:
        folder = scan_table(data, Table(labels, decoding.task, decoding.labels, selection=selection), known=True, progress=progress)
    samples = [sample for sample in folder.samples if config.every_image or hash_prefix(sample.content) not in seen]
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
