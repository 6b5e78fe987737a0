"""Clustering (``edgetl cluster``): its options and its result."""

from __future__ import annotations

from typing import Literal

from edgetl.core.config import StrictModel
from edgetl.core.options import COMMON, option_field


class ClusteringConfig(StrictModel):
    """Options of ``cluster`` that are not options of the backbone."""

    clusters: int = option_field(
        20,
        "Number of clusters, 2..200. Several clusters of a class are easier to name than one cluster of two classes.",
        panel=COMMON,
        ge=2,
        le=200,
    )


class Cluster(StrictModel):
    """Group of similar images.

    Attributes:
        name: ``cluster-01`` and so on, the largest first.
        files: paths in the data folder, the most typical first.
    """

    name: str
    files: tuple[str, ...]


class ClusteringReport(StrictModel):
    """Result of ``cluster``.

    Attributes:
        data: folder of the images.
        backbone: network that computes the features.
        images: number of readable images.
        clusters: the clusters, the largest first.
        seconds: duration, s.
    """

    schema_version: Literal[1] = 1
    data: str
    backbone: str
    images: int
    clusters: tuple[Cluster, ...]
    seconds: float
