"""Active learning (``edgetl label``): choose the images whose labels help most."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans

from edgetl.core.files.names import printable
from edgetl.core.progress import Progress, silent
from edgetl.errors import DataError
from edgetl.train.config.options import DataConfig, TrainConfig
from edgetl.train.config.tasks import scan_images
from edgetl.train.config.unlabeled.labeling import ChosenImage, LabelingConfig, LabelingReport
from edgetl.train.heads.linear import fit_penalized, spread
from edgetl.train.workflows.unlabeled.images import components, read_unlabeled

# L2 penalty per image of the probe. Penalties that cross-validation chooses from few labels vary, and choose worse images.
PENALTY = 1e-2


def choose_images_to_label(data: Path, config: TrainConfig, options: LabelingConfig, *, progress: Progress = silent) -> LabelingReport:
    """Choose the next images to label. Copies of labeled images are never chosen.

    Args:
        data: folder of images. Folders in it have no meaning.
        config: backbone options.
        options: number of images, and labels so far.
        progress: called for each step.

    Raises:
        DataError: the folder has no image without a label, or the table of labels does not fit.
        BackboneError: the backbone cannot be found or loaded.
    """
    started = time.monotonic()
    images = read_unlabeled(data, config, least=2, progress=progress)
    names, known = _read_labels(data, options, progress)
    labels = np.array([known.get(content, -1) for content in images.contents])
    rest = np.flatnonzero(labels < 0)
    if not len(rest):
        raise DataError(f"all {len(labels)} images in {printable(data)} have a label. Add images.")
    scores = None
    if len(np.unique(labels[labels >= 0])) > 1:
        scores = predict_unlabeled(images.features, labels, len(names))[rest]
    chosen = choose(components(images.features, seed=config.run.seed)[rest], scores, options.count, seed=config.run.seed)
    return LabelingReport(
        data=printable(data),
        backbone=images.backbone,
        images=len(images.names),
        labeled=len(labels) - len(rest),
        rule="diversity" if scores is None else "uncertainty and diversity",
        chosen=tuple(_describe(images.names[rest[row]], None if scores is None else scores[row], names) for row in chosen.tolist()),
        seconds=round(time.monotonic() - started, 1),
    )


def choose(points: NDArray[np.float32], scores: NDArray[np.float64] | None, count: int, *, seed: int) -> NDArray[np.int64]:
    """Choose images by uncertainty and diversity, the most useful first.

    k-means divides the images, each with the weight ``1 - margin``, and the image nearest to each center is chosen (Zhdanov 2019,
    arXiv:1901.05954). Without scores, the weights are equal.

    Args:
        points: features for distances, float32 ``[n, d]``.
        scores: probabilities, ``[n, classes]``; none if there are no labels.
        count: number of images to choose. With fewer images, all are returned.
        seed: random seed of k-means.

    Returns:
        Indices of the images, ordered by margin; without scores, by the size of their clusters.
    """
    margins = np.zeros(len(points)) if scores is None else margin(scores)
    fitted = KMeans(min(count, len(points)), n_init=1, max_iter=20, random_state=seed).fit(points, sample_weight=1 - margins)
    distances = ((points - fitted.cluster_centers_[fitted.labels_]) ** 2).sum(axis=1)
    order = np.argsort(distances, kind="stable")
    clusters, first = np.unique(fitted.labels_[order], return_index=True)
    nearest = order[first]
    keys = -np.bincount(fitted.labels_)[clusters] if scores is None else margins[nearest]
    return nearest[np.argsort(keys, kind="stable")]


def margin(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the difference of the two largest scores of each row, ``[n]``."""
    largest = np.sort(scores, axis=1)[:, -2:]
    difference: NDArray[np.float64] = largest[:, 1] - largest[:, 0]
    return difference


def _read_labels(data: Path, options: LabelingConfig, progress: Progress) -> tuple[tuple[str, ...], dict[str, int]]:
    """Return the class names, and the class of each labeled image by its content."""
    if options.labels is None:
        return (), {}
    folder = scan_images(data, DataConfig(labels=options.labels, task="classification"), limits=False, progress=progress)
    return folder.labels, {sample.content: sample.label for sample in folder.samples}


def predict_unlabeled(features: NDArray[np.float32], labels: NDArray[np.int64], classes: int) -> NDArray[np.float64]:
    """Fit a linear probe on the labeled images, and return the probabilities of all images, ``[n, classes]``.

    Args:
        features: float32 ``[n, width]``.
        labels: class of each image; -1 without a label.
        classes: number of classes.
    """
    labeled = labels >= 0
    scaled = ((features - features[labeled].mean(axis=0)) / spread(features[labeled])).astype(np.float64)
    model = fit_penalized(scaled[labeled], labels[labeled], PENALTY)
    found = np.zeros((len(labels), classes))
    found[:, model.classes_] = model.predict_proba(scaled)
    return found


def _describe(name: str, scores: NDArray[np.float64] | None, labels: tuple[str, ...]) -> ChosenImage:
    if scores is None:
        return ChosenImage(file=name)
    return ChosenImage(file=name, suggested=labels[int(scores.argmax())], margin=round(float(margin(scores[None])[0]), 4))
