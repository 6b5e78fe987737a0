"""Clustering (``edgetl cluster``): groups of similar images, to name them before labels exist."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import AgglomerativeClustering

from edgetl.core.files.names import printable
from edgetl.core.progress import Progress, silent
from edgetl.errors import DataError
from edgetl.train.config.options import TrainConfig
from edgetl.train.config.unlabeled.clustering import Cluster, ClusteringConfig, ClusteringReport
from edgetl.train.workflows.unlabeled.images import components, read_unlabeled

# Ward's method needs the distances of all pairs. Further images join the cluster with the nearest center.
MOST_FOR_WARD = 5000


def cluster_images(data: Path, config: TrainConfig, options: ClusteringConfig, *, progress: Progress = silent) -> ClusteringReport:
    """Divide the images of a folder into clusters of similar images.

    Args:
        data: folder of images. Folders in it have no meaning.
        config: backbone options.
        options: number of clusters.
        progress: called for each step.

    Raises:
        DataError: the folder has fewer images than clusters.
        BackboneError: the backbone cannot be found or loaded.
    """
    started = time.monotonic()
    images = read_unlabeled(data, config, least=2, progress=progress)
    if len(images.names) < options.clusters:
        raise DataError(f"{printable(data)} has {len(images.names)} different images, fewer than --clusters {options.clusters}. Lower it.")
    points = components(images.features, seed=config.run.seed)
    clusters = divide(points, options.clusters, seed=config.run.seed)
    return ClusteringReport(
        data=printable(data),
        backbone=images.backbone,
        images=len(images.names),
        clusters=tuple(
            Cluster(name=f"cluster-{place:02d}", files=tuple(images.names[row] for row in rows))
            for place, rows in enumerate(clusters, start=1)
        ),
        seconds=round(time.monotonic() - started, 1),
    )


def divide(points: NDArray[np.float32], count: int, *, seed: int) -> list[list[int]]:
    """Divide points into ``count`` clusters by Ward's method (Ward 1963, doi:10.1080/01621459.1963.10500845).

    Args:
        points: float32 ``[n, d]``.
        count: number of clusters, at most ``n``.
        seed: random seed of the sample of ``MOST_FOR_WARD`` points.

    Returns:
        Indices of the points of each cluster, the largest cluster and the point nearest to the center first.
    """
    sample = np.random.default_rng(seed).permutation(len(points))[:MOST_FOR_WARD]
    found = AgglomerativeClustering(count).fit_predict(points[sample])
    centers = np.stack([points[sample[found == cluster]].mean(axis=0) for cluster in range(count)])
    distances = np.stack([((points - center) ** 2).sum(axis=1) for center in centers], axis=1)
    labels = distances.argmin(axis=1)
    labels[sample] = found
    members = [np.flatnonzero(labels == cluster) for cluster in range(count)]
    ordered = [rows[np.argsort(distances[rows, cluster], kind="stable")].tolist() for cluster, rows in enumerate(members)]
    return sorted(ordered, key=len, reverse=True)
