"""Charts of the command line. Only charts need matplotlib."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgetl.core.manifest import Manifest, Rejected, Variant
from edgetl.core.output.folders import write_chart
from edgetl.core.results import Evaluation
from edgetl.errors import MissingExtraError
from edgetl.measure.report import LatencyReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from edgetl.train.config.diagnosis.curve import CurveReport
    from edgetl.train.config.ranking import Ranking

# Largest number of operations of a variant in a chart.
MOST_BARS = 20
_STAGES = (("decode", "#9ecae1"), ("preprocess", "#4292c6"), ("infer", "#08306b"))


def draw_latency(report: LatencyReport, path: Path) -> None:
    """Write a bar chart of the median time of each stage, with one bar per variant, in the format of the file name (PNG).

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure = _figure(8.0, 2.0 + 0.45 * len(report.variants))
    stages_axes(figure.add_subplot(), report)
    _save(figure, path)


def draw_demo(test: Evaluation, report: LatencyReport, accuracies: dict[str, float], path: Path) -> None:
    """Write the chart of the demo: confusion matrix, accuracy of each variant, and time of each stage."""
    from edgetl.train.artifacts.plots import confusion_axes

    figure = _figure(14.0, 5.2)
    left, right = figure.subfigures(1, 2, width_ratios=[1, 1.15])
    confusion_axes(left.add_subplot(), test, f"digits, test images: accuracy {test.accuracy.value:.3f}, n = {test.accuracy.n}")
    upper, lower = right.subplots(2, 1)
    names = list(accuracies)
    upper.barh(names, [accuracies[name] for name in names], color="#41ab5d")
    upper.set_xlim(0.0, 1.0)
    upper.invert_yaxis()
    for index, name in enumerate(names):
        upper.text(accuracies[name], index, f"{accuracies[name]:.3f} ", va="center", ha="right", color="white", fontsize=9)
    upper.set_title("accuracy on test images", fontsize=10)
    stages_axes(lower, report)
    _save(figure, path)


def draw_ranking(ranking: Ranking, path: Path) -> None:
    """Write a scatter plot of score against latency, with the Pareto front: candidates that no other one exceeds in both."""
    figure = _figure(9.0, 5.5)
    axes = figure.add_subplot()
    points = sorted(
        ((item.latency_ms, (item.knn + item.ridge) / 2, item.name) for item in ranking.ranked), key=lambda item: (item[0], -item[1])
    )
    front: list[tuple[float, float, str]] = []
    for point in points:
        if not front or point[1] > front[-1][1]:
            front.append(point)
    axes.step([point[0] for point in front], [point[1] for point in front], where="post", color="#41ab5d", zorder=1, label="Pareto front")
    for latency, score, name in points:
        best = (latency, score, name) in front
        axes.scatter(latency, score, color="#08306b" if best else "#9ecae1", zorder=2)
        axes.annotate(name, (latency, score), xytext=(5, 4), textcoords="offset points", fontsize=8, color="black" if best else "gray")
    axes.set_xscale("log")
    axes.margins(x=0.15, y=0.1)
    axes.set_xlabel("latency of one image, ms (torch, one thread)")
    axes.set_ylabel("leave-one-out accuracy (mean of k-NN and ridge)")
    axes.set_title(f"{Path(ranking.data).name}: {ranking.images} images, {ranking.classes} classes", fontsize=10)
    axes.legend(fontsize=8, frameon=False)
    _save(figure, path)


def draw_curve(report: CurveReport, path: Path) -> None:
    """Write the chart of a learning curve: measured points with 95 % intervals, and the extrapolation with its interval."""
    figure = _figure(8.0, 5.0)
    axes = figure.add_subplot()
    for points, name, color in ((report.pretrained, "pretrained", "#08306b"), (report.random, "random weights", "#969696")):
        values = [point.accuracy.value for point in points]
        errors = [
            [max(0.0, v - p.accuracy.low) for v, p in zip(values, points, strict=True)],
            [max(0.0, p.accuracy.high - v) for v, p in zip(values, points, strict=True)],
        ]
        axes.errorbar([point.labels for point in points], values, yerr=errors, marker="o", capsize=3, color=color, label=name)
    last = report.pretrained[-1]
    labels = [last.labels, *(item.labels for item in report.forecasts)]
    axes.plot(labels, [last.accuracy.value, *(item.accuracy for item in report.forecasts)], "--", color="#4292c6", label="extrapolated")
    low, high = (
        [last.accuracy.low, *(item.low for item in report.forecasts)],
        [last.accuracy.high, *(item.high for item in report.forecasts)],
    )
    axes.fill_between(labels, low, high, color="#9ecae1", alpha=0.4, linewidth=0)
    axes.set_xscale("log")
    axes.set_xlabel("labeled training images")
    axes.set_ylabel(f"accuracy on {report.held_out} held-out images")
    axes.set_title(f"{Path(report.data).name}: {report.backbone}, {report.method}", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, frameon=False)
    _save(figure, path)


def draw_sensitivities(manifest: Manifest, path: Path) -> bool:
    """Write a bar chart of the operations that are most sensitive to quantization, for each int8 variant.

    Gray bars are operations that compensate the error of another. Returns False without a chart if no operation was measured: every int8
    variant was left out before, or it quantizes only matrix products, with ranges computed at run time.
    """
    items: list[Variant | Rejected] = [*manifest.variants, *manifest.rejected]
    measured = [item for item in items if item.sensitivities]
    if not measured:
        return False
    rows = max(min(MOST_BARS, len(item.sensitivities)) for item in measured)
    figure = _figure(8.0 * len(measured), 1.6 + 0.26 * rows)
    for axes, item in zip(figure.subplots(1, len(measured), squeeze=False)[0], measured, strict=True):
        shown = item.sensitivities[:MOST_BARS]
        names = [_short(found.title) for found in shown]
        places = range(len(shown))
        axes.barh(
            places, [found.divergence for found in shown], color=["#08306b" if found.divergence > 0 else "#bdbdbd" for found in shown]
        )
        axes.set_yticks(places, names, fontsize=8)
        axes.invert_yaxis()
        axes.set_xlabel("divergence from the trained model caused by this operation (nats)")
        axes.set_title(f"{manifest.name}, {item.name}", fontsize=10)
    _save(figure, path)
    return True


def _short(name: str) -> str:
    return name if len(name) <= 50 else f"…{name[-49:]}"


def stages_axes(axes: Axes, report: LatencyReport) -> None:
    """Draw stacked bars of the median time of each stage, ms."""
    names = [row.variant for row in report.variants]
    start = [0.0] * len(names)
    for stage, color in _STAGES:
        widths = [getattr(row, stage).p50_ms or getattr(row, stage).mean_ms for row in report.variants]
        axes.barh(names, widths, left=start, color=color, label=stage)
        start = [left + width for left, width in zip(start, widths, strict=True)]
    for index, end in enumerate(start):
        axes.text(end, index, f" {end:.2f} ms", va="center", fontsize=9)
    axes.set_xlim(0, max(start) * 1.18)
    axes.invert_yaxis()
    axes.set_xlabel("median time of one image, ms")
    axes.set_title(f"{report.threads} thread(s), {report.host['cpu']}", fontsize=10)
    axes.figure.legend(fontsize=8, loc="outside lower center", ncols=3, frameon=False)


def need_matplotlib() -> None:
    """Raise an error before a long measurement if no chart can be drawn.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise MissingExtraError("matplotlib", "plot")


def _figure(width: float, height: float) -> Any:
    need_matplotlib()
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: Any, path: Path) -> None:
    write_chart(figure, path, dpi=120)
