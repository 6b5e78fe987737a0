"""Wrong predictions: a gallery of the worst ones with saliency maps."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree.ElementTree import Element

from edgetl.report.elements import Child, element, paragraph
from edgetl.report.images import data_uri
from edgetl.report.models import RunFacts, ShownImage

_ORDER = {
    "classification": "those with the highest score first",
    "multi-label": "those with the most wrong labels first",
    "regression": "those with the largest error first",
    "ordinal": "those with the largest error first",
    "anomaly": "those with the scores farthest from the threshold first",
}
_HEAT_MAPS = (
    "Left: the image as the network sees it, after resize and crop. Right: its heat map. Orange parts differ from the normal images."
)


def mistakes_section(run: RunFacts) -> list[Child]:
    """Return the content of the section about the wrong predictions of a run."""
    total, wrong = len(run.predictions), len(run.wrong)
    if not wrong:
        return [paragraph(f"All {total:,} predictions on {run.shown_split} images are correct.")]
    text = (
        f"{wrong:,} of {total:,} predictions on {run.shown_split} images are wrong. {len(run.gallery)} are shown, "
        f"{_ORDER[run.record.task]}. The table predictions.csv of the run lists all of them. A confident mistake is often a wrong label."
    )
    explanation = (
        "Left: the image as the network sees it, after resize and crop. Right: its saliency map by occlusion (Zeiler and Fergus 2014, "
        "arXiv:1311.2901). Orange parts support the wrong prediction: covering them lowers its output. A gray map: no "
        "single part does."
    )
    if run.record.task == "anomaly":
        explanation = _HEAT_MAPS
    has_maps = any(item.saliency for item in run.gallery)
    return [
        paragraph(text),
        paragraph(explanation, class_="note") if has_maps else None,
        element("ul", [_card(item) for item in run.gallery], class_="gallery") if run.gallery else None,
    ]


def golden_section(goldens: Sequence[ShownImage]) -> list[Child]:
    """Return the content of the section about the golden images of a bundle."""
    text = "The bundle has these images with the scores of each variant on the exporting host. `edgetl verify` predicts them on a device."
    return [paragraph(text), element("ul", [_card(item) for item in goldens], class_="gallery")]


def _card(item: ShownImage) -> Element:
    label, prediction, *rest = item.caption
    images = [element("img", src=data_uri(item.jpeg), alt=f"{label}, {prediction}")]
    if item.saliency is not None:
        images.append(element("img", src=data_uri(item.saliency), alt="Saliency map of the prediction"))
    files = [element("span", text, class_="file") for text in rest]
    return element("li", element("div", images, class_="images"), element("strong", prediction), element("span", label), files)
