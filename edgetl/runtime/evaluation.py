"""Accuracy of a bundle's variant on labelled images it has not seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgetl.core.bundle import hash_prefix, open_bundle
from edgetl.core.config import StrictModel
from edgetl.core.preprocess import PreprocessSpec
from edgetl.core.progress import Progress, silent
from edgetl.core.results import Evaluation
from edgetl.core.scoring import evaluate_predictions
from edgetl.data.folder import Sample, scan
from edgetl.data.loading import batches, labels_of
from edgetl.errors import DataError
from edgetl.runtime.predictor import load


class EvaluationReport(StrictModel):
    """What was scored, and how.

    Attributes:
        model: the run's or bundle's folder.
        variant: the bundle's variant; none for a run.
        left_out: images not scored because the model was trained or selected on them.
        broken: images not scored because they cannot be decoded.
        result: the figures.
    """

    model: str
    variant: str | None
    left_out: int
    broken: int
    result: Evaluation


def evaluate_bundle(
    path: Path,
    data: Path,
    *,
    variant: str | None = None,
    every_image: bool = False,
    threads: int | None = None,
    progress: Progress = silent,
) -> EvaluationReport:
    """Score one variant of the bundle at ``path`` on the labelled folder ``data``.

    Args:
        path: the bundle.
        data: class folders named like the bundle's labels.
        variant: as in ``edgetl.load``.
        every_image: also score images that the model was trained or selected on.
        threads: as in ``edgetl.load``.
        progress: told after each batch.

    Raises:
        DataError: the folder has other classes, or no unseen image.
    """
    bundle = open_bundle(path)
    predictor = load(bundle, variant=variant, threads=threads)
    seen = frozenset() if every_image else bundle.seen_images()
    samples, broken, left_out = unseen_samples(data, bundle.manifest.labels, seen, progress=progress)
    result = score(predictor.logits, samples, predictor.spec, predictor.labels, progress=progress)
    name = predictor.variant.name if predictor.variant else None
    return EvaluationReport(model=str(path), variant=name, left_out=left_out, broken=broken, result=result)


def unseen_samples(
    data: Path, labels: Sequence[str], seen: frozenset[int], *, progress: Progress = silent
) -> tuple[list[Sample], int, int]:
    """The readable images of ``data`` that are not in ``seen``, the number of broken ones, and the number left out.

    Raises:
        DataError: unknown classes, or nothing left.
    """
    folder = scan(data, known_labels=labels, progress=progress)
    samples = [sample for sample in folder.samples if hash_prefix(sample.content) not in seen]
    left_out = len(folder.samples) - len(samples)
    if not samples:
        raise DataError(
            f"the model was trained or selected on all {left_out} images of {data}. Give other images, or score them with --all."
        )
    return samples, len(folder.broken), left_out


def score(
    logits: Callable[[NDArray[np.float32]], NDArray[np.float32]],
    samples: Sequence[Sample],
    spec: PreprocessSpec,
    labels: Sequence[str],
    *,
    progress: Progress = silent,
) -> Evaluation:
    """Evaluate a function from images float32 ``[batch, 3, H, W]`` to logits ``[batch, classes]`` on ``samples``."""
    predicted: list[NDArray[np.int64]] = []
    done = 0
    for batch in batches(samples, spec):
        predicted.append(logits(batch).argmax(axis=1))
        done += len(batch)
        progress("evaluating", done, len(samples))
    return evaluate_predictions(labels_of(samples), np.concatenate(predicted), labels)
