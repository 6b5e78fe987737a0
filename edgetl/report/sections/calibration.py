"""Calibration: reliability diagram and expected calibration error."""

from __future__ import annotations

from xml.etree.ElementTree import Element

from edgetl.core.results import Rejection, Reliability
from edgetl.report.charts import reliability_chart
from edgetl.report.elements import Child, element, figure, number, paragraph, table, with_interval
from edgetl.report.models import RunFacts


def calibration_section(run: RunFacts, reliability: Reliability) -> list[Child]:
    """Return the content of the section about the calibration of scores, and rejected images, on the shown images of a run."""
    rows: list[list[Child]] = [
        [f"{item.low:.3f} to {item.high:.3f}", str(item.accuracy.n), number(item.score), with_interval(item.accuracy)]
        for item in reliability.bins
    ]
    mean_gap = sum(item.accuracy.n * (item.score - item.accuracy.value) for item in reliability.bins) / max(1, reliability.n)
    direction = "higher" if mean_gap > 0 else "lower"
    text = (
        f"Expected calibration error (ECE): mean difference of score and accuracy over 15 bins of equal width (Guo et al. 2017, "
        f"arXiv:1706.04599), on {reliability.n:,} predictions of {run.shown_split} images. The mean score is {abs(mean_gap):.3f} "
        f"{direction} than the accuracy."
    )
    label = f"Reliability diagram: accuracy over mean score in {len(reliability.bins)} bins. ECE {reliability.ece:.3f}"
    caption = "Accuracy over score, with 95 % intervals. Calibrated scores are on the dashed line. The area of a dot shows its predictions."
    bins = table("Bins of the reliability diagram", ("score", "predictions", "mean score", "accuracy"), rows)
    return [
        element(
            "dl",
            [
                element("div", element("dt", name), element("dd", number(value), class_="value"), element("dd", note, class_="note"))
                for name, value, note in (
                    ("ECE", reliability.ece, "0 is calibrated"),
                    ("Log loss", reliability.nll, "nats"),
                    ("Brier score", reliability.brier, "squared error of the scores"),
                )
            ],
            class_="cards",
        ),
        paragraph(text),
        paragraph(_temperature(run)),
        _rejection(run.shown.rejection) if run.shown.rejection else None,
        element("div", figure(reliability_chart(reliability.bins, label=label), caption), bins, class_="pair"),
    ]


def _temperature(run: RunFacts) -> str:
    temperature = run.record.decision_rule.temperature
    if temperature != 1:
        return f"The scores are calibrated: the outputs are divided by the temperature {temperature:.4g}."
    remedy = "" if run.record.adaptation else " `edgetl calibrate` chooses one."  # it refuses an adapted run
    return f"The scores are not calibrated: the temperature is 1.{remedy}"


def _rejection(rejection: Rejection) -> Element:
    return paragraph(
        f"Images with a score below {rejection.below:.4g} have no label (unknown). Coverage: ",
        with_interval(rejection.coverage),
        " of the images get a label. Precision: ",
        with_interval(rejection.precision),
        " of these labels are correct.",
    )
