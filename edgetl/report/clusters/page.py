"""HTML page of clusters: typical images of each cluster, in one file without scripts and network access."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgetl.core.output.folders import write_file
from edgetl.report.check.galleries import MOST_IMAGES, Galleries
from edgetl.report.elements import element, html_document, is_generated, left_out_note, page_body, paragraph
from edgetl.train.config.unlabeled.clustering import ClusteringReport

_GENERATOR = "edgetl cluster"
# Base64 makes four bytes of three. The page has at most 5 MB.
_MAX_IMAGE_BYTES = 3_200_000


def write_cluster_page(report: ClusteringReport, root: Path, out: Path) -> None:
    """Write the page of a report. ``root`` is the folder of the images.

    Raises:
        StorageError: the file cannot be written.
    """
    write_file(out, render_cluster_page(report, root).encode())


def is_cluster_page(path: Path) -> bool:
    """Return true if ``write_cluster_page`` wrote a file."""
    return is_generated(path, _GENERATOR)


def render_cluster_page(report: ClusteringReport, root: Path) -> str:
    """Return the HTML page of a report."""
    galleries = Galleries({name: root / name for cluster in report.clusters for name in cluster.files}, _MAX_IMAGE_BYTES)
    sections = []
    for cluster in report.clusters:
        gallery = galleries.gallery((shown, title, ()) for title, shown in _samples(cluster.files))
        sections.append(element("section", element("h2", f"{cluster.name}: {len(cluster.files):,} images"), gallery, id=cluster.name))
    name = Path(report.data).name or report.data
    links = [element("li", element("a", cluster.name, href=f"#{cluster.name}")) for cluster in report.clusters]
    explained = paragraph(
        f"{report.images:,} images in {len(report.clusters)} clusters, by the features of {report.backbone}. If the least typical "
        "images of a cluster show something else, raise --clusters. Replace the names of the clusters in the table by class names. "
        "Several clusters may get the same name."
    )
    navigation = element("nav", element("ul", links), aria_label="Clusters", class_="flat")
    body = page_body("Clusters", name, navigation, explained, left_out_note(galleries.left_out), sections)
    return html_document(f"Clusters: {name}", _GENERATOR, body)


def _samples(files: Sequence[str]) -> list[tuple[str, Sequence[str]]]:
    """Return titles and files of the images to show: the most typical ones, some from the middle, and the least typical ones."""
    first, rest = files[:MOST_IMAGES], files[MOST_IMAGES:]
    last, middle = rest[-MOST_IMAGES:], rest[:-MOST_IMAGES]
    start = max(0, (len(middle) - MOST_IMAGES) // 2)
    parts = (("Most typical", first), ("Middle", middle[start : start + MOST_IMAGES]), ("Least typical", last))
    return [(title, shown) for title, shown in parts if shown]
